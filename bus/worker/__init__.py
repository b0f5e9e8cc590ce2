"""The worker process: consumes deliveries, decides their outcome, publishes the messages of that outcome."""

from bus import hidden_package, placeholder_modules

with hidden_package("uvicorn"), placeholder_modules("http.server"):  # for FastStream's own HTTP servers, which no worker has: 2 MB
    import faststream
    import faststream.rabbit  # noqa: F401
