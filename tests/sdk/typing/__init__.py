"""What type checkers make of programs that use the client."""
