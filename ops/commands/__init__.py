"""The commands of `atelier`, one module each."""
