"""The image engine: continuous batching of denoising steps."""
