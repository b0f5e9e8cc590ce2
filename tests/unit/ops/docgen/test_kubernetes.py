"""The manifests are what Kubernetes takes, each actor has its own, and a pod is given time to end its work."""

from collections.abc import Iterator
from typing import Any

import kubernetes_validate
import pytest
import yaml

from actors.engines.settings import ImageSettings
from ops.docgen.generate import ROOT
from ops.registry import MODULES, NEEDS_MODELS

VERSION = "1.30"
CUSTOM = {"keda.sh/v1alpha1", "rabbitmq.com/v1beta1"}


def manifests() -> Iterator[dict[str, Any]]:
    for path in sorted((ROOT / "ops/deploy").glob("*.yaml")):
        yield from yaml.safe_load_all(path.read_text())


ALL = list(manifests())
DEPLOYMENTS = {one["metadata"]["name"]: one["spec"] for one in ALL if one["kind"] == "Deployment"}


PLAIN = [one for one in ALL if one["apiVersion"] not in CUSTOM]


@pytest.mark.parametrize("manifest", PLAIN, ids=lambda one: f"{one['kind']}-{one['metadata']['name']}")
def test_manifests_match_kubernetes_schema(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, VERSION, strict=True)


def test_invalid_manifest_is_rejected() -> None:
    wrong = next(one for one in ALL if one["kind"] == "Deployment")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong | {"spec": wrong["spec"] | {"replica": 2}}, VERSION, strict=True)


def test_every_actor_is_deployed_with_sufficient_grace_period() -> None:
    containers = {name: spec["template"]["spec"]["containers"][0] for name, spec in DEPLOYMENTS.items()}
    assert {container["args"][-1] for name, container in containers.items() if name != "gateway"} == set(MODULES)
    for step in NEEDS_MODELS:
        pod = DEPLOYMENTS[step.replace("_", "-")]["template"]["spec"]
        assert pod["terminationGracePeriodSeconds"] > ImageSettings().order_seconds
        assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_queues_scale_actors_over_the_http_api_so_that_unacked_work_keeps_a_pod() -> None:
    scaled = [one["spec"] for one in ALL if one["kind"] == "ScaledObject"]
    assert {one["scaleTargetRef"]["name"] for one in scaled} <= set(DEPLOYMENTS)
    for one in scaled:
        (trigger,) = one["triggers"]
        assert (trigger["type"], trigger["metadata"]["protocol"], trigger["metadata"]["mode"]) == ("rabbitmq", "http", "QueueLength")
        assert one["minReplicaCount"] <= one["maxReplicaCount"]
        assert "replicas" not in DEPLOYMENTS[one["scaleTargetRef"]["name"]], "two would count the replicas"


def test_every_deployment_that_may_have_two_pods_has_a_budget() -> None:
    budgets = {one["metadata"]["name"] for one in ALL if one["kind"] == "PodDisruptionBudget"}
    assert budgets == set(DEPLOYMENTS) - {"job-variants"}
