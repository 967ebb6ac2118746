"""Delivers webhooks to a receiver that is really flaky. `README.md` tells the story."""
