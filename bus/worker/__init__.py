"""The worker process: consumes deliveries, decides their outcome, publishes the messages of that outcome."""

from bus import hidden_package

with hidden_package("uvicorn"):  # FastStream takes it for its own HTTP server, which no worker has: 1.3 MB
    import faststream  # noqa: F401
