"""The pages about the Python client: every block of code on them is executed."""
