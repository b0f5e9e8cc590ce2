"""The statements that list and group dead letters, built from the filters that are set, so that the planner knows them.

The counts by the hour (`counts.sql`) answer what they hold: totals, groups, and in which hours and groups the letters of a page are. With
any other filter the letters that match are read, by an index.
"""

from typing import Any

from bus.sql import load_queries
from contracts.dead_letter import Selection

SQL = load_queries(__file__, "counts.sql")
SCHEMA = SQL["schema"]
COLUMNS = """id, state, step, dead_queue, target, message_id, sent_as, job_id, tenant, type, group_id, code, message, exception_type,
attempts, failures, replays, size, first_failed_at, last_failed_at, changed_at, forwarded_at, edited_from"""
"""Those of a list: without body, headers and stack."""
COUNTED_CONDITIONS = {
    "group": "group_id = {}",
    "step": "step = {}",
    "code": "code = {}",
    "exception_type": "exception_type = {}",
    "state": "state = {}",
}
"""Field of a selection to the condition on a letter, or on a row of the counts."""
CONDITIONS = COUNTED_CONDITIONS | {
    "ids": "id = any({}::text[])",
    "tenant": "tenant = {}",
    "job_id": "job_id = {}",
    "message_id": "(sent_as = {0} or (message_id = {0} and sent_as <> message_id))",
    "since": "last_failed_at >= {}::text::timestamptz",
    "before": "last_failed_at < {}::text::timestamptz",
}
HOURLY_CONDITIONS = COUNTED_CONDITIONS | {"since": "hour >= {}::text::timestamptz"}
PART_OF_HOUR = {"since": "last_failed_at < date_trunc('hour', {}::text::timestamptz + interval '3599.999999 s', 'UTC')"}
"""Of the letters since a time: those of the hour in which it lies, which the counts do not divide."""
MAX_GROUPS = 2000
"""With a period those of the newest hours or days, else the largest. Callers cause the groups: their number would have no bound."""
Statement = tuple[str, list[Any]]


def list_statement(selection: Selection, limit: int, offset: int) -> Statement:
    """One page, the latest failure first; each row has the number of all matches as `total`."""
    fields = set_fields(selection)
    conditions, values = conditions_on(fields, CONDITIONS, first=3)
    by_counts = fields.keys() <= COUNTED_CONDITIONS.keys()
    template = SQL["list_by_counts" if fields and by_counts else "list"]
    total = SQL["total" if by_counts else "count"].format(conditions=conditions)
    return template.format(columns=COLUMNS, conditions=conditions, total=total), [limit, offset, *values]


def count_statement(selection: Selection) -> Statement:
    """The number of matches."""
    fields = set_fields(selection)
    conditions, values = conditions_on(fields, CONDITIONS, first=1)
    return SQL["total" if fields.keys() <= COUNTED_CONDITIONS.keys() else "count"].format(conditions=conditions), values


def groups_statement(selection: Selection, *, by_tenant: bool, per: str | None) -> Statement:
    """The matches by cause, the largest group first, at most MAX_GROUPS."""
    fields = set_fields(selection)
    conditions, values = conditions_on(fields, CONDITIONS, first=4)
    counted, cells = "false", SQL["cells_of_letters"].format(conditions=conditions)
    if fields.keys() <= HOURLY_CONDITIONS.keys() and not by_tenant:
        counted, _ = conditions_on(fields, HOURLY_CONDITIONS, first=4)
        part_of_hour, _ = conditions_on(fields, CONDITIONS | PART_OF_HOUR, first=4)
        rest = f" union all {cells} and {part_of_hour}" if "since" in fields else ""
        cells = SQL["cells_of_counts"].format(conditions=counted) + rest
    return SQL["groups"].format(counted=counted, cells=cells, conditions=conditions), [by_tenant, per, MAX_GROUPS, *values]


def set_fields(selection: Selection) -> dict[str, Any]:
    """The filters that are set, with their values in JSON."""
    return {name: value for name, value in selection.model_dump(mode="json", exclude_none=True).items() if name in CONDITIONS}


def conditions_on(fields: dict[str, Any], templates: dict[str, str], *, first: int) -> tuple[str, list[Any]]:
    """The conditions, with parameters from number `first` on, and their values."""
    conditions = [templates[name].format(f"${number}") for number, name in enumerate(fields, first)]
    return " and ".join(conditions) or "true", list(fields.values())
