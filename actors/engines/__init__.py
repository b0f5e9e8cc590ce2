"""Model engines: the only package that imports torch, transformers, diffusers or vllm, and only inside functions."""
