"""Hints for programming exercises, from the language model behind an OpenAI-compatible server: `python -m examples.hints --help`."""
