"""Engines: the only place that imports torch, transformers, diffusers or vllm, and only inside functions that open an engine."""
