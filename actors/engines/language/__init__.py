"""The language engine: one continuous batch for vision-language models."""
