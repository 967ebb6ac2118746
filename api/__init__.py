"""The front end of a node: operators, HTTP, WebSocket, settings, and the server's entry point."""
