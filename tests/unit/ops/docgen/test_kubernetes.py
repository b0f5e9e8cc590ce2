"""The manifests are valid, every actor has its own, and a pod has enough time to finish its deliveries."""

from collections.abc import Iterator
from typing import Any

import kubernetes_validate
import pytest
import yaml

from actors.engines.settings import ImageSettings
from ops.docgen.generate import ROOT
from ops.docgen.process_settings import settings_of_process
from ops.docgen.settings_catalog import all_settings
from ops.registry import MODULES, NEEDS_MODELS, PROCESS_GROUPS, expand_groups, processes_of, queue_of, steps_of

VERSION = "1.30"
PROCESSES = processes_of(list(MODULES))
CUSTOM_API_VERSIONS = {"keda.sh/v1alpha1", "rabbitmq.com/v1beta1"}


def manifests() -> Iterator[dict[str, Any]]:
    for path in sorted((ROOT / "ops/deploy").glob("*.yaml")):
        yield from yaml.safe_load_all(path.read_text())


ALL = list(manifests())
DEPLOYMENTS = {manifest["metadata"]["name"]: manifest["spec"] for manifest in ALL if manifest["kind"] == "Deployment"}
PLAIN = [manifest for manifest in ALL if manifest["apiVersion"] not in CUSTOM_API_VERSIONS]


@pytest.mark.parametrize("manifest", PLAIN, ids=lambda manifest: f"{manifest['kind']}-{manifest['metadata']['name']}")
def test_manifests_match_kubernetes_schema(manifest: dict[str, Any]) -> None:
    assert kubernetes_validate.validate(manifest, VERSION, strict=True), "the version of the schema that it satisfies"


def test_invalid_manifest_is_rejected() -> None:
    valid = next(manifest for manifest in ALL if manifest["kind"] == "Deployment")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(valid | {"spec": valid["spec"] | {"replica": 2}}, VERSION, strict=True)


def test_every_actor_is_deployed_with_sufficient_grace_period() -> None:
    containers = {name: spec["template"]["spec"]["containers"][0] for name, spec in DEPLOYMENTS.items()}
    served = [container["args"][-1] for name, container in containers.items() if name != "gateway"]
    assert sorted(served) == sorted(PROCESSES)
    assert sorted(expand_groups(served)) == sorted(MODULES)
    for process in (process for process in PROCESSES if not NEEDS_MODELS.isdisjoint(steps_of(process))):
        pod = DEPLOYMENTS[process.replace("_", "-")]["template"]["spec"]
        assert pod["terminationGracePeriodSeconds"] > ImageSettings().order_seconds
        assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_actors_scale_on_queue_length_over_http_api() -> None:
    scaled = [manifest["spec"] for manifest in ALL if manifest["kind"] == "ScaledObject"]
    assert {spec["scaleTargetRef"]["name"] for spec in scaled} <= set(DEPLOYMENTS)
    assert len(scaled) > 5
    for spec in scaled:
        for trigger in spec["triggers"]:
            assert (trigger["type"], trigger["metadata"]["protocol"], trigger["metadata"]["mode"]) == ("rabbitmq", "http", "QueueLength")
        assert spec["minReplicaCount"] <= spec["maxReplicaCount"]
        assert "replicas" not in DEPLOYMENTS[spec["scaleTargetRef"]["name"]], "KEDA alone sets the replicas"


def test_group_scales_on_the_queues_of_all_its_steps() -> None:
    (spec,) = [manifest["spec"] for manifest in ALL if manifest["kind"] == "ScaledObject" and manifest["metadata"]["name"] == "vision"]
    queues = {trigger["metadata"]["queueName"] for trigger in spec["triggers"]}
    assert queues == {queue_of(step) for step in PROCESS_GROUPS["vision"]}


def test_every_scalable_deployment_has_disruption_budget() -> None:
    budgets = {manifest["metadata"]["name"] for manifest in ALL if manifest["kind"] == "PodDisruptionBudget"}
    assert budgets == set(DEPLOYMENTS) - {"job-variants"}


def containers() -> Iterator[tuple[str, dict[str, Any]]]:
    for manifest in ALL:
        if manifest["kind"] in {"Deployment", "Job"}:
            for container in manifest["spec"]["template"]["spec"]["containers"]:
                yield manifest["metadata"]["name"], container


def secret_keys(container: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """The Secret and its key of each variable that has one."""
    references = {entry["name"]: entry["valueFrom"]["secretKeyRef"] for entry in container["env"] if "valueFrom" in entry}
    return {name: (reference["name"], reference["key"]) for name, reference in references.items()}


def test_pods_get_single_secrets_by_reference() -> None:
    """No pod gets a whole Secret, and none has a secret in its manifest."""
    secret = {setting.name for setting in all_settings() if setting.unit == "secret"}
    found = dict(containers())
    assert len(found) == len(PROCESSES) + 2
    for name, container in found.items():
        assert [source for source in container.get("envFrom", []) if "secretRef" in source] == [], name
        assert [entry["name"] for entry in container["env"] if entry["name"] in secret and "value" in entry] == [], name


def test_pods_use_broker_user_of_their_role_and_secrets_of_their_process() -> None:
    found = {name: secret_keys(container) for name, container in containers()}
    assert found["gateway"]["AMQP_URL"] == ("atelier-gateway", "AMQP_URL")
    assert found["prepare"]["AMQP_URL"][0] == "rabbitmq-default-user"
    assert {found[process.replace("_", "-")]["AMQP_URL"] for process in PROCESSES} == {("atelier-actor", "AMQP_URL")}
    assert "DATABASE_URL" not in found["gateway"]
    for process in PROCESSES:
        read = {setting.name for setting in settings_of_process(process)} | {"HF_TOKEN"}
        assert set(found[process.replace("_", "-")]) <= read
    assert {name for name, keys in found.items() if "WEBHOOK_SECRET" in keys} == {"webhook", "image-generation"}
    assert {name for name, keys in found.items() if {"atelier-broker"} & {secret for secret, _ in keys.values()}} == {"prepare"}
