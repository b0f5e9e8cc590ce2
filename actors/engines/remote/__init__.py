"""OpenAI-compatible model servers."""
