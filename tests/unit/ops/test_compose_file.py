"""docker-compose.yml is valid by the Compose specification, and has every actor, limit, health check and documented variable."""

import json
import re
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from ops.docgen.configuration import COMPOSE_VARIABLES
from ops.docgen.generate import ROOT
from ops.docgen.settings_catalog import all_settings
from ops.registry import MODULES, NEEDS_MODELS

TEXT = (ROOT / "docker-compose.yml").read_text()
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


def compose_document() -> dict[str, Any]:
    """With every variable at its default; a required one is `required`."""
    document: dict[str, Any] = yaml.safe_load(VARIABLE.sub(lambda match: match[3] if match[2] == "-" else "required", TEXT))
    return document


SERVICES = compose_document()["services"]


def test_file_is_valid_compose_file() -> None:
    PyCompose.from_json(json.dumps(compose_document()))


@pytest.mark.parametrize(("key", "value"), [("healthcheck", {"interval": "soon"}), ("profiles", 7), ("restart", "maybe")])
def test_invalid_value_is_rejected(key: str, value: Any) -> None:
    invalid = compose_document()
    invalid["services"]["gateway"][key] = value
    with pytest.raises(Exception, match=r"line 1"):
        PyCompose.from_json(json.dumps(invalid))


def test_every_actor_has_service_and_only_models_reserve_device() -> None:
    services = {command[1]: service for service in SERVICES.values() if (command := service.get("command", [""]))[0] == "run"}
    assert set(services) == set(MODULES)
    for step, service in services.items():
        devices = service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
        assert [device["count"] for device in devices] == ([1] if step in NEEDS_MODELS else []), step
        assert ("gpu" in service.get("profiles", [])) == (step in NEEDS_MODELS)


@pytest.mark.parametrize("name", SERVICES)
def test_service_has_health_check_limit_restart_policy_and_pinned_image(name: str) -> None:
    service = SERVICES[name]
    assert service["healthcheck"]
    assert service["restart"]
    assert name == "vllm" or service["mem_limit"]
    assert re.search(r":[\w.-]*\d|atelier", service["image"]), "an image is pinned to a version"
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), "ports are published on loopback only"


def test_dependent_services_wait_for_healthy_dependencies() -> None:
    actors = [service for service in SERVICES.values() if service.get("command", [""])[0] in {"run", "gateway"}]
    assert len(actors) == len(MODULES) + 1
    for service in actors:
        assert {name: dependency["condition"] for name, dependency in service["depends_on"].items()} == {
            "rabbitmq": "service_healthy",
            "postgres": "service_healthy",
            "s3": "service_healthy",
            "prepare": "service_completed_successfully",
        }


def test_every_variable_is_documented_with_its_default_and_no_secret_is_in_the_file() -> None:
    documented = {variable.name: variable.default for variable in COMPOSE_VARIABLES}
    settings = {setting.name for setting in all_settings()}
    for name, operator, default in VARIABLE.findall(TEXT):
        if name in documented:
            assert documented[name] == (None if operator == "?" else default), name
        else:
            assert name in settings, f"{name} is in docker-compose.yml and not in docs/configuration.md"
        assert operator == "?" or not re.search(r"PASSWORD|KEY|TOKEN", name) or default in {"", "change-me"}, name
    assert set(documented) <= {name for name, _, _ in VARIABLE.findall(TEXT)}


def test_env_example_has_every_required_variable() -> None:
    example = (ROOT / ".env.example").read_text()
    required = [name for name, operator, _ in VARIABLE.findall(TEXT) if operator == "?"]
    assert required
    assert [name for name in required if f"# {name}=" not in example] == []


def test_mounted_files_exist() -> None:
    mounts = [volume.partition(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])]
    files = [path for path in mounts if path.startswith(".")]
    assert files
    assert [path for path in files if not (ROOT / path).exists()] == []


def test_images_run_unprivileged_and_are_pinned() -> None:
    dockerfiles = list((ROOT / "ops/images").glob("*.Dockerfile"))
    assert len(dockerfiles) >= 2
    for path in dockerfiles:
        text = path.read_text()
        assert re.findall(r"^FROM python:\d+\.\d+\.\d+-slim-\w+", text, re.MULTILINE), path
        assert "\nUSER 10001\n" in text
        assert "\nHEALTHCHECK" in text
        assert text.count("FROM ") == 2, "the build stage is not in the image"
