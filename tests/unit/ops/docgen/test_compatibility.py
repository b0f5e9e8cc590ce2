"""Changes that would break clients of the last release are found."""

import copy
from typing import Any

import pytest

from ops.docgen.compatibility import find_breaking_changes, released_schemas
from ops.docgen.contract_schemas import export_schemas

RELEASED: dict[str, Any] = released_schemas()


def test_contracts_are_compatible_with_last_release() -> None:
    assert find_breaking_changes(RELEASED, export_schemas()) == []


def changed(path: str, value: Any) -> dict[str, Any]:
    """The released schemas with the value at `path` replaced; removed where `value` is None."""
    schemas = copy.deepcopy(RELEASED)
    *parents, last = path.split("/")
    parent: Any = schemas
    for name in parents:
        parent = parent[name]
    if value is None:
        del parent[last]
    else:
        parent[last] = value
    return schemas


@pytest.mark.parametrize(
    ("path", "value", "change"),
    [
        ("messages/image.v1", None, "image.v1: the message is gone"),
        ("$defs/Image/properties/seed", None, "image.v1.seed: the field is gone"),
        ("$defs/Image/required", ["prompt", "steps"], "image.v1.steps: is required now"),
        ("$defs/Image/properties/steps/maximum", 10, "image.v1.steps: maximum is 10 now, stricter than before"),
        ("$defs/Image/properties/prompt/type", "integer", "image.v1.prompt: was ['string'], is ['integer']"),
        ("$defs/Image/properties/prompt/pattern", "^a", "image.v1.prompt: has another pattern"),
        ("$defs/Image/properties/scheduler/enum", ["euler"], "image.v1.scheduler: no longer takes"),
        ("$defs/UploadDone/required", ["files"], "upload.done.v1.result_url: may be missing now"),
        ("$defs/Claim/properties/size", None, "image.done.v1.images[].size: the field is gone"),
    ],
)
def test_breaking_change_is_named(path: str, value: Any, change: str) -> None:
    assert any(change in line for line in find_breaking_changes(RELEASED, changed(path, value)))


def test_new_optional_field_is_compatible() -> None:
    assert find_breaking_changes(RELEASED, changed("$defs/Image/properties/brightness", {"type": "number"})) == []


def test_looser_limit_is_compatible() -> None:
    assert find_breaking_changes(RELEASED, changed("$defs/Image/properties/steps/maximum", 9999)) == []
