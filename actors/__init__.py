"""The actors, one module for each step. An actor does not import another, and does not publish, acknowledge or retry."""
