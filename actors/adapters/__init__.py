"""Adapters: each translates what another system publishes into commands."""
