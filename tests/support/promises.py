"""The promises of the five systems, read from the conformance tests, and the tables that docs/migration.md shows of them.

A test says with `@pytest.mark.promise(section, text)` which promise of its system's document it holds. With `differs="…"` it holds what
this product does instead, and why. A promise that cannot be tried without a GPU or an account is listed by `not_tried`, and its reason is
in the table. `python -m tests.support.promises` writes the tables.
"""

import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/migration.md"
SYSTEMS = {
    "stylelicense": "tests.conformance.test_stylelicense",
    "skin-consult": "tests.conformance.test_skin_consult",
    "ad-validation": "tests.conformance.test_ad_validation_model tests.conformance.test_ad_validation",
    "cloudllm": "tests.conformance.test_cloudllm",
    "vllm-compose": "tests.conformance.test_vllm_compose",
}
"""Name of the table in the page, and the modules of its tests, separated by blanks."""


@dataclass(frozen=True)
class Promise:
    """One promise of a document: its section, what it says in our words, and how the product answers it."""

    section: str
    text: str
    state: str


@dataclass(frozen=True)
class NotTried:
    """Promises, each a section and a text, that no test of ours holds. `line`: of the module that lists them."""

    reason: str
    promises: tuple[tuple[str, str], ...]
    line: int


def not_tried(reason: str, *promises: tuple[str, str]) -> NotTried:
    return NotTried(reason, promises, sys._getframe(1).f_lineno)


def read_promises(modules: str) -> list[Promise]:
    """The promises of modules in the order of their functions. Raises ValueError for a promise that two tests hold in the same words."""
    promises = [promise for module in modules.split() for function in functions_of(module) for promise in promises_of(function)]
    texts = [(promise.section, promise.text) for promise in promises]
    if repeated := {f"{section}: {text}" for section, text in texts if texts.count((section, text)) > 1}:
        raise ValueError(f"{modules} holds a promise twice: {sorted(repeated)}")
    return promises


def functions_of(module: str) -> list[Any]:
    """The tests with promises, and what is not tried, in their order."""
    values = vars(importlib.import_module(module)).values()
    return sorted((value for value in values if isinstance(value, NotTried) or hasattr(value, "pytestmark")), key=line_number)


def line_number(function: Any) -> int:
    return function.line if isinstance(function, NotTried) else int(function.__code__.co_firstlineno)


def promises_of(function: Any) -> Iterator[Promise]:
    if isinstance(function, NotTried):
        yield from (Promise(section, text, f"not tried: {function.reason}") for section, text in function.promises)
        return
    conditional = [mark.name for mark in function.pytestmark if mark.name == "gpu"]
    for mark in reversed([mark for mark in function.pytestmark if mark.name == "promise"]):
        section, text = mark.args
        if differs := mark.kwargs.get("differs"):
            state = f"differs: {differs}"
        else:
            state = "holds, tried where there is a GPU" if conditional else "holds"
        yield Promise(section, text, state)


def table(promises: list[Promise]) -> str:
    rows = "".join(f"| {promise.section} | {promise.text} | {promise.state} |\n" for promise in promises)
    return f"| section | promise | here |\n|---|---|---|\n{rows}"


def with_tables(page: str) -> str:
    """The page with its tables written anew, between `<!-- promises: name -->` and `<!-- end -->`."""
    for name, module in SYSTEMS.items():
        start = f"<!-- promises: {name} -->\n"
        if start in page:
            before, rest = page.split(start)
            page = f"{before}{start}\n{table(read_promises(module))}\n<!-- end -->{rest.split('<!-- end -->', 1)[1]}"
    return page


if __name__ == "__main__":
    promises = importlib.import_module("tests.support.promises")  # the module whose class the conformance tests use
    PAGE.write_text(promises.with_tables(PAGE.read_text()))
