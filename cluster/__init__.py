"""Makes the state machine replicated: what was acknowledged is never lost."""
