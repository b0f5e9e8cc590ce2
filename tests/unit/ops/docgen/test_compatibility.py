"""A change that would break whoever was built for the last release is found."""

import copy
from typing import Any

import pytest

from ops.docgen.compatibility import find_breaking_changes, released_schemas
from ops.docgen.contract_schemas import export_schemas

BEFORE: dict[str, Any] = released_schemas()


def test_contracts_are_compatible_with_last_release() -> None:
    assert find_breaking_changes(BEFORE, export_schemas()) == []


def changed(path: str, value: Any) -> dict[str, Any]:
    now = copy.deepcopy(BEFORE)
    *parents, last = path.split("/")
    place: Any = now
    for name in parents:
        place = place[name]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return now


@pytest.mark.parametrize(
    ("path", "value", "told"),
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
def test_a_breaking_change_is_named(path: str, value: Any, told: str) -> None:
    assert any(told in found for found in find_breaking_changes(BEFORE, changed(path, value)))


def test_a_new_optional_field_breaks_nothing() -> None:
    assert find_breaking_changes(BEFORE, changed("$defs/Image/properties/brightness", {"type": "number"})) == []


def test_a_looser_limit_breaks_nothing() -> None:
    assert find_breaking_changes(BEFORE, changed("$defs/Image/properties/steps/maximum", 9999)) == []
