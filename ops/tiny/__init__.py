"""Tiny models that mean something, trained here on pictures that code draws. Toys: they show that the way through the system is right."""
