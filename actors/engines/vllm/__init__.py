"""vLLM in the worker process."""
