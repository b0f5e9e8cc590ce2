"""docker-compose.yml as the Compose specification reads it; and that it forgets no actor, no limit, no health check and no setting."""

import json
import re
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from ops.docgen.generate import ROOT
from ops.registry import MODULES, NEEDS_MODELS

RAW = (ROOT / "docker-compose.yml").read_text()
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


def filled() -> dict[str, Any]:
    """With every variable at its default; what must be set is `said`."""
    whole: dict[str, Any] = yaml.safe_load(VARIABLE.sub(lambda found: found[3] if found[2] == "-" else "said", RAW))
    return whole


SERVICES = filled()["services"]


def test_the_file_is_a_compose_file() -> None:
    PyCompose.from_json(json.dumps(filled()))


@pytest.mark.parametrize(("key", "value"), [("healthcheck", {"interval": "soon"}), ("profiles", 7), ("restart", "maybe")])
def test_invalid_value_is_rejected(key: str, value: Any) -> None:
    wrong = filled()
    wrong["services"]["gateway"][key] = value
    with pytest.raises(Exception, match=r"line 1"):
        PyCompose.from_json(json.dumps(wrong))


def test_every_actor_has_a_service_and_only_those_with_models_ask_for_a_device() -> None:
    served = {words[1]: service for service in SERVICES.values() if (words := service.get("command", [""]))[0] == "run"}
    assert set(served) == set(MODULES)
    for step, service in served.items():
        devices = service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
        assert [device["count"] for device in devices] == ([1] if step in NEEDS_MODELS else []), step
        assert ("gpu" in service.get("profiles", [])) == (step in NEEDS_MODELS)


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_watched_limited_restarted_and_pinned(name: str) -> None:
    service = SERVICES[name]
    assert service["healthcheck"]
    assert service["restart"]
    assert name == "vllm" or service["mem_limit"]
    assert re.search(r":[\w.-]*\d|atelier", service["image"]), "an image is pinned to a version"
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), "nothing is open to the world by itself"


def test_dependent_services_wait_for_healthy_dependencies() -> None:
    actors = [service for service in SERVICES.values() if service.get("command", [""])[0] in {"run", "gateway"}]
    assert len(actors) == len(MODULES) + 1
    for service in actors:
        assert {name: how["condition"] for name, how in service["depends_on"].items()} == {
            "rabbitmq": "service_healthy",
            "postgres": "service_healthy",
            "s3": "service_healthy",
            "prepare": "service_completed_successfully",
        }


def test_no_secret_stands_in_the_file_and_every_variable_is_in_the_example() -> None:
    example = (ROOT / ".env.example").read_text()
    for name, how, default in VARIABLE.findall(RAW):
        assert f"{name}=" in example, f"{name} is in docker-compose.yml and not in .env.example"
        assert how == "?" or not re.search(r"PASSWORD|KEY|TOKEN", name) or default in {"", "change-me"}, name


def test_images_run_unprivileged_and_are_pinned() -> None:
    for path in (ROOT / "ops/images").glob("*.Dockerfile"):
        text = path.read_text()
        assert re.findall(r"^FROM python:\d+\.\d+\.\d+-slim-\w+", text, re.MULTILINE), path
        assert "\nUSER 10001\n" in text
        assert "\nHEALTHCHECK" in text
        assert text.count("FROM ") == 2, "what builds does not ship"
