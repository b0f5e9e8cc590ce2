"""The OpenAI-compatible API: chat completions, images, models."""
