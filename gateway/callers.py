"""The caller of a request, and the tenant whose jobs it may see. Without API keys (on this machine only) every caller is an operator."""

from typing import Any

from fastapi import Request
from starlette.types import Scope

from gateway.problems import HttpProblem


def set_caller(scope: Scope, name: str | None, operator: bool) -> None:
    """Store the caller in the request's state, where the functions below read it. Without a name and not an operator: anonymous."""
    state: dict[str, Any] = scope.setdefault("state", {})
    state["caller"], state["operator"] = name, operator


def caller_of(request: Request) -> str | None:
    """The name of the API key; None where no key is needed."""
    name: str | None = request.scope["state"]["caller"]
    return name


def tenant_of(request: Request) -> str | None:
    """The only tenant whose jobs the caller may see; None for an operator, who sees all. Raises HttpProblem(401) if anonymous."""
    if request.scope["state"]["operator"]:
        return None
    caller = caller_of(request)
    if caller is None:
        raise HttpProblem(401, "key-needed", "This request needs a key.", {"WWW-Authenticate": "Bearer"})
    return caller


def resolve_tenant(request: Request, tenant: str | None) -> str | None:
    """The tenant to act for: the caller's own, or the named one for an operator. Raises HttpProblem(403) for another tenant's name."""
    own = tenant_of(request)
    if own is None or tenant in (None, own):
        return own or tenant
    raise HttpProblem(403, "tenant-foreign", f"This key belongs to the tenant {own!r}; it cannot act for another one.")


def require_operator(request: Request) -> None:
    """Raises HttpProblem(403) for a key that is bound to a tenant, HttpProblem(401) for an anonymous caller."""
    tenant = tenant_of(request)
    if tenant is not None:
        raise HttpProblem(403, "operators-only", f"The key {tenant!r} is a tenant's. GATEWAY_OPERATORS names the keys that may do this.")
