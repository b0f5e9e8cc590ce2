"""The gateway's layers together, as they stand in the application: pages of other origins, and what is refused at the door."""

import httpx
import pytest

from bus.settings import BusSettings
from gateway.app import create_app
from gateway.middleware.admission import EXEMPT_PATHS
from gateway.settings import GatewaySettings

SHOP, OTHER, KEY = "https://shop.example", "https://other.example", "k" * 32


def client(**settings: object) -> httpx.AsyncClient:
    app = create_app(BusSettings.model_validate({"amqp_url": "amqp://x"}), GatewaySettings.model_validate(settings))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway")


def asked(origin: str) -> dict[str, str]:
    return {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "idempotency-key"}


async def test_allowed_origin_receives_cors_headers() -> None:
    """It asks without a key, as browsers do; and it can read the gateway's refusals, too."""
    async with client(cors_origins=SHOP, api_keys=f"shop:{KEY}") as http:
        before = await http.options("/jobs", headers=asked(SHOP))
        refused = await http.post("/jobs", headers={"Origin": SHOP})
    assert (before.status_code, before.headers["access-control-allow-origin"]) == (200, SHOP)
    assert "idempotency-key" in before.headers["access-control-allow-headers"].lower()
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, SHOP)
    assert {"x-request-id", "ratelimit", "retry-after"} <= {
        name.strip() for name in refused.headers["access-control-expose-headers"].lower().split(",")
    }


@pytest.mark.parametrize(("origins", "origin"), [(SHOP, OTHER), ("", SHOP)])
async def test_other_origin_receives_no_cors_headers(origins: str, origin: str) -> None:
    async with client(cors_origins=origins, api_keys=f"shop:{KEY}") as http:
        before = await http.options("/jobs", headers=asked(origin))
        refused = await http.post("/jobs", headers={"Origin": origin})
    assert "access-control-allow-origin" not in before.headers
    assert "access-control-allow-origin" not in refused.headers


async def test_only_public_paths_need_no_key() -> None:
    """Among all paths of the document."""
    async with client(api_keys=f"shop:{KEY}") as http:
        document = (await http.get("/openapi.json")).json()
        answers = {
            path: (await http.request(method, path)).status_code
            for path, operations in document["paths"].items()
            for method in operations
            if path not in EXEMPT_PATHS
        }
    assert len(answers) > 10
    assert set(answers.values()) == {401}


@pytest.mark.parametrize("path", ["/jobs", "/predict", "/api/yh/llava/stage1/validate", "/v1/images/generations"])
async def test_large_body_is_rejected_on_every_path(path: str) -> None:
    async with client(max_body_bytes=100) as http:
        response = await http.post(path, content=b"x" * 101)
    assert response.status_code == 413
