"""`/v1/moderations`: the command of a request, OpenAI's categories of its findings, and the errors."""

import base64
from typing import Any

import pytest

from bus.storage.claim_store import ClaimStore
from contracts.fault import Fault
from gateway.openai.moderations import CATEGORIES
from tests.support.fake_broker import Reply
from tests.support.moderated_pictures import as_png, draw_harmless_picture
from tests.unit.gateway.conftest import OpenFakeGateway

PICTURE = f"data:image/png;base64,{base64.b64encode(as_png(draw_harmless_picture())).decode()}"
CHECKED_BY = {"word-list": ["violence", "house-rules"], "nudenet": ["anus-exposed", "buttocks-exposed"]}


def found(place: str, index: int, label: str, score: float, checker: str, *, flagged: bool = True) -> dict[str, Any]:
    return {"input": place, "index": index, "label": label, "score": score, "flagged": flagged, "checker": checker}


def reply(*findings: dict[str, Any], checked_by: dict[str, list[str]] | None = None) -> dict[str, Any]:
    allowed = not any(finding["flagged"] for finding in findings)
    return {"allowed": allowed, "moderation": list(findings), "checked_by": CHECKED_BY if checked_by is None else checked_by}


async def test_each_text_has_a_result_and_one_of_the_list_is_flagged(gateway: OpenFakeGateway) -> None:
    opened = gateway({"moderate": reply(found("texts", 1, "violence", 1, "word-list"), checked_by={"word-list": ["violence"]})})
    response = await opened.http.post("/v1/moderations", json={"input": ["a", "b"], "model": "omni-moderation-2024-09-26"})
    body = response.json()
    assert (response.status_code, body["model"], body["id"][:5], len(body["results"])) == (200, "omni-moderation-2024-09-26", "modr-", 2)
    first, second = body["results"]
    assert (first["flagged"], second["flagged"]) == (False, True)
    assert {name for name, is_true in second["categories"].items() if is_true} == {"violence"}
    assert second["category_scores"]["violence"] == 1
    assert first["categories"].keys() == first["category_scores"].keys() == first["category_applied_input_types"].keys() == set(CATEGORIES)
    assert {name: types for name, types in first["category_applied_input_types"].items() if types} == {"violence": ["text"]}
    assert opened.publisher.messages[-1].body == b'{"texts":["a","b"]}'


async def test_parts_have_one_result_with_the_highest_score_of_each_category(gateway: OpenFakeGateway, claims: ClaimStore) -> None:
    """A category of the word list that OpenAI does not have flags the result, too."""
    findings = [
        found("texts", 0, "house-rules", 1, "word-list"),
        found("images", 0, "buttocks-exposed", 0.3, "nudenet", flagged=False),
        found("images", 0, "anus-exposed", 0.2, "nudenet", flagged=False),
    ]
    commands: list[dict[str, Any]] = []

    def answer(command: dict[str, Any]) -> Reply:
        commands.append(command)
        return reply(*findings)

    opened = gateway({"moderate": answer}, store=claims)
    parts = [
        {"type": "image_url", "image_url": {"url": PICTURE}},
        {"type": "text", "text": "a"},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
    ]
    body = (await opened.http.post("/v1/moderations", json={"input": parts})).json()
    (result,) = body["results"]
    assert (body["model"], result["flagged"], any(result["categories"].values())) == ("omni-moderation-latest", True, False)
    assert result["category_scores"]["sexual"] == 0.3
    assert result["category_applied_input_types"] == {name: [] for name in CATEGORIES} | {"sexual": ["image"], "violence": ["text"]}
    assert [finding["label"] for finding in result["findings"]] == ["house-rules", "buttocks-exposed", "anus-exposed"]
    (command,) = commands
    assert (command["texts"], command["image_urls"], len(command["images"])) == (["a"], ["https://example.com/a.png"], 1)


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"input": []}, 400, "input"),
        ({}, 400, "input"),
        ({"input": "a", "threshold": 1}, 400, "threshold"),
        ({"input": ["a"] * 65}, 400, "input"),
        ({"input": "a" * 32_001}, 400, "input"),
        ({"input": [{"type": "image_url", "image_url": {"url": "http://example.com/a.png"}}]}, 400, "input.0.image_url.url"),
        ({"input": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}, 400,
         "input.1.image_url.url"),
        ({"input": [{"type": "image_url", "image_url": {"url": "https://x/" + "y" * 2039}}]}, 400, "input.0.image_url.url"),
        ({"input": [{"type": "video", "text": "a"}]}, 400, "input.0"),
        ({"input": ["a" * 30_000] * 40}, 413, "input"),
    ],
)  # fmt: skip
async def test_invalid_request_names_its_field(gateway: OpenFakeGateway, body: dict[str, Any], status: int, param: str) -> None:
    response = await gateway({"moderate": reply()}).http.post("/v1/moderations", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param), response.text


async def test_without_a_worker_the_answer_is_503_and_without_a_checker_501(gateway: OpenFakeGateway) -> None:
    """Neither is repeated by OpenAI's clients."""
    unserved = await gateway().http.post("/v1/moderations", json={"input": "a"})
    fault = Fault(code="moderation-unconfigured", message="Nothing checks texts here: set MODERATION_WORDS.", step="moderate")
    unconfigured = await gateway({"moderate": fault}).http.post("/v1/moderations", json={"input": "a"})
    assert [response.status_code for response in (unserved, unconfigured)] == [503, 501]
    assert [response.headers["x-should-retry"] for response in (unserved, unconfigured)] == ["false", "false"]
    assert "atelier run moderate" in unserved.json()["error"]["message"]
    assert "MODERATION_WORDS" in unconfigured.json()["error"]["message"]
