"""The embedding engine on tiny models of each proven family: pooling, batches, limits and sizes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.engines.embedding.checkpoint import PROVEN_TYPES, load_checkpoint
from actors.engines.embedding.engine import EmbeddingEngine
from actors.engines.embedding.requests import EmbeddingOptions, EmbeddingRequest
from actors.engines.process.protocol import Failed, Finished
from bus.errors import PermanentError
from tests.support.tiny_encoders import CONFIGS, LENGTH, SIZE, write_tiny_encoder

TEXTS = ("a", "a red fox in fresh snow", "눈 속의 여우", "fox")


def open_engine(folder: Path, **options: Any) -> EmbeddingEngine:
    chosen = EmbeddingOptions(str(folder), device="cpu", threads=1, **options)
    return EmbeddingEngine(load_checkpoint(chosen), chosen)


def run(engine: EmbeddingEngine, *requests: EmbeddingRequest) -> list[np.ndarray[Any, Any]]:
    """The vectors of each request."""
    for number, request in enumerate(requests):
        engine.submit(number, request)
    results: dict[int, np.ndarray[Any, Any]] = {}
    while engine.idle_seconds() == 0:
        for event in engine.tick():
            assert not isinstance(event, Failed), event
            if isinstance(event, Finished):
                results[event.request_id] = np.stack([np.frombuffer(vector, "<f4") for vector in event.result.vectors])
    return [results[number] for number in range(len(requests))]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_encoder(tmp_path_factory.mktemp("bert"))


def test_every_proven_family_is_tested() -> None:
    assert set(PROVEN_TYPES) == set(CONFIGS)


def reference(folder: Path, text: str, pooling: str) -> Any:
    """The vector as sentence-transformers computes it: one text without padding, by the class of the model itself."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        states = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()(input_ids=ids).last_hidden_state[0]
    vector = {"mean": states.mean(0), "cls": states[0], "last": states[-1]}[pooling].numpy()
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize("model_type", PROVEN_TYPES)
def test_vectors_of_a_family_alone_and_in_company(model_type: str, tmp_path: Path) -> None:
    """They are the same whoever else is in the batch, and those that the model computes for the text alone."""
    pooling = "last" if "num_key_value_heads" in CONFIGS[model_type][1] else "cls" if model_type == "modernbert" else "mean"
    folder = write_tiny_encoder(tmp_path, model_type, pooling)
    engine = open_engine(folder)
    engine.self_test()
    (together,) = run(engine, EmbeddingRequest(TEXTS))
    alone = np.concatenate([run(engine, EmbeddingRequest((text,)))[0] for text in TEXTS])
    expected = np.stack([reference(folder, text, pooling) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(together, expected, atol=1e-5)
    assert np.ptp(together, axis=0).max() > 0.01, "texts differ"


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_pooling_is_that_of_the_folder(pooling: str, tmp_path: Path) -> None:
    folder = write_tiny_encoder(tmp_path, "bert", pooling)
    (vectors,) = run(open_engine(folder), EmbeddingRequest(TEXTS))
    np.testing.assert_allclose(vectors[1], reference(folder, TEXTS[1], pooling), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_pooling_in_the_form_of_later_releases(tmp_path: Path) -> None:
    folder = write_tiny_encoder(tmp_path)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"embedding_dimension": SIZE, "pooling_mode": "lasttoken"}))
    assert open_engine(folder).info["pooling"] == "last"


def test_batches_hold_inputs_of_several_requests(bert: Path) -> None:
    """As many as the limit allows, with the tokens that fill rows up."""
    engine = open_engine(bert, batch_tokens=16)
    sizes = list[tuple[int, int]]()
    embed = engine._embed

    def recorded(rows: list[list[int]]) -> Any:
        sizes.append((len(rows), max(map(len, rows))))
        return embed(rows)

    engine._embed = recorded  # type: ignore[method-assign]
    first, second = run(engine, EmbeddingRequest(("abcd", "ab", "abcdefghijklmnop")), EmbeddingRequest(("a", "abc")))
    assert sizes == [(2, 4), (1, 16), (2, 3)]
    assert (first.shape, second.shape) == ((3, SIZE), (2, SIZE))


def test_device_time_is_divided_by_tokens(bert: Path) -> None:
    engine = open_engine(bert)
    run(engine, EmbeddingRequest(("abc" * 10,)), EmbeddingRequest(("abc",)))
    busy, shares = engine.device_time.take()
    assert shares[0] == pytest.approx(10 * shares[1])
    assert sum(shares.values()) == pytest.approx(busy, rel=0.02)


def test_vectors_are_cut_to_the_sizes_of_the_settings_only(bert: Path) -> None:
    engine = open_engine(bert, dimensions=(8,))
    whole, cut = run(engine, EmbeddingRequest(("abc",), SIZE), EmbeddingRequest(("abc",), 8))
    np.testing.assert_allclose(cut[0], whole[0][:8] / np.linalg.norm(whole[0][:8]), atol=1e-6)
    with pytest.raises(PermanentError, match="8, 32 dimensions, 16 were requested") as raised:
        engine.submit(1, EmbeddingRequest(("abc",), 16))
    assert (raised.value.code, engine.idle_seconds()) == ("dimensions-unsupported", None)


@pytest.mark.parametrize(
    ("model_type", "options", "limit"),
    [
        ("bert", {}, LENGTH),
        ("roberta", {}, LENGTH),
        ("bert", {"max_tokens": 5}, 5),
        ("bert", {"batch_tokens": 4, "max_tokens": 5}, 4),
        ("qwen3", {"batch_tokens": 4}, 4),
    ],
)
def test_long_input_is_refused_before_work(model_type: str, options: dict[str, int], limit: int, tmp_path: Path) -> None:
    engine = open_engine(write_tiny_encoder(tmp_path, model_type), **options)
    run(engine, EmbeddingRequest(("a" * limit,)))
    with pytest.raises(PermanentError, match=f"input 1 has {limit + 1} tokens, {limit} are allowed") as raised:
        engine.submit(1, EmbeddingRequest(("a", "a" * (limit + 1))))
    assert (raised.value.code, engine.idle_seconds()) == ("prompt-too-long", None)


def test_length_of_the_folder_is_a_limit(tmp_path: Path) -> None:
    folder = write_tiny_encoder(tmp_path)
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 7, "do_lower_case": false}')
    assert open_engine(folder).info["max_model_len"] == 7


def test_cancelled_request_leaves_the_engine(bert: Path) -> None:
    engine = open_engine(bert)
    engine.submit(1, EmbeddingRequest(("a",)))
    assert (engine.cancel(1), engine.cancel(1), engine.tick()) == (True, False, ())


def events_of(engine: EmbeddingEngine) -> dict[int, Finished | Failed]:
    """How each request ends."""
    ends: dict[int, Finished | Failed] = {}
    while engine.idle_seconds() == 0:
        ends |= {event.request_id: event for event in engine.tick() if isinstance(event, Finished | Failed)}
    return ends


def test_vectors_that_are_not_numbers_fail_their_request_alone(bert: Path) -> None:
    """Its neighbours in the batch have the vectors that they have without it, and the next requests share batches again."""
    engine = open_engine(bert)
    (expected,) = run(engine, EmbeddingRequest(("fox", "ox")))
    [token] = engine._tokenize("Z", 0)
    engine._loaded.model.embeddings.word_embeddings.weight.data[token] = float("nan")
    for number, inputs in enumerate((("fox", "ox"), ("a", "Z"), ("fox", "ox"))):
        engine.submit(number, EmbeddingRequest(inputs))
    ends = events_of(engine)
    first, failed, last = (ends[number] for number in range(3))
    assert isinstance(failed, Failed)
    assert (failed.kind, failed.code) == ("permanent", "engine-failed")
    for finished in (first, last):
        assert isinstance(finished, Finished)
        np.testing.assert_allclose([np.frombuffer(vector, "<f4") for vector in finished.result.vectors], expected, atol=1e-5)
    engine.submit(4, EmbeddingRequest(("fox",)))
    engine.submit(5, EmbeddingRequest(("ox",)))
    assert {event.request_id for event in engine.tick() if isinstance(event, Finished)} == {4, 5}


def test_device_failure_ends_the_process(bert: Path) -> None:
    """It is no fault of the requests: the executor repeats them in a new process."""
    engine = open_engine(bert)

    def exhausted(*_: Any, **__: Any) -> None:
        raise MemoryError

    engine._embed = exhausted  # type: ignore[method-assign]
    engine.submit(1, EmbeddingRequest(("a",)))
    with pytest.raises(MemoryError):
        engine.tick()


def test_token_that_the_model_does_not_know_is_refused_before_work(tmp_path: Path) -> None:
    """As of a tokenizer of another model: on a GPU the batch would end the process."""
    engine = open_engine(write_tiny_encoder(tmp_path, vocab_size=100))
    run(engine, EmbeddingRequest(("A",)))
    with pytest.raises(PermanentError, match=r"input 1 has the token .*, the model knows 100: its tokenizer") as raised:
        engine.submit(1, EmbeddingRequest(("A", "눈")))
    assert (raised.value.code, engine.idle_seconds()) == ("engine-failed", None)


def test_padding_of_a_configuration_without_one(tmp_path: Path) -> None:
    engine = open_engine(write_tiny_encoder(tmp_path, "llama", "last", pad_token_id=-1))
    (together,) = run(engine, EmbeddingRequest(TEXTS))
    np.testing.assert_allclose(together[0], run(engine, EmbeddingRequest(TEXTS[:1]))[0][0], atol=1e-5)


def test_decoder_keeps_no_keys_and_values(tmp_path: Path) -> None:
    import torch

    engine = open_engine(write_tiny_encoder(tmp_path, "qwen3", "last"))
    assert engine._loaded.model(input_ids=torch.tensor([[1, 2]])).past_key_values is None


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "EMBEDDING_POOLING"),
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "EMBEDDING_POOLING"),
        ("1_Pooling/config.json", {}, "EMBEDDING_POOLING"),
        ("modules.json", [{"type": "sentence_transformers.models.Dense"}], "has Dense"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(file: str, content: Any, message: str, tmp_path: Path) -> None:
    folder = write_tiny_encoder(tmp_path)
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        open_engine(folder)


def test_another_family_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match=r"'gpt2'; proven are bert, .*EMBEDDING_SERVER_URL"):
        open_engine(tmp_path)


def test_weights_that_are_missing_are_not_made_up(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = write_tiny_encoder(tmp_path)
    weights: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    save_file(dict(list(weights.items())[3:]), folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="the files lack the weights"):
        open_engine(folder)
