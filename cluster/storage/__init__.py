"""What a node keeps on its disk: the journal and the checkpoint."""
