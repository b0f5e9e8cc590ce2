"""The model families that the diffusion engine draws with: one module each."""
