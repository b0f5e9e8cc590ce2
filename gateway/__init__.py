"""The HTTP gateway: it publishes commands and returns their replies. It knows neither actors nor models nor the database.

The core (admission, services, commands, problems, sse) serves the APIs that `apis` lists.
"""

import sys

from bus import deferred_models

sys.modules.setdefault("pydantic.v1", None)  # type: ignore[arg-type] # FastAPI takes it, where it is, to refuse its models: 2 MB

with deferred_models():  # of the OpenAPI document, which few processes ever make: 2 MB
    import fastapi  # noqa: F401

from gateway.strict_model import defer_adapters  # noqa: E402 # imports FastAPI

defer_adapters()
