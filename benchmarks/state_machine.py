"""Measures the state machine by itself: `make bench`, or `--quick` for a taste."""
