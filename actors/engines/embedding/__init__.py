"""Embedding models, in a model process: texts in, vectors of unit length out, batched over requests."""
