"""A question with two pictures over the real broker, answered by a Qwen2.5-VL in a real model process."""

import asyncio
import io
from pathlib import Path

import pytest
from PIL import Image

from actors import consult
from actors.engines.language.requests import VlmRequest
from actors.engines.language.tiny_vision import write_tiny_vision
from actors.vision.prompts import build_consult_prompt
from actors.vision.verdict_parser import trim_repetition
from bus.storage.claim_store import open_claim_store
from bus.storage.settings import StoreSettings
from tests.support.broker_client import BrokerClient, StartWorker
from tests.support.vision_families import generate_alone, open_family, picture

pytestmark = [
    pytest.mark.models, pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning"),
]  # fmt: skip

SIZES, TOKENS = ((140, 84), (60, 150)), 16


def resaved(data: bytes) -> bytes:
    """As the actor sends it to the engine; the pixels are the same."""
    with Image.open(io.BytesIO(data)) as image, io.BytesIO() as file:
        image.convert("RGB").save(file, "PNG")
        return file.getvalue()


def expect_answer(folder: Path, question: str, pictures: list[bytes]) -> str:
    """What transformers' `generate` answers alone."""
    engine = open_family(folder)
    request = VlmRequest(build_consult_prompt(question), tuple(map(resaved, pictures)), TOKENS, 1.1)
    text = engine._tokenizer.decode(generate_alone(engine, request), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return trim_repetition(text.strip())


async def test_two_pictures_are_answered_as_by_generate_alone(
    start_worker: StartWorker, broker_client: BrokerClient, store_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In both orders, whose answers differ."""
    folder = tmp_path / "model"
    await asyncio.to_thread(write_tiny_vision, "tiny-qwen2.5-vl", folder)
    monkeypatch.setenv("VLM_MODEL", str(folder))
    monkeypatch.setenv("VLM_THREADS", "1")
    pictures = [picture(number, size) for number, size in enumerate(SIZES)]
    async with open_claim_store(StoreSettings(store_url=store_folder.as_uri())) as store:
        claims = [
            (await store.put(f"{number}.png", data, tenant=None, media_type="image/png")).model_dump(mode="json")
            for number, data in enumerate(pictures)
        ]
    answers: list[str] = []
    async with start_worker(consult.ACTORS[0]):
        for ordered in (claims, claims[::-1]):
            body = {"prompt": "Which one is red?", "pictures": ordered, "max_new_tokens": TOKENS}
            await broker_client.publish("consult", body, reply_to=broker_client.reply_queue)
            kind, reply = await broker_client.next_reply(240)
            assert kind == "consult.done.v1", reply
            answers.append(str(reply["prediction"]))
    expected = [await asyncio.to_thread(expect_answer, folder, "Which one is red?", given) for given in (pictures, pictures[::-1])]
    assert answers == expected
    assert answers[0] != answers[1]
