"""The table of docs/http.md: which calls of OpenAI's clients run unchanged.

`tests/integration/test_client_matrix.py` makes the results; `python -m tests.support.client_matrix` then writes the table of them.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/http.md"
BEGIN, END = "<!-- clients -->\n", "<!-- /clients -->"
RESULTS = ROOT / ".local/client-calls.jsonl"
FOLDER = ROOT / "tests/clients"
PYTHON = ROOT / ".venv-clients/bin/python"
NODE_PACKAGE = FOLDER / "node_modules/openai"
NODE_CLIENT = "openai (Node)"
CLIENTS = ("openai (Python)", NODE_CLIENT, "litellm", "langchain-openai")
MISSING = "–"
"""The client has no such call, or it is not tried."""


@dataclass(frozen=True)
class Call:
    """The result of one call of one client. `detail`: the error, empty when it ran."""

    client: str
    call: str
    ok: bool
    detail: str


def parse_calls(output: str) -> list[Call]:
    """The lines of JSON among the output of a client, which may print other lines."""
    return [Call(**json.loads(line)) for line in output.splitlines() if line.startswith('{"client"')]


def store_calls(calls: list[Call]) -> None:
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("".join(f"{json.dumps(asdict(call))}\n" for call in calls))


def format_table(calls: list[Call]) -> str:
    """One row for each kind of call, one column for each client."""
    results = {(call.call, call.client): "yes" if call.ok else f"no: {call.detail}" for call in calls}
    names = dict.fromkeys(call.call for call in calls)
    rows = [f"| {name} | {' | '.join(results.get((name, client), MISSING) for client in CLIENTS)} |" for name in names]
    return "\n".join([f"| call | {' | '.join(CLIENTS)} |", f"|---|{'---|' * len(CLIENTS)}", *rows, ""])


def parse_table(table: str) -> dict[tuple[str, str], str]:
    """Result by call and client, of those that the client has."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    cells = {(name, client): result for name, *results in rows for client, result in zip(CLIENTS, results, strict=True)}
    return {key: result for key, result in cells.items() if result != MISSING}


def page_table() -> str:
    """The table that the page has. Raises ValueError for a page without its two marks."""
    _, _, rest = PAGE.read_text().partition(BEGIN)
    table, mark, _ = rest.partition(END)
    if not mark:
        raise ValueError(f"{PAGE.name} has no place for the table of clients")
    return table


def write_page(table: str) -> None:
    before, mark, rest = PAGE.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    PAGE.write_text("".join([before, mark, table, end, after]))


if __name__ == "__main__":
    write_page(format_table(parse_calls(RESULTS.read_text())))
