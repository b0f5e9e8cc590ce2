"""Who calls, and whose jobs that key may see. Without keys (on this machine alone) everybody sees everything."""

from typing import Any

from fastapi import Request
from starlette.types import Scope

from gateway.problems import HttpProblem


def set_caller(scope: Scope, name: str | None, operator: bool) -> None:
    """Note who calls, where the routes find it."""
    state: dict[str, Any] = scope.setdefault("state", {})
    state["caller"], state["tenant"] = name, None if operator else name


def caller_of(request: Request) -> str | None:
    """The key's name; None where no keys are needed."""
    name: str | None = request.scope["state"]["caller"]
    return name


def tenant_of(request: Request) -> str | None:
    """The one tenant whose jobs the caller may see; None for an operator, who sees all."""
    tenant: str | None = request.scope["state"]["tenant"]
    return tenant


def resolve_tenant(request: Request, tenant: str | None) -> str | None:
    """The tenant to act for: the one named, when the caller may name it. Raises Refused(403)."""
    bound = tenant_of(request)
    if bound is None or tenant in (None, bound):
        return bound or tenant
    raise HttpProblem(403, "tenant-foreign", f"This key belongs to the tenant {bound!r}; it cannot speak for another.")


def require_operator(request: Request) -> None:
    """Raises Refused(403) for a key that is bound to a tenant."""
    if bound := tenant_of(request):
        raise HttpProblem(403, "operators-only", f"The key {bound!r} is a tenant's. GATEWAY_OPERATORS names the keys that may do this.")
