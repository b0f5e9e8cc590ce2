"""The text step's client: generation, uploads, status."""
