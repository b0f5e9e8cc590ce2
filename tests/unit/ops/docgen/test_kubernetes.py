"""The manifests are valid, every actor has its own, and a pod has enough time to finish its deliveries."""

from collections.abc import Iterator
from typing import Any

import kubernetes_validate
import pytest
import yaml

from actors.engines.settings import ImageSettings
from ops.docgen.generate import ROOT
from ops.registry import MODULES, NEEDS_MODELS

VERSION = "1.30"
CUSTOM_API_VERSIONS = {"keda.sh/v1alpha1", "rabbitmq.com/v1beta1"}


def manifests() -> Iterator[dict[str, Any]]:
    for path in sorted((ROOT / "ops/deploy").glob("*.yaml")):
        yield from yaml.safe_load_all(path.read_text())


ALL = list(manifests())
DEPLOYMENTS = {manifest["metadata"]["name"]: manifest["spec"] for manifest in ALL if manifest["kind"] == "Deployment"}
PLAIN = [manifest for manifest in ALL if manifest["apiVersion"] not in CUSTOM_API_VERSIONS]


@pytest.mark.parametrize("manifest", PLAIN, ids=lambda manifest: f"{manifest['kind']}-{manifest['metadata']['name']}")
def test_manifests_match_kubernetes_schema(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, VERSION, strict=True)


def test_invalid_manifest_is_rejected() -> None:
    valid = next(manifest for manifest in ALL if manifest["kind"] == "Deployment")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(valid | {"spec": valid["spec"] | {"replica": 2}}, VERSION, strict=True)


def test_every_actor_is_deployed_with_sufficient_grace_period() -> None:
    containers = {name: spec["template"]["spec"]["containers"][0] for name, spec in DEPLOYMENTS.items()}
    assert {container["args"][-1] for name, container in containers.items() if name != "gateway"} == set(MODULES)
    for step in NEEDS_MODELS:
        pod = DEPLOYMENTS[step.replace("_", "-")]["template"]["spec"]
        assert pod["terminationGracePeriodSeconds"] > ImageSettings().order_seconds
        assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_actors_scale_on_queue_length_over_http_api() -> None:
    scaled = [manifest["spec"] for manifest in ALL if manifest["kind"] == "ScaledObject"]
    assert {spec["scaleTargetRef"]["name"] for spec in scaled} <= set(DEPLOYMENTS)
    assert len(scaled) > 5
    for spec in scaled:
        (trigger,) = spec["triggers"]
        assert (trigger["type"], trigger["metadata"]["protocol"], trigger["metadata"]["mode"]) == ("rabbitmq", "http", "QueueLength")
        assert spec["minReplicaCount"] <= spec["maxReplicaCount"]
        assert "replicas" not in DEPLOYMENTS[spec["scaleTargetRef"]["name"]], "KEDA alone sets the replicas"


def test_every_scalable_deployment_has_disruption_budget() -> None:
    budgets = {manifest["metadata"]["name"] for manifest in ALL if manifest["kind"] == "PodDisruptionBudget"}
    assert budgets == set(DEPLOYMENTS) - {"job-variants"}
