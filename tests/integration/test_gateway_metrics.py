"""The gateway's metrics are on the health server's own port, where tenants cannot read them."""

import httpx
from prometheus_client.parser import text_string_to_metric_families

from bus.observability.settings import HealthSettings
from bus.settings import BusSettings
from gateway.app import create_app
from gateway.settings import GatewaySettings

KEY = "a-key-of-the-shop-1234"


async def test_http_metrics_use_route_patterns_and_hide_from_tenants(bus_settings: BusSettings) -> None:
    settings = GatewaySettings.model_validate({"api_keys": f"shop:{KEY}", "question_seconds": 0.2})
    app = create_app(bus_settings, settings, None, HealthSettings(port=0, keep_seconds=0))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost", headers={"X-API-Key": KEY}) as tenant,
        httpx.AsyncClient(base_url=app.state.health_url) as prometheus,
    ):
        for number in range(3):
            await tenant.get(f"/jobs/some-job-{number}")
            await tenant.get(f"/nowhere/{number}")
        assert (await tenant.get("/metrics")).status_code == 404
        assert (await prometheus.get("/health/ready")).json()["parts"] == {"broker": "ok"}
        families = text_string_to_metric_families((await prometheus.get("/metrics")).text)
        counts = {
            (sample.labels["route"], sample.labels["status"]): sample.value
            for family in families
            for sample in family.samples
            if sample.name == "atelier_gateway_requests_total"
        }
    assert counts["/jobs/{job_id}", "504"] >= 3
    assert counts["other", "404"] >= 4
    assert not [route for route, _ in counts if "some-job" in route or "nowhere" in route]
