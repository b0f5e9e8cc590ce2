"""Vertex AI's variables decide where the gateway listens and what its health means."""

import pytest

from gateway.settings import GatewaySettings
from gateway.vertex import VertexSettings, placed


def test_outside_vertex_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AIP_HTTP_PORT", "AIP_MODE", "AIP_PREDICT_ROUTE", "AIP_HEALTH_ROUTE"):
        monkeypatch.delenv(name, raising=False)
    settings = GatewaySettings()

    assert placed(settings, VertexSettings()) == settings
    assert not VertexSettings().needs_consult
    assert not VertexSettings().keyless


def test_on_vertex_the_container_listens_where_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"AIP_HTTP_PORT": "8085", "AIP_MODE": "PREDICTION", "AIP_PREDICT_ROUTE": "/v1/ask", "AIP_HEALTH_ROUTE": "/v1/alive"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    vertex = VertexSettings()
    settings = placed(GatewaySettings(), vertex)

    assert (settings.host, settings.port) == ("0.0.0.0", 8085)
    assert settings.max_body_bytes >= 10_000_000
    assert (vertex.predict_route, vertex.health_route, vertex.needs_consult) == ("/v1/ask", "/v1/alive", True)
    assert vertex.keyless == {"/v1/ask", "/v1/alive"}
