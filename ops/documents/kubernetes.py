"""`ops/deploy/actors.yaml`: for each actor a Deployment, a KEDA ScaledObject on the length of its queue and a PodDisruptionBudget.

KEDA asks RabbitMQ's HTTP API, where a queue's length counts what is unacked too: a pod at work is never scaled away for want of messages.
"""

from typing import Any

import yaml

from actors.engines.settings import ImageSettings
from contracts import channels
from ops.asyncapi.document import Writer
from ops.workshop import MODULES, NEEDS_MODELS

HEAD = "# Written by `make documents` (ops/documents/kubernetes.py): a new step is in it by itself. base.yaml has the rest.\n"
HEALTH = 9464
SPARE_SECONDS = 30
CPU_GRACE = 45
MOST = {True: 8, False: 10}
"""Replicas, of actors with a model and of the others."""
SINGLE = frozenset({"job_variants"})
"""Listens to the database; more than one would only see the same twice."""
UNSCALED = SINGLE | {"ledger", "dead-letters", "variants"}


def actors() -> str:
    made = [manifest for step in MODULES for manifest in of(step)]
    return HEAD + yaml.dump_all(made, Dumper=Writer, sort_keys=False, width=120)


def of(step: str) -> list[dict[str, Any]]:
    made = [deployment(step)]
    made += [scaled(step)] if step not in UNSCALED else []
    return [*made, budget(step)] if step not in SINGLE else made


def name(step: str) -> str:
    return step.replace("_", "-")


def meta(step: str) -> dict[str, Any]:
    return {"name": name(step), "namespace": "atelier", "labels": labels(step)}


def labels(step: str) -> dict[str, str]:
    return {"app.kubernetes.io/name": "atelier", "app.kubernetes.io/component": name(step)}


def grace(step: str) -> int:
    """Seconds: longer than the longest order, so that a pod that leaves ends what it has in hand."""
    longest = ImageSettings.model_fields["order_seconds"].default
    return int(longest) + SPARE_SECONDS if step in NEEDS_MODELS else CPU_GRACE


def deployment(step: str) -> dict[str, Any]:
    strategy = {"type": "Recreate"} if step in SINGLE else {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    spec = {
        "selector": {"matchLabels": labels(step)},
        "strategy": strategy,
        "template": {"metadata": {"labels": labels(step), "annotations": scraped()}, "spec": pod(step)},
    }
    fixed = {"replicas": 1 if step in SINGLE else 2} if step in UNSCALED else {}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta(step), "spec": fixed | spec}


def scraped() -> dict[str, str]:
    return {"prometheus.io/scrape": "true", "prometheus.io/port": str(HEALTH), "prometheus.io/path": "/metrics"}


def pod(step: str) -> dict[str, Any]:
    models = step in NEEDS_MODELS
    volumes: list[dict[str, Any]] = [{"name": "tmp", "emptyDir": {}}]
    volumes += [{"name": "models", "persistentVolumeClaim": {"claimName": "models"}}] if models else []
    return {
        "terminationGracePeriodSeconds": grace(step),
        "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "fsGroup": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container(step, models)],
        "volumes": volumes,
    }


def container(step: str, models: bool) -> dict[str, Any]:
    mounts = [{"name": "tmp", "mountPath": "/tmp"}, *([{"name": "models", "mountPath": "/models"}] if models else [])]  # noqa: S108
    own = [{"name": "GRACE_SECONDS", "value": str(grace(step) - SPARE_SECONDS // 2)}, {"name": "HEALTH_PORT", "value": str(HEALTH)}]
    return {
        "name": "actor",
        "image": "atelier-gpu:0.1.0" if models else "atelier:0.1.0",
        "args": ["run", step],
        "envFrom": [{"configMapRef": {"name": "atelier"}}, {"secretRef": {"name": "atelier"}}],
        "env": own,
        "ports": [{"name": "health", "containerPort": HEALTH}],
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


def scaled(step: str) -> dict[str, Any]:
    """`value`: messages a replica, see docs/scaling.md. A pod with a model leaves slowly: it took long to load."""
    models = step in NEEDS_MODELS
    queue = channels.IMAGE_GENERATION if step == "image_generation" else channels.work_queue(step)
    facts = {"protocol": "http", "mode": "QueueLength", "value": "10" if models else "50", "queueName": queue, "vhostName": "/"}
    spec = {
        "scaleTargetRef": {"name": name(step)},
        "minReplicaCount": 1,
        "maxReplicaCount": MOST[models],
        "pollingInterval": 15,
        "cooldownPeriod": 600 if models else 120,
        "triggers": [{"type": "rabbitmq", "metadata": facts, "authenticationRef": {"name": "rabbitmq-http"}}],
    }
    return {"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "metadata": meta(step), "spec": spec}


def budget(step: str) -> dict[str, Any]:
    spec = {"maxUnavailable": 1, "selector": {"matchLabels": labels(step)}}
    return {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": meta(step), "spec": spec}
