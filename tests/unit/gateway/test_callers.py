"""The caller of a request, and the tenants that it may act for."""

from functools import partial

import pytest
from fastapi import Request

from gateway.callers import caller_of, require_operator, resolve_tenant, set_caller, tenant_of
from gateway.problems import HttpProblem


def request_of(name: str | None, *, operator: bool = False) -> Request:
    scope = {"type": "http"}
    set_caller(scope, name, operator)
    return Request(scope)


@pytest.mark.parametrize(("name", "operator", "tenant"), [("shop", False, "shop"), ("watch", True, None), (None, True, None)])
def test_caller_has_its_tenant_and_operator_has_none(name: str | None, operator: bool, tenant: str | None) -> None:
    request = request_of(name, operator=operator)
    assert (caller_of(request), tenant_of(request)) == (name, tenant)


@pytest.mark.parametrize(
    ("name", "operator", "requested", "resolved"),
    [
        ("shop", False, None, "shop"),
        ("shop", False, "shop", "shop"),
        ("watch", True, None, None),
        ("watch", True, "shop", "shop"),
        (None, True, "shop", "shop"),
    ],
)
def test_tenant_is_callers_own_or_operators_requested_one(
    name: str | None, operator: bool, requested: str | None, resolved: str | None
) -> None:
    assert resolve_tenant(request_of(name, operator=operator), requested) == resolved


@pytest.mark.parametrize("requested", ["office", ""])
def test_other_tenant_is_forbidden(requested: str) -> None:
    with pytest.raises(HttpProblem) as raised:
        resolve_tenant(request_of("shop"), requested)
    assert (raised.value.status, raised.value.title) == (403, "tenant-foreign")


def test_tenant_without_operator_rights_is_forbidden() -> None:
    require_operator(request_of("watch", operator=True))
    with pytest.raises(HttpProblem) as raised:
        require_operator(request_of("shop"))
    assert (raised.value.status, raised.value.title) == (403, "operators-only")


def test_anonymous_caller_is_no_operator() -> None:
    """Without a name and without an operator's rights nothing of any tenant may be seen."""
    request = request_of(None)
    for check in (tenant_of, require_operator, partial(resolve_tenant, tenant=None), partial(resolve_tenant, tenant="shop")):
        with pytest.raises(HttpProblem) as raised:
            check(request)
        assert (raised.value.status, raised.value.title) == (401, "key-needed")
