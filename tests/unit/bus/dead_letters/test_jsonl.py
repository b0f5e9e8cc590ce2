"""Export and import of dead letters as JSON lines. No database."""

import base64
import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest

from bus.dead_letters.jsonl import ExportedDeadLetter, _import_arguments, _parse_line
from bus.dead_letters.repository import SQL
from bus.errors import PermanentError

LETTER: dict[str, Any] = {
    "id": "l-1",
    "dead_queue": "atelier.dead.image",
    "target": "atelier.image",
    "step": "image",
    "message_id": "m-1",
    "sent_as": "m-1",
    "job_id": "j-1",
    "group_id": "g-1",
    "code": "lora-missing",
    "message": "no such file",
    "attempts": 1,
    "headers": {},
    "body": base64.b64encode(b"\x00\xff").decode(),
    "state": "unresolved",
    "failures": 1,
    "replays": 0,
    "first_failed_at": "2026-01-01T00:00:00Z",
    "last_failed_at": "2026-01-01T00:05:00Z",
}


def test_order_of_fields_is_that_of_the_query() -> None:
    """The arguments of `import` are positional; `size` is computed from the body."""
    columns = re.findall(r"\w+", SQL["import"].split("dead_letters (")[1].split(")")[0])
    assert [column for column in columns if column != "size"] == [name for name in ExportedDeadLetter.model_fields if name != "history"]


def test_line_is_converted_to_arguments() -> None:
    letter = _parse_line(json.dumps(LETTER | {"history": [{"kind": "failed"}]}), 1)
    arguments = dict(zip(ExportedDeadLetter.model_fields, _import_arguments(letter), strict=True))
    assert (arguments["id"], arguments["body"], arguments["history"]) == ("l-1", b"\x00\xff", [{"kind": "failed"}])
    assert arguments["last_failed_at"] == datetime(2026, 1, 1, 0, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("{", "line 7: the line: Invalid JSON"),
        ("{}", "line 7: id: Field required"),
        (json.dumps(LETTER | {"state": "lost"}), "line 7: state: Input should be"),
        (json.dumps(LETTER | {"body": "no base64!"}), "line 7: body: "),
    ],
)
def test_invalid_line_is_rejected_with_its_number(line: str, cause: str) -> None:
    with pytest.raises(PermanentError, match=cause) as error:
        _parse_line(line, 7)
    assert error.value.code == "import-unreadable"
