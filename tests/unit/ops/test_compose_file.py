"""docker-compose.yml is valid by the Compose specification, and has every actor, limit, health check and documented variable."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from actors.llm.settings import VllmSettings
from ops.broker_roles import broker_roles
from ops.docgen.configuration import COMPOSE_VARIABLES
from ops.docgen.generate import ROOT
from ops.docgen.process_settings import CONNECTION_CLASSES, settings_of_process
from ops.docgen.settings_catalog import all_settings
from ops.registry import MODULES, NEEDS_MODELS, expand_groups, processes_of, steps_of
from tests.support.compose_file import RAW_SERVICES, SERVICES, TEXT, VARIABLE, compose_document, run_vllm_server

PASSED = yaml.safe_load((ROOT / "ops/deploy/settings.yml").read_text())["services"]
MODEL_SERVER_FIELDS = {"TextSettings", "VlmSettings", "StepOverrides"}
BROKER_PASSWORDS = {f"RABBITMQ_{role.upper()}_PASSWORD" for role in broker_roles()}
ACTOR_SECRETS = {"RABBITMQ_ACTOR_PASSWORD", "POSTGRES_PASSWORD", "S3_PASSWORD", "ATELIER_SECRET"}
SECRETS = {
    "rabbitmq": {"RABBITMQ_PASSWORD"},
    "postgres": {"POSTGRES_PASSWORD"},
    "s3": {"S3_ROOT_PASSWORD"},
    "s3-user": {"S3_ROOT_PASSWORD", "S3_PASSWORD"},
    "prepare": {"RABBITMQ_PASSWORD", "S3_PASSWORD", *BROKER_PASSWORDS},
    "operator": ACTOR_SECRETS - {"RABBITMQ_ACTOR_PASSWORD"} | {"RABBITMQ_OPERATOR_PASSWORD"},
    "gateway": {"RABBITMQ_GATEWAY_PASSWORD", "S3_PASSWORD", "ATELIER_SECRET", "GATEWAY_API_KEYS"},
    "vllm-server": {"HUGGING_FACE_HUB_TOKEN"},
    "prometheus": set(),
    "grafana": {"GRAFANA_PASSWORD"},
}
"""The secrets of each container, beside the actors', which have ACTOR_SECRETS."""


def test_file_is_valid_compose_file() -> None:
    assert PyCompose.from_json(json.dumps(compose_document())) is not None


@pytest.mark.parametrize(("key", "value"), [("healthcheck", {"interval": "soon"}), ("profiles", 7), ("restart", "maybe")])
def test_invalid_value_is_rejected(key: str, value: Any) -> None:
    invalid = compose_document()
    invalid["services"]["gateway"][key] = value
    with pytest.raises(Exception, match=r"line 1"):
        PyCompose.from_json(json.dumps(invalid))


def test_every_actor_has_service_and_only_models_reserve_device() -> None:
    services = {command[1]: service for service in SERVICES.values() if (command := service.get("command", [""]))[0] == "run"}
    assert set(services) == set(processes_of(list(MODULES))), "a group of steps shares one process, and so one copy of its model"
    assert sorted(expand_groups(list(services))) == sorted(MODULES)
    for process, service in services.items():
        devices = service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
        needs_model = not NEEDS_MODELS.isdisjoint(steps_of(process))
        assert [device["count"] for device in devices] == ([1] if needs_model else []), process
        assert ("gpu" in service.get("profiles", [])) == needs_model


@pytest.mark.parametrize("name", SERVICES)
def test_service_has_health_check_limit_restart_policy_and_pinned_image(name: str) -> None:
    service = SERVICES[name]
    assert service["healthcheck"]
    assert service["restart"]
    assert name == "vllm-server" or service["mem_limit"]
    assert re.search(r":v?\d+\.\d+(\.\d+)?|:RELEASE\.\d{4}-|^atelier", service["image"]), "an image is pinned to an exact version"
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), "ports are published on loopback only"


def test_dependent_services_wait_for_healthy_dependencies() -> None:
    actors = [service for service in SERVICES.values() if service.get("command", [""])[0] in {"run", "gateway"}]
    assert len(actors) == len(processes_of(list(MODULES))) + 1
    for service in actors:
        assert {name: dependency["condition"] for name, dependency in service["depends_on"].items()} == {
            "rabbitmq": "service_healthy",
            "postgres": "service_healthy",
            "s3": "service_healthy",
            "prepare": "service_completed_successfully",
        }


def process_of(service: dict[str, Any]) -> str | None:
    """The step or group, or the gateway, that a service runs."""
    match service.get("command"):
        case ["run", step]:
            return str(step)
        case ["gateway", *_]:
            return "gateway"
    return None


@pytest.mark.parametrize("name", RAW_SERVICES)
def test_container_gets_secrets_of_its_own_only(name: str) -> None:
    service = RAW_SERVICES[name]
    secrets = {variable.name for variable in COMPOSE_VARIABLES if variable.unit == "secret"}
    expected = ACTOR_SECRETS if service.get("command", [""])[0] == "run" else SECRETS[name]
    assert {variable for variable, _, _ in VARIABLE.findall(json.dumps(service)) if variable in secrets} == expected
    assert "env_file" not in service, "a shared file would give every container the secrets of all"


@pytest.mark.parametrize("name", [name for name, service in RAW_SERVICES.items() if process_of(service)])
def test_container_gets_settings_that_its_process_reads_and_no_other_secret(name: str) -> None:
    """The settings of each process are found in its code."""
    service, process = RAW_SERVICES[name], process_of(RAW_SERVICES[name])
    assert process is not None
    assert service["extends"] == {"file": "ops/deploy/settings.yml", "service": process}
    passed = PASSED[process]["environment"]
    assert set(passed.values()) == {None}, "the value is that of .env or the shell"
    assert not set(service["environment"]) & set(passed), "podman-compose merges no value with none"
    given = set(service["environment"]) | set(passed)
    read = {setting.name for setting in settings_of_process(process) if setting.settings_class not in CONNECTION_CLASSES}
    set_by_file = {name for name in read if name.startswith("AWS_")} | ({"DATABASE_URL"} if process == "gateway" else set())
    assert read - set_by_file <= given
    secret = {setting.name for setting in all_settings() if setting.unit == "secret"}
    assert given & secret <= read - {"AWS_SESSION_TOKEN"}
    assert not given & BROKER_PASSWORDS


def test_webhook_secrets_reach_two_containers_and_gateway_has_no_database() -> None:
    for name in ("INTERNAL_API_TOKEN", "WEBHOOK_SECRET"):
        assert {process for process, passed in PASSED.items() if name in passed["environment"]} == {"webhook", "image_generation"}
    assert "DATABASE_URL" not in {*RAW_SERVICES["gateway"]["environment"], *PASSED["gateway"]["environment"]}
    assert "VLM_API_KEY" in PASSED["vision"]["environment"]
    assert "VLM_API_KEY" not in PASSED["image"]["environment"]


def test_containers_use_broker_user_of_their_role() -> None:
    users = {
        name: match[1]
        for name, service in RAW_SERVICES.items()
        if (match := re.match(r"amqp://([\w-]+):", str(service.get("environment", {}).get("AMQP_URL"))))
    }
    assert {user for name, user in users.items() if process_of(RAW_SERVICES[name]) not in {None, "gateway"}} == {"atelier-actor"}
    assert {name: users[name] for name in ("gateway", "operator", "prepare")} == {
        "gateway": "atelier-gateway", "operator": "atelier-operator", "prepare": "atelier",
    }  # fmt: skip


def test_store_user_is_not_root_and_may_use_one_bucket() -> None:
    environments = [service["environment"] for service in SERVICES.values() if "AWS_ACCESS_KEY_ID" in service.get("environment", {})]
    users = {environment["AWS_ACCESS_KEY_ID"] for environment in environments}
    assert users == {"atelier"}
    assert SERVICES["s3"]["environment"]["MINIO_ROOT_USER"] not in users
    policy = json.loads((ROOT / "ops/deploy/s3-policy.json").read_text())
    assert {resource for statement in policy["Statement"] for resource in statement["Resource"]} == {
        "arn:aws:s3:::atelier", "arn:aws:s3:::atelier/*",
    }  # fmt: skip
    actions = [action for statement in policy["Statement"] for action in statement["Action"]]
    assert actions
    assert not [action for action in actions if "*" in action or "Policy" in action or "Acl" in action]


def test_vllm_server_has_its_names_and_every_engine_argument() -> None:
    service = RAW_SERVICES["vllm-server"]
    assert service["networks"]["default"]["aliases"] == ["vllm"]
    assert {f"VLLM_{name.upper()}" for name in VllmSettings.model_fields} <= set(service["environment"])
    assert "./ops/deploy/vllm_server.sh:/vllm_server.sh:ro" in service["volumes"]
    assert RAW_SERVICES["text"]["environment"]["VLLM_SERVER_URL"] == "${VLLM_SERVER_URL:-http://vllm-server:8000/v1}"


def test_every_engine_argument_reaches_vllm_server(tmp_path: Path) -> None:
    values = {name: "true" if "bool" in str(field.annotation) else "7" for name, field in VllmSettings.model_fields.items()}
    environment = {f"VLLM_{name.upper()}": value for name, value in values.items()}
    arguments = run_vllm_server(tmp_path, **environment, VLLM_EXTRA_ARGUMENTS="--seed 7  --api-server-count=2")
    for name, value in values.items():
        flag = f"--{name.replace('_', '-')}"
        assert (flag if value == "true" else f"{flag}=7") in arguments
    assert arguments[-3:] == ["--seed", "7", "--api-server-count=2"]
    with pytest.raises(subprocess.CalledProcessError):
        run_vllm_server(tmp_path, VLLM_ENFORCE_EAGER="perhaps")


def test_operator_knows_model_servers_that_doctor_asks() -> None:
    """The names that it reads, from the fields of the settings."""
    names = {name for setting in all_settings() if setting.settings_class in MODEL_SERVER_FIELDS for name in setting.names}
    fields = {name for name in names if name.rpartition("_")[2] in {"ENGINE", "URL", "MODEL", "KEY", "NAME"}} - {"AIP_STORAGE_URI"}
    assert len(fields) > 15
    assert fields <= set(SERVICES["operator"]["environment"])


def test_chat_page_has_port_of_its_own_and_override_runs_text_without_server() -> None:
    assert SERVICES["gateway"]["ports"] == ["127.0.0.1:8080:8080", "127.0.0.1:7860:8080"]
    override = yaml.safe_load((ROOT / "ops/deploy/embedded-text.yml").read_text())["services"]
    assert override["text"]["environment"]["VLLM_SERVER_URL"] == "", "an empty value is no server"
    assert override["text"]["build"] == SERVICES["image"]["build"]


def test_every_variable_is_documented_with_its_default_and_no_secret_is_in_the_file() -> None:
    documented = {variable.name: variable.default for variable in COMPOSE_VARIABLES}
    settings = {setting.name for setting in all_settings()}
    for name, operator, default in VARIABLE.findall(TEXT):
        if name in documented:
            assert documented[name] == (None if operator == "?" else default), name
        else:
            assert name in settings, f"{name} is in docker-compose.yml and not in docs/configuration.md"
        assert operator == "?" or not re.search(r"PASSWORD|KEY|TOKEN|SECRET", name) or default == "", name
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
    dockerfiles = [ROOT / "Dockerfile", *(ROOT / "ops/images").glob("*.Dockerfile")]
    assert len(dockerfiles) >= 4
    for path in dockerfiles:
        text = path.read_text()
        assert re.findall(r"^FROM python:\d+\.\d+\.\d+-slim-\w+", text, re.MULTILINE), path
        assert "\nUSER 10001\n" in text
        assert "\nHEALTHCHECK" in text
        assert text.count("FROM ") == 2, "the build stage is not in the image"
