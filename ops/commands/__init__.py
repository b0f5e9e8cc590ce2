"""The commands of `atelier`, with one module or more each."""
