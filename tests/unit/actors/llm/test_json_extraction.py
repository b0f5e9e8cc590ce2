"""JSON objects in an answer are found anywhere in the text and repaired, but never invented."""

import pytest

from actors.llm.json_extraction import extract_json_object


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1}', {"a": 1}),
        ('Sure!\n```json\n{"a": [1, 2]}\n```', {"a": [1, 2]}),
        ('```json\n{"a": 1}\n```', {"a": 1}),
        ('It is {"a": "}", "b": {"c": 2}} as asked.', {"a": "}", "b": {"c": 2}}),
        ('{"a": 1, /* why */ "b": [1,],}', {"a": 1, "b": [1]}),
        ("{“a”: 1}", {"a": 1}),
        ("[1, 2]", None),
        ("7", None),
        ('{"a": ', None),
        ("no object", None),
        ("", None),
    ],
)
def test_json_object_is_extracted_from_text(text: str, expected: object) -> None:
    assert extract_json_object(text) == expected
