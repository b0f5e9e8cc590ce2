"""ASGI middleware: admission, API keys, rate limits, sessions, tracing."""
