"""Vertex AI's variables decide where the gateway listens and what its health means."""

import pytest

from gateway.compat.vertex import VertexSettings, apply_vertex_settings
from gateway.settings import GatewaySettings


def test_settings_are_unchanged_outside_vertex(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AIP_HTTP_PORT", "AIP_MODE", "AIP_PREDICT_ROUTE", "AIP_HEALTH_ROUTE"):
        monkeypatch.delenv(name, raising=False)
    settings = GatewaySettings()

    assert apply_vertex_settings(settings, VertexSettings()) == settings
    assert not VertexSettings().needs_consult
    assert not VertexSettings().keyless


def test_container_uses_vertex_host_and_port(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"AIP_HTTP_PORT": "8085", "AIP_MODE": "PREDICTION", "AIP_PREDICT_ROUTE": "/v1/ask", "AIP_HEALTH_ROUTE": "/v1/alive"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    vertex = VertexSettings()
    settings = apply_vertex_settings(GatewaySettings(), vertex)

    assert (settings.host, settings.port) == ("0.0.0.0", 8085)
    assert settings.max_body_bytes >= 10_000_000
    assert (vertex.predict_route, vertex.health_route, vertex.needs_consult) == ("/v1/ask", "/v1/alive", True)
    assert vertex.keyless == {"/v1/ask", "/v1/alive"}
