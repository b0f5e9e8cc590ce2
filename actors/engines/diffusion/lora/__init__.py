"""LoRA adapters: files, tensors, slots and the layers that apply them per row."""
