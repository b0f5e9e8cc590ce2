"""Training of the tiny models: it runs in a checkout and is not part of the wheel."""
