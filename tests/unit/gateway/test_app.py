"""The application's middleware together: CORS, API keys and body limits on every path."""

import httpx
import pytest

from bus.settings import BusSettings
from gateway.app import create_app
from gateway.middleware.admission import DOCUMENT_PATHS, HEALTH_PATH
from gateway.settings import GatewaySettings

SHOP, OTHER, KEY = "https://shop.example", "https://other.example", "k" * 32


def client(**settings: object) -> httpx.AsyncClient:
    app = create_app(BusSettings.model_validate({"amqp_url": "amqp://x"}), GatewaySettings.model_validate(settings))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")


def preflight_headers(origin: str) -> dict[str, str]:
    return {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "idempotency-key"}


async def test_allowed_origin_receives_cors_headers() -> None:
    """A preflight request has no key, as browsers send it. The headers are on error responses, too."""
    async with client(cors_origins=SHOP, api_keys=f"shop:{KEY}") as http:
        preflight = await http.options("/jobs", headers=preflight_headers(SHOP))
        refused = await http.post("/jobs", headers={"Origin": SHOP})
    assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, SHOP)
    assert "idempotency-key" in preflight.headers["access-control-allow-headers"].lower()
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, SHOP)
    assert {"x-request-id", "ratelimit", "retry-after"} <= {
        name.strip() for name in refused.headers["access-control-expose-headers"].lower().split(",")
    }


@pytest.mark.parametrize(("origins", "origin"), [(SHOP, OTHER), ("", SHOP)])
async def test_other_origin_receives_no_cors_headers(origins: str, origin: str) -> None:
    async with client(cors_origins=origins, api_keys=f"shop:{KEY}") as http:
        preflight = await http.options("/jobs", headers=preflight_headers(origin))
        refused = await http.post("/jobs", headers={"Origin": origin})
    assert "access-control-allow-origin" not in preflight.headers
    assert "access-control-allow-origin" not in refused.headers


async def test_only_public_paths_need_no_key() -> None:
    """Of all paths in the OpenAPI document."""
    async with client(api_keys=f"shop:{KEY}") as http:
        document = (await http.get("/openapi.json")).json()
        statuses = {
            path: (await http.request(method, path)).status_code
            for path, operations in document["paths"].items()
            for method in operations
            if path not in {HEALTH_PATH, *DOCUMENT_PATHS}
        }
    assert len(statuses) > 10
    assert set(statuses.values()) == {401}


@pytest.mark.parametrize("path", ["/api/yh/llava/stage1/validate", "/dead-letters/replay", "/generate"])
async def test_large_body_is_rejected_on_every_path(path: str) -> None:
    async with client(max_body_bytes=100) as http:
        response = await http.post(path, content=b"x" * 101, headers={"Content-Type": "application/json"})
    assert response.status_code == 413
