"""The prefix cache: whose caches are found, what leaves first, and answers that are the same with and without it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from actors.engines.language.prefix_cache import MIN_TOKENS, PrefixCache
from actors.engines.language.requests import GenerationRequest, TextResponse
from actors.engines.language.text_model import TextModelEngine
from actors.engines.process.protocol import EngineMetrics, Finished
from tests.support.text_runs import chat, generate, open_engine, run, write_adapter

pytestmark = pytest.mark.models
SYSTEM = {"role": "system", "content": "You write one short line for an advertisement, and nothing else. " * 3}


def layers(tokens: int) -> Any:
    """One layer whose keys are the numbers of their tokens: 8 bytes a token."""
    import torch

    keys = torch.arange(tokens, dtype=torch.float32).reshape(1, 1, tokens, 1)
    return [(keys, -keys)]


def ids(*numbers: int) -> Any:
    import torch

    return torch.tensor(numbers)


LONG = range(100, 140)


def test_longest_common_prefix_is_found_but_for_the_last_token() -> None:
    cache = PrefixCache(10_000)
    cache.keep("a", ids(*LONG), layers(40))
    cache.keep("a", ids(*LONG[:30], 7, 8, 9), layers(33))
    for prompt, tokens in ((LONG, 39), (LONG[:25], 24), ([*LONG, 1], 40), ([*LONG[:30], 7, 8, 1], 32), ([*LONG[:30], 1, 1], 30)):
        found = cache.find("a", ids(*prompt))
        assert found is not None
        assert found.tokens == tokens
        (keys, values) = found.new_cache().layers[0].keys, found.new_cache().layers[0].values
        assert keys.flatten().tolist() == list(range(tokens)) == (-values).flatten().tolist()
    assert cache.find("a", ids(*LONG[:MIN_TOKENS])) is None
    assert cache.find("a", ids(1, *LONG)) is None


def test_other_owners_find_nothing() -> None:
    cache = PrefixCache(10_000)
    cache.keep(("one", None), ids(*LONG), layers(40))
    assert cache.find(("one", None), ids(*LONG))
    for owner in (("two", None), ("one", "adapter_0"), None, ""):
        assert cache.find(owner, ids(*LONG)) is None


def test_cache_of_a_row_is_its_own() -> None:
    """What a row appends changes neither the entry nor other rows."""
    import torch

    cache = PrefixCache(10_000)
    cache.keep("a", ids(*LONG), layers(40))
    for _ in range(2):
        found = cache.find("a", ids(*LONG))
        assert found is not None
        own = found.new_cache()
        own.update(torch.ones(1, 1, 2, 1), torch.ones(1, 1, 2, 1), 0)
        own.layers[0].keys.fill_(5)
        assert found.layers[0][0].flatten().tolist() == list(range(40))


def test_size_is_bounded_and_the_longest_unused_leaves() -> None:
    cache = PrefixCache(3 * 8 * 40)
    prompts = [ids(*range(number, number + 40)) for number in (0, 100, 200, 300)]
    for prompt in prompts[:3]:
        cache.keep("a", prompt, layers(40))
    assert cache.size == cache.max_bytes
    assert cache.find("a", prompts[0])
    cache.keep("a", prompts[3], layers(40))
    assert [cache.find("a", prompt) is not None for prompt in prompts] == [True, False, True, True]
    cache.keep("a", ids(*range(500, 1000)), layers(500))
    assert cache.size == cache.max_bytes
    cache.clear()
    assert (cache.size, cache.find("a", prompts[0])) == (0, None)


def test_longer_cache_takes_the_place_of_what_it_continues() -> None:
    cache = PrefixCache(10_000)
    cache.keep("a", ids(*LONG[:20]), layers(20))
    cache.keep("a", ids(*LONG), layers(40))
    assert cache.size == 8 * 40
    assert cache.holds("a", ids(*LONG[:20]))
    assert not cache.holds("a", ids(*LONG, 1))
    assert not cache.holds("b", ids(*LONG))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> TextModelEngine:
    folder = tmp_path_factory.mktemp("tiny-llama")
    open_engine(folder)
    return open_engine(folder, loras={"brand": write_adapter(folder, folder / "brand")}, max_rows=4)


def with_system(text: str, **options: Any) -> GenerationRequest:
    return replace(chat(text, **{"max_tokens": 12} | options), messages=[SYSTEM, {"role": "user", "content": text}])


def cached(responses: Sequence[TextResponse]) -> list[int]:
    return [response.cached_tokens for response in responses]


def without(engine: TextModelEngine, requests: list[GenerationRequest], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The answers of an engine that keeps nothing, one by one."""
    with monkeypatch.context() as patch:
        patch.setattr(engine._prefixes, "max_bytes", 0)
        responses = [generate(engine, request)[0] for request in requests]
    assert cached(responses) == [0] * len(requests)
    return [response.text for response in responses]


def test_answers_are_the_same_with_and_without(engine: TextModelEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy and sampled, with penalties, with an adapter, with JSON, and of one prompt several times."""
    options: list[dict[str, Any]] = [
        {}, {"temperature": 0.9, "seed": 4}, {"repetition_penalty": 1.3, "presence_penalty": 1.0}, {"lora": "brand"}, {"stream": True},
        {"max_tokens": 60, "schema": {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}},
    ]  # fmt: skip
    requests = [with_system(text, **option) for option in options for text in ("why?", "why not?", "why?")]
    expected = without(engine, requests, monkeypatch)
    for _ in range(2):
        responses, _reports = run(engine, requests)
        assert [response.text for response in responses] == expected
    assert min(cached(responses)) > 150


def test_shared_system_prompt_is_read_once(engine: TextModelEngine) -> None:
    """Also for rows that come at once: the others wait until it was read."""
    engine._prefixes.clear()
    responses = generate(engine, *(with_system(text) for text in ("a", "b", "c")))
    assert cached(responses)[0] == 0
    assert min(cached(responses)[1:]) > len(SYSTEM["content"])


def test_next_turn_begins_behind_the_last_answer(engine: TextModelEngine) -> None:
    """Where the answer's tokens are those of its text, which bytes that are no text are not."""
    engine._prefixes.clear()
    first = with_system("tell")
    for seed in range(50):
        response = generate(engine, replace(first, temperature=0.5, seed=seed, max_tokens=6))[0]
        if "\ufffd" not in response.text and response.completion_tokens == 6:
            break
    turns = [*first.messages, {"role": "assistant", "content": response.text}, {"role": "user", "content": "more"}]
    following = generate(engine, replace(first, messages=turns))[0]
    assert following.cached_tokens == response.prompt_tokens + response.completion_tokens - 1


def test_tenants_and_adapters_share_nothing(engine: TextModelEngine) -> None:
    engine._prefixes.clear()
    requests = [with_system("x", tenant=tenant, lora=lora) for tenant in ("one", "two") for lora in (None, "brand")]
    assert cached(generate(engine, *requests)) == [0, 0, 0, 0]
    assert min(cached([generate(engine, request)[0] for request in requests])) > 150
    assert generate(engine, with_system("x", tenant="three"))[0].cached_tokens == 0


def test_raw_prompt_uses_the_cache_too(engine: TextModelEngine) -> None:
    engine._prefixes.clear()
    request = replace(chat("", 5), messages=[], prompt="Once upon a time there was a cat. " * 4)
    first, second = generate(engine, request)[0], generate(engine, request)[0]
    assert (first.text, first.cached_tokens, second.cached_tokens) == (second.text, 0, second.prompt_tokens - 1)


def test_cancel_while_a_prefix_is_read(engine: TextModelEngine) -> None:
    """The rows that waited for it read it themselves."""
    engine._prefixes.clear()
    for number in range(3):
        engine.submit(number, with_system(f"{number}"))
    engine.tick()
    assert engine._reading is not None
    assert len(engine._waiting) == 2
    assert engine.cancel(engine._reading.row.request_id)
    finished: dict[int, TextResponse] = {}
    while engine.idle_seconds() is not None:
        finished |= {event.request_id: event.result for event in engine.tick() if isinstance(event, Finished)}
    assert sorted(finished) == [1, 2]
    assert [finished[1].cached_tokens, finished[2].cached_tokens > 100] == [0, True]


def test_metrics_report_size_and_hits(engine: TextModelEngine) -> None:
    engine._prefixes.clear()
    before = engine._metrics()
    responses = [generate(engine, with_system("x"))[0] for _ in range(2)]
    after = engine._metrics()
    assert isinstance(after, EngineMetrics)
    gained = {name: after.counters[name] - before.counters[name] for name in ("prefix_hit_tokens", "prompt_tokens")}
    assert gained == {"prefix_hit_tokens": responses[1].cached_tokens, "prompt_tokens": 2 * responses[0].prompt_tokens}
    assert 0 < after.gauges["prefix_cache_bytes"] <= 256 << 20


def test_rows_go_on_when_there_is_no_memory_to_keep_them(engine: TextModelEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def copy_cache(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    expected = generate(engine, with_system("x"))[0].text
    allowed = engine._prefixes.max_bytes
    monkeypatch.setattr(engine._prefixes, "max_bytes", allowed)
    monkeypatch.setattr(type(engine._batch), "copy_cache", copy_cache)
    assert generate(engine, with_system("another"))[0].completion_tokens == 12
    assert engine._prefixes.max_bytes == allowed // 64, "twice: behind the prompt and behind the answer"
    assert engine._prefixes.size == 0
    assert generate(engine, with_system("x"))[0].text == expected


def test_cache_that_gives_memory_back_stays_in_use() -> None:
    cache = PrefixCache(80 * 8 * 40)
    cache.give_back()
    assert cache.max_bytes == 10 * 8 * 40, "an eighth, though it held nothing"
    for number in range(10):
        cache.keep("a", ids(*range(100 * number, 100 * number + 40)), layers(40))
    cache.give_back()
    assert (cache.size, cache.max_bytes) == (0, 10 * 8 * 40 // 4)
    cache.keep("a", ids(*LONG), layers(40))
    assert cache.find("a", ids(*LONG))


def test_rows_hold_no_caches_that_have_left(engine: TextModelEngine) -> None:
    """Neither those that are decoded, nor those that wait."""
    engine._prefixes.clear()
    generate(engine, with_system("x"))
    for number in range(12):
        engine.submit(number, with_system(f"{number}", max_tokens=30))
    for _ in range(3):
        engine.tick()
        assert engine._batch.rows
        rows = [*engine._batch.rows, *engine._waiting, *([engine._reading.row] if engine._reading else [])]
        assert [row.prefix for row in rows] == [None] * len(rows)
    assert max(row.cached_tokens for row in engine._batch.rows) > 100
    for number in range(12):
        engine.cancel(number)


def test_rows_do_not_wait_for_what_is_not_kept(engine: TextModelEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts that are larger than the cache are read together, and not copied."""
    generate(engine, with_system("x"))
    engine._prefixes.clear()
    monkeypatch.setattr(engine._prefixes, "max_bytes", 40 * engine._prefixes._bytes_per_token)
    monkeypatch.setattr(engine, "_part_tokens", 2000)
    monkeypatch.setattr(type(engine._batch), "copy_cache", None)
    for number in range(4):
        engine.submit(number, with_system(f"{number}"))
    engine.tick()
    assert len(engine._batch.rows) == 4
    for number in range(4):
        engine.cancel(number)
