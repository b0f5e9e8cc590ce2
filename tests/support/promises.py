"""The promises of the five systems, read from the conformance tests, and the tables that docs/migration.md shows of them.

A test says with `@pytest.mark.promise(section, text)` which promise of its system's document it holds. With `differs="…"` it holds what
this product does instead, and why. A promise that cannot be tried on a machine without a GPU or an account is a skipped test; its reason is
in the table. `python -m tests.support.promises` writes the tables.
"""

import importlib
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


def read_promises(modules: str) -> list[Promise]:
    """The promises of modules in the order of their functions. Raises ValueError for a promise that two tests hold in the same words."""
    promises = [promise for module in modules.split() for function in functions_of(module) for promise in promises_of(function)]
    texts = [(promise.section, promise.text) for promise in promises]
    if repeated := {f"{section}: {text}" for section, text in texts if texts.count((section, text)) > 1}:
        raise ValueError(f"{modules} holds a promise twice: {sorted(repeated)}")
    return promises


def functions_of(module: str) -> list[Any]:
    functions = [value for value in vars(importlib.import_module(module)).values() if callable(value) and hasattr(value, "pytestmark")]
    return sorted(functions, key=line_number)


def line_number(function: Any) -> int:
    return int(function.__code__.co_firstlineno)


def promises_of(function: Any) -> Iterator[Promise]:
    skips = [mark.kwargs["reason"] for mark in function.pytestmark if mark.name == "skip"]
    conditional = [mark.name for mark in function.pytestmark if mark.name == "gpu"]
    for mark in reversed([mark for mark in function.pytestmark if mark.name == "promise"]):
        section, text = mark.args
        if skips:
            state = f"not tried: {skips[0]}"
        elif differs := mark.kwargs.get("differs"):
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
    PAGE.write_text(with_tables(PAGE.read_text()))
