"""What a library does without: names that are imported for it alone, and validators of its models until they are used."""

import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
from pydantic import BaseModel

from bus import deferred_models, empty_modules


class Node(BaseModel):
    value: int


@pytest.fixture
def _forgotten_module() -> Iterator[None]:
    """`colorsys` as if nothing had imported it."""
    kept = sys.modules.pop("colorsys", None)
    yield
    if kept:
        sys.modules["colorsys"] = kept


@pytest.mark.usefixtures("_forgotten_module")
def test_empty_module_is_for_the_block_alone() -> None:
    with empty_modules("colorsys"):
        from colorsys import rgb_to_hls as empty
    from colorsys import rgb_to_hls as real

    assert isinstance(empty, type)
    assert real(0.0, 0.0, 0.0) == (0.0, 0.0, 0.0)


def test_empty_class_stands_in_an_except_clause() -> None:
    with empty_modules("no_such_library"):
        import no_such_library  # type: ignore[import-not-found]
    caught = None
    try:
        raise ZeroDivisionError
    except no_such_library.SomeError:
        caught = "the empty class"
    except ZeroDivisionError:
        caught = "the error"
    assert caught == "the error"


def test_empty_class_says_what_is_missing_when_it_is_used() -> None:
    with empty_modules("no_such_library"):
        from no_such_library import Server

    class OwnServer(Server):  # type: ignore[misc] # a library derives classes from it
        def __init__(self, port: int) -> None:
            self.port = port

    for use in (Server, lambda: OwnServer(80)):
        with pytest.raises(RuntimeError, match=r"^Server of no_such_library is not loaded in this process \(decision 22\)$"):
            use()


def test_module_that_is_imported_already_has_no_empty_class() -> None:
    with empty_modules("json"):
        assert isinstance(sys.modules["json"], ModuleType)
        assert sys.modules["json"].loads("1") == 1


def test_model_of_the_block_is_built_when_it_is_used() -> None:
    with deferred_models():

        class Tree(BaseModel):
            branches: list["Tree"] = []
            node: Node

        Tree.model_rebuild()
        built_in_block = Tree.__pydantic_complete__
    assert not built_in_block
    assert Tree.model_validate({"node": {"value": 1}, "branches": [{"node": {"value": 2}}]}).branches[0].node.value == 2
    assert Tree.__pydantic_complete__


def test_model_may_be_used_inside_the_block() -> None:
    with deferred_models():

        class Leaf(BaseModel):
            size: int = 1

        assert Leaf(size="2").size == 2  # type: ignore[arg-type]


def test_models_after_the_block_are_built_at_once() -> None:
    with deferred_models():
        pass

    class After(BaseModel):
        value: int

    assert After.__pydantic_complete__
