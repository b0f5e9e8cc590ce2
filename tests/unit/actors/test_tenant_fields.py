"""Which commands name a tenant in their body. The delivery's header decides; a new field needs a rule, and its name here."""

from ops.registry import MODULES, load_actors

CHECKED_BY_ACTOR = {("validate", "tenant_id"), ("judge", "tenant_id"), ("job.list", "tenant"), ("job.claim", "tenant")}
"""`Context.resolve_tenant` compares the two: tests/integration/test_foreign_variants.py and test_ledger.py."""
OF_EVENTS = {("ledger", "tenant"), ("variants", "tenant"), ("dead-letters", "tenant")}
"""An event's own tenant: tests/integration/test_ledger.py and test_foreign_variants.py."""
FOR_OPERATORS = {"dead-letter."}
"""Filters of queries that only operators may send: tests/integration/test_tenants.py."""


def test_every_tenant_field_of_a_command_has_a_rule() -> None:
    actors = load_actors(list(MODULES)).actors
    fields = {(actor.step, field) for actor in actors for field in actor.command.model_fields if "tenant" in field}
    filters = {(step, field) for step, field in fields if step.startswith(tuple(FOR_OPERATORS))}
    assert filters
    assert fields - filters == CHECKED_BY_ACTOR | OF_EVENTS
