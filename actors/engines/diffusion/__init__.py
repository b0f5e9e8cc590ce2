"""The diffusion engine: continuous batching of denoising steps."""
