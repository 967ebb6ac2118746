"""HTTP: every route of `/v1`, from one table. The WebSocket begins here, too."""
