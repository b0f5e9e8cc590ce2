"""The calls of official OpenAI clients, each in an environment of its own, and the table of their results."""
