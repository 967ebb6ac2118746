"""The WebSocket protocol: many sessions over one connection. `docs/protocol.md` describes it."""
