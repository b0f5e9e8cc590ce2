"""The tables of promises: what a conformance test is marked with is what docs/migration.md says."""

import sys
from types import ModuleType

import pytest

from tests.support import promises
from tests.support.promises import PAGE, SYSTEMS, Promise, not_tried, read_promises, table, with_tables


def test_page_shows_promises_of_every_system() -> None:
    page = PAGE.read_text()
    assert [name for name in SYSTEMS if f"<!-- promises: {name} -->" not in page] == []
    assert with_tables(page) == page, "a promise has changed: run `make documents` and commit the result"


def test_every_system_has_its_promises() -> None:
    """Two hundred and more were counted in the five documents."""
    counts = {name: len(read_promises(module)) for name, module in SYSTEMS.items()}
    assert min(counts.values()) >= 20
    assert sum(counts.values()) >= 200


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    @pytest.mark.promise("Order", "the first")
    @pytest.mark.promise("Order", "the second")
    def test_two() -> None: ...

    middle = not_tried("needs a GPU", ("Speed", "an image in two seconds"))

    @pytest.mark.promise("Retries", "three in the process", differs="over the broker")
    def test_other() -> None: ...

    module = ModuleType("promising")
    vars(module).update(last=test_other, first=test_two, middle=middle)
    monkeypatch.setitem(sys.modules, "promising", module)
    return module


def test_promises_are_in_order_of_their_tests_with_their_state(module: ModuleType) -> None:
    assert read_promises("promising") == [
        Promise("Order", "the first", "holds"),
        Promise("Order", "the second", "holds"),
        Promise("Speed", "an image in two seconds", "not tried: needs a GPU"),
        Promise("Retries", "three in the process", "differs: over the broker"),
    ]


def test_promise_held_twice_is_refused(module: ModuleType) -> None:
    @pytest.mark.promise("Order", "the first")
    def test_again() -> None: ...

    vars(module)["again"] = test_again
    with pytest.raises(ValueError, match="Order: the first"):
        read_promises("promising")


def test_edited_table_is_written_anew(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(promises, "SYSTEMS", {"one": "promising"})
    page = "before\n<!-- promises: one -->\nold\n<!-- end -->\nafter\n"

    assert with_tables(page) == f"before\n<!-- promises: one -->\n\n{table(read_promises('promising'))}\n<!-- end -->\nafter\n"
    assert with_tables(with_tables(page)) == with_tables(page)
