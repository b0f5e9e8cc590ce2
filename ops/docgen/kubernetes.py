"""`ops/deploy/actors.yaml`: for each actor a Deployment, a KEDA ScaledObject on the length of its queue and a PodDisruptionBudget.

KEDA asks RabbitMQ's HTTP API, where a queue's length counts what is unacked too: a pod at work is never scaled away for want of messages.
"""

from typing import Any

import yaml

from actors.engines.settings import ImageSettings
from contracts import broker_names
from ops.docgen.asyncapi.document import NoAliasDumper
from ops.registry import MODULES, NEEDS_MODELS

FILE_HEADER = "# Written by `make documents` (ops/docgen/kubernetes.py): a new step is in it by itself. base.yaml has the rest.\n"
HEALTH_PORT = 9464
SPARE_SECONDS = 30
CPU_GRACE_SECONDS = 45
MAX_REPLICAS = {True: 8, False: 10}
"""Replicas, of actors with a model and of the others."""
SINGLE_REPLICA_STEPS = frozenset({"job_variants"})
"""Listens to the database; more than one would only see the same twice."""
UNSCALED_STEPS = SINGLE_REPLICA_STEPS | {"ledger", "dead-letters", "variants"}


def actors_manifest() -> str:
    made = [manifest for step in MODULES for manifest in step_manifests(step)]
    return FILE_HEADER + yaml.dump_all(made, Dumper=NoAliasDumper, sort_keys=False, width=120)


def step_manifests(step: str) -> list[dict[str, Any]]:
    made = [deployment(step)]
    made += [scaled_object(step)] if step not in UNSCALED_STEPS else []
    return [*made, disruption_budget(step)] if step not in SINGLE_REPLICA_STEPS else made


def resource_name(step: str) -> str:
    return step.replace("_", "-")


def metadata(step: str) -> dict[str, Any]:
    return {"name": resource_name(step), "namespace": "atelier", "labels": labels(step)}


def labels(step: str) -> dict[str, str]:
    return {"app.kubernetes.io/name": "atelier", "app.kubernetes.io/component": resource_name(step)}


def grace_seconds(step: str) -> int:
    """Seconds: longer than the longest order, so that a pod that leaves ends what it has in hand."""
    longest = ImageSettings.model_fields["order_seconds"].default
    return int(longest) + SPARE_SECONDS if step in NEEDS_MODELS else CPU_GRACE_SECONDS


def deployment(step: str) -> dict[str, Any]:
    strategy = (
        {"type": "Recreate"}
        if step in SINGLE_REPLICA_STEPS
        else {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    )
    spec = {
        "selector": {"matchLabels": labels(step)},
        "strategy": strategy,
        "template": {"metadata": {"labels": labels(step), "annotations": scrape_annotations()}, "spec": pod_spec(step)},
    }
    fixed = {"replicas": 1 if step in SINGLE_REPLICA_STEPS else 2} if step in UNSCALED_STEPS else {}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata(step), "spec": fixed | spec}


def scrape_annotations() -> dict[str, str]:
    return {"prometheus.io/scrape": "true", "prometheus.io/port": str(HEALTH_PORT), "prometheus.io/path": "/metrics"}


def pod_spec(step: str) -> dict[str, Any]:
    models = step in NEEDS_MODELS
    volumes: list[dict[str, Any]] = [{"name": "tmp", "emptyDir": {}}]
    volumes += [{"name": "models", "persistentVolumeClaim": {"claimName": "models"}}] if models else []
    return {
        "terminationGracePeriodSeconds": grace_seconds(step),
        "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "fsGroup": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container(step, models)],
        "volumes": volumes,
    }


def container(step: str, models: bool) -> dict[str, Any]:
    mounts = [{"name": "tmp", "mountPath": "/tmp"}, *([{"name": "models", "mountPath": "/models"}] if models else [])]  # noqa: S108
    own = [
        {"name": "GRACE_SECONDS", "value": str(grace_seconds(step) - SPARE_SECONDS // 2)},
        {"name": "HEALTH_PORT", "value": str(HEALTH_PORT)},
    ]
    return {
        "name": "actor",
        "image": "atelier-gpu:0.1.0" if models else "atelier:0.1.0",
        "args": ["run", step],
        "envFrom": [{"configMapRef": {"name": "atelier"}}, {"secretRef": {"name": "atelier"}}],
        "env": own,
        "ports": [{"name": "health", "containerPort": HEALTH_PORT}],
        "startupProbe": probe("startup", 10) | {"failureThreshold": 180 if models else 30},
        "livenessProbe": probe("live", 10) | {"timeoutSeconds": 5},
        "readinessProbe": probe("ready", 10) | {"timeoutSeconds": 5},
        "resources": resources(models),
        "securityContext": {"readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": mounts,
    }


def probe(path: str, seconds: int) -> dict[str, Any]:
    return {"httpGet": {"path": f"/health/{path}", "port": "health"}, "periodSeconds": seconds}


def resources(models: bool) -> dict[str, Any]:
    if models:
        return {"requests": {"cpu": "2", "memory": "8Gi"}, "limits": {"memory": "16Gi", "nvidia.com/gpu": "1"}}
    return {"requests": {"cpu": "250m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}}


def scaled_object(step: str) -> dict[str, Any]:
    """`value`: messages a replica, see docs/scaling.md. A pod with a model leaves slowly: it took long to load."""
    models = step in NEEDS_MODELS
    queue = broker_names.IMAGE_GENERATION_QUEUE if step == "image_generation" else broker_names.work_queue(step)
    facts = {"protocol": "http", "mode": "QueueLength", "value": "10" if models else "50", "queueName": queue, "vhostName": "/"}
    spec = {
        "scaleTargetRef": {"name": resource_name(step)},
        "minReplicaCount": 1,
        "maxReplicaCount": MAX_REPLICAS[models],
        "pollingInterval": 15,
        "cooldownPeriod": 600 if models else 120,
        "triggers": [{"type": "rabbitmq", "metadata": facts, "authenticationRef": {"name": "rabbitmq-http"}}],
    }
    return {"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "metadata": metadata(step), "spec": spec}


def disruption_budget(step: str) -> dict[str, Any]:
    spec = {"maxUnavailable": 1, "selector": {"matchLabels": labels(step)}}
    return {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": metadata(step), "spec": spec}
