"""The HTTP gateway: it publishes commands and returns their replies. It knows neither actors nor models nor the database.

The core (admission, services, commands, problems, sse) serves the APIs that `apis` lists.
"""

import sys

sys.modules.setdefault("pydantic.v1", None)  # type: ignore[arg-type] # FastAPI takes it, where it is, to refuse its models: 2 MB
