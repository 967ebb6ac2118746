"""One node's part in Raft: PySyncObj, and what stands around it. No sockets, no files, no clock."""
