"""LoRA files as trainers and downloads leave them: an order with one fails alone as `lora-invalid`, which names the key, or is drawn.

Its neighbour is drawn by the same model process, and no file opens the circuit breaker. Each case names the public report that it is from.
"""

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from actors.engines.diffusion.engine import DiffusionEngine
from actors.engines.diffusion.input_pictures import PictureReader
from actors.engines.diffusion.lora import slots
from actors.engines.diffusion.lora.file_cache import LoraFileCache
from actors.engines.diffusion.lora.layers import LayerTable
from actors.engines.diffusion.requests import DiffusionRequest, LoraFile
from actors.engines.process.executor import Executor, open_executor
from actors.engines.process.protocol import EngineSpec, Failed, Finished
from actors.engines.settings import ExecutorSettings, ImageSettings
from actors.image import ENGINE_FACTORY, OrderSources, image
from bus.actor import Context, Handler
from bus.errors import PermanentError
from bus.storage.claim_store import open_claim_store
from bus.storage.settings import StoreSettings
from contracts.image import Image, ImageDone, Lora
from ops.local.tiny_models import make_tiny_models
from tests.support.engine_fixture import lora_file, open_image_engine, run_to_end
from tests.support.faulty_engine import FaultyRequest
from tests.support.lora_files import (
    as_loha,
    as_lokr,
    half_precision,
    original_names,
    with_convolution,
    with_flat_projection,
    with_magnitudes,
)

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"), pytest.mark.models, pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]  # fmt: skip

Tensors = dict[str, Any]
SMALL = Image(prompt="a cat", width=64, height=64, steps=2, seed=7)


@dataclass
class Rig:
    """The image step with its model process, as a worker runs it. `kohya`: a sound LoRA in kohya's names."""

    handle: Handler
    executor: Executor
    folder: Path
    models: dict[str, Path]
    kohya: Tensors

    async def draw(self, command: Image, message_id: str = "m-1") -> ImageDone:
        async def ignore(_: Any) -> None:
            return

        done = await self.handle(command, Context("job-1", message_id, 1, "", None, ignore))
        assert isinstance(done, ImageDone)
        return done

    async def draw_beside_neighbour(self, file: Path) -> ImageDone | PermanentError:
        """The outcome of an order with this LoRA, while another order is drawn. The neighbour must end in the same process."""
        process = self.executor.process_id
        neighbour = asyncio.create_task(self.draw(SMALL.model_copy(update={"steps": 12}), "neighbour"))
        try:
            outcome: ImageDone | PermanentError = await self.draw(SMALL.model_copy(update={"lora": Lora(uri=file.as_uri())}))
        except PermanentError as error:
            outcome = error
        assert len((await neighbour).images) == 1
        assert self.executor.process_id == process
        assert not self.executor.stats.exits
        return outcome


def kohya_name(key: str) -> str:
    layer, _, half = key.removeprefix("unet.").partition(".lora_")
    return f"lora_unet_{layer.replace('.', '_')}.lora_{'down' if half.startswith('A') else 'up'}.weight"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    import torch
    from safetensors.torch import load_file

    folder = tmp_path_factory.mktemp("adapters")
    models = make_tiny_models(folder / "models")
    kohya = {kohya_name(key): tensor for key, tensor in load_file(models["tiny-lora-a"]).items()}
    kohya |= {key.replace(".lora_down.weight", ".alpha"): torch.tensor(4.0) for key in kohya if key.endswith(".lora_down.weight")}
    settings = ImageSettings(model=str(models["tiny-sd"]), local_cache=folder / "cache")
    store = StoreSettings(store_url=(folder / "store").as_uri(), asset_roots=(folder,))
    executor = open_executor(EngineSpec(ENGINE_FACTORY, settings), ExecutorSettings(), max_in_flight=20, capacity=10)
    async with open_claim_store(store) as claims, executor as running:
        await running.ready()
        sources = OrderSources(LoraFileCache(claims, settings), PictureReader(claims, settings))
        handler = partial(image, claims=claims, executor=running, sources=sources, signature_max_bytes=1 << 20)
        yield Rig(handler, running, folder, models, kohya)


def layer_of(tensors: Tensors) -> str:
    return next(key for key in tensors if key.endswith("attn2_to_k.lora_down.weight")).partition(".")[0]


def without(key: str) -> Callable[[Tensors, str], Tensors]:
    return lambda tensors, layer: {name: tensor for name, tensor in tensors.items() if name != f"{layer}.{key}"}


def with_tensor(key: str, *shape: int, dtype: str = "float32", value: float = 0.5) -> Callable[[Tensors, str], Tensors]:
    """Adds a tensor or replaces one; a key that begins with a dot is of the layer."""

    def change(tensors: Tensors, layer: str) -> Tensors:
        import torch

        return tensors | {f"{layer}{key}" if key.startswith(".") else key: torch.full(shape, value, dtype=getattr(torch, dtype))}

    return change


SDXL_BLOCK = "lora_unet_output_blocks_0_1_transformer_blocks_9_attn2_to_q"
INVALID: dict[str, tuple[Callable[[Tensors, str], Tensors], str]] = {
    "orphan alpha: huggingface/diffusers #13998": (
        with_tensor("lora_unet_mid_block_resnets_0_conv1.alpha"),
        "mid_block_resnets_0_conv1.alpha",
    ),
    "no up half: huggingface/diffusers #11943": (without("lora_up.weight"), "attn2_to_k.lora_down.weight"),
    "no down half: huggingface/diffusers #3087": (without("lora_down.weight"), "attn2_to_k.lora_up.weight"),
    "alpha of two numbers: huggingface/diffusers #14088": (with_tensor(".alpha", 2), "attn2_to_k.alpha"),
    "rank key: huggingface/diffusers #13998": (with_tensor(".rank"), "attn2_to_k.rank"),
    "alpha is not a number: bmaltais/kohya_ss #1986": (with_tensor(".alpha", value=float("nan")), "attn2_to_k.alpha"),
    "weights are not numbers: huggingface/diffusers #5316": (
        with_tensor(".lora_up.weight", 8, 4, value=float("nan")),
        "attn2_to_k.lora_up.weight",
    ),
    "LoKr: huggingface/diffusers #13137": (with_tensor(".lokr_w1", 4, 4), "attn2_to_k.lokr_w1"),
    "LoHa: KohakuBlueleaf/LyCORIS #27": (with_tensor(".hada_w1_a", 8, 4), "attn2_to_k.hada_w1_a"),
    "DoRA of the inputs: huggingface/diffusers #13998": (with_tensor(".dora_scale", 1, 32), "attn2_to_k.dora_scale"),
    "OFT: huggingface/diffusers #13137": (with_tensor(".oft_blocks", 2, 4, 4), "attn2_to_k.oft_blocks"),
    "bias and difference keys: nunchux-ai/ComfyUI-nunchaku #94": (with_tensor(".diff_b", 8), "attn2_to_k.diff_b"),
    "another architecture: nunchux-ai/ComfyUI-nunchaku #94": (
        lambda tensors, _: {key.replace("lora_unet_", "diffusion_model.single_blocks."): tensor for key, tensor in tensors.items()},
        "diffusion_model.single_blocks.",
    ),
    "layers of SDXL: kohya-ss/sd-scripts #761": (
        lambda tensors, layer: {key.replace(layer, SDXL_BLOCK): tensor for key, tensor in tensors.items()},
        SDXL_BLOCK,
    ),
    "second text encoder of SDXL: huggingface/diffusers #4287": (
        with_tensor("lora_te2_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight", 4, 8),
        "lora_te2_text_model",
    ),
    "wider text: huggingface/diffusers #11286": (
        lambda tensors, layer: with_tensor(".lora_down.weight", 4, 2048)(tensors, layer),
        "attn2_to_k.lora_down.weight",
    ),
    "another kernel: rupeshs/fastsdcpu #82": (
        lambda tensors, _: with_tensor("lora_unet_conv_in.lora_up.weight", 4, 2, 1, 1)(
            with_tensor("lora_unet_conv_in.lora_down.weight", 2, 4, 5, 5)(tensors, ""), ""
        ),
        "lora_unet_conv_in.lora_down.weight",
    ),
    "ranks differ: huggingface/diffusers #6560": (with_tensor(".lora_up.weight", 8, 3), "attn2_to_k.lora_down.weight"),
    "no rank: vllm-project/vllm #11727": (
        lambda tensors, layer: with_tensor(".lora_up.weight", 8, 0)(with_tensor(".lora_down.weight", 0, 32)(tensors, layer), layer),
        "attn2_to_k.lora_down.weight",
    ),
    "rank too high: vllm-project/vllm #11727": (
        lambda tensors, layer: with_tensor(".lora_up.weight", 8, 300)(with_tensor(".lora_down.weight", 300, 32)(tensors, layer), layer),
        "its rank is 300",
    ),
    "half tensor is one row: huggingface/peft #1599": (with_tensor(".lora_down.weight", 32), "attn2_to_k.lora_down.weight"),
    "8-bit floats: bmaltais/kohya_ss #3105": (with_tensor(".lora_up.weight", 8, 4, dtype="float8_e4m3fn"), "attn2_to_k.lora_up.weight"),
    "integers: bmaltais/kohya_ss #3105": (with_tensor(".lora_up.weight", 8, 4, dtype="int64", value=1), "attn2_to_k.lora_up.weight"),
    "an embedding: sgl-project/sglang #3713": (
        lambda tensors, _: with_tensor("text_encoder.text_model.embeddings.token_embedding.lora_B.weight", 32, 2)(
            with_tensor("text_encoder.text_model.embeddings.token_embedding.lora_A.weight", 2, 514)(tensors, ""), ""
        ),
        "token_embedding.lora_A.weight",
    ),
    "the same layer in two formats: huggingface/diffusers #4529": (
        lambda tensors, layer: (
            tensors
            | {
                f"unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.lora_{half}.weight": tensors[
                    f"{layer}.lora_{kohya}.weight"
                ].clone()
                for half, kohya in (("A", "down"), ("B", "up"))
            }
        ),
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight",
    ),
}


@pytest.mark.parametrize(("change", "key"), INVALID.values(), ids=INVALID)
async def test_order_with_odd_file_fails_alone_and_names_the_key(rig: Rig, change: Callable[[Tensors, str], Tensors], key: str) -> None:
    from safetensors.torch import save_file

    layer = next(name for name in rig.kohya if "mid_block" in name and name.endswith("attn2_to_k.lora_down.weight")).partition(".")[0]
    file = rig.folder / f"{abs(hash(key))}-{len(list(rig.folder.iterdir()))}.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in change(rig.kohya, layer).items()}, file)
    outcome = await rig.draw_beside_neighbour(file)
    assert isinstance(outcome, PermanentError), outcome
    assert outcome.code == "lora-invalid", outcome
    assert key in str(outcome)
    assert file.name in str(outcome)


def safetensors(header: Any, body: bytes = b"") -> bytes:
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(data)) + data + body


PAIR = {
    "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight": {
        "dtype": "F32",
        "shape": [1, 32],
        "data_offsets": [0, 128],
    },
    "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.lora_B.weight": {
        "dtype": "F32",
        "shape": [8, 1],
        "data_offsets": [128, 160],
    },
}
BROKEN_FILES = {
    "empty: sgl-project/sglang #14022": b"",
    "empty header: huggingface/peft #1599": safetensors(b""),
    "page of an error: huggingface/peft #1599": b"<!DOCTYPE html><html>Sign in</html>",
    "pointer of Git LFS: huggingface/peft #1599": b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 3\n",
    "pickled: oobabooga/textgen #6066": b"PK\x03\x04" + b"\0" * 200,
    "cut short: kohya-ss/sd-webui-additional-networks #119": safetensors(PAIR, b"\0" * 149),
    "shape is a lie: camenduru/stable-diffusion-webui-colab #244": safetensors(
        {name: tensor | {"shape": [99, 32]} if "lora_A" in name else tensor for name, tensor in PAIR.items()}, b"\0" * 160
    ),
    "tensors overlap: camenduru/stable-diffusion-webui-colab #244": safetensors(
        {name: tensor | {"data_offsets": [0, 160]} for name, tensor in PAIR.items()}, b"\0" * 160
    ),
}


@pytest.mark.parametrize("data", BROKEN_FILES.values(), ids=BROKEN_FILES)
async def test_order_with_broken_file_fails_alone(rig: Rig, data: bytes) -> None:
    file = rig.folder / f"broken-{len(list(rig.folder.iterdir()))}.safetensors"
    file.write_bytes(data)
    outcome = await rig.draw_beside_neighbour(file)
    assert isinstance(outcome, PermanentError), outcome
    assert outcome.code == "lora-invalid", outcome
    assert file.name in str(outcome)


SOUND: dict[str, Callable[[Tensors], Tensors]] = {
    "kohya": lambda tensors: tensors,
    "convolutions (LoCon): bmaltais/kohya_ss #310": with_convolution,
    "names of the first Stable Diffusion: bmaltais/kohya_ss #3105": original_names,
    "linear pair of a 1x1 convolution: huggingface/diffusers #6560": with_flat_projection,
    "bfloat16: huggingface/diffusers #11286": half_precision,
    "DoRA: huggingface/diffusers #13998": with_magnitudes,
    "LoHa: KohakuBlueleaf/LyCORIS #27": as_loha,
    "LoKr: huggingface/diffusers #13137": as_lokr,
}


@pytest.mark.parametrize("change", SOUND.values(), ids=SOUND)
async def test_order_with_unusual_sound_file_is_drawn(rig: Rig, change: Callable[[Tensors], Tensors]) -> None:
    from safetensors.torch import save_file

    file = rig.folder / f"sound-{len(list(rig.folder.iterdir()))}.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in change(rig.kohya).items()}, file)
    outcome = await rig.draw_beside_neighbour(file)
    assert isinstance(outcome, ImageDone), outcome
    plain = await rig.draw(SMALL)
    assert outcome.images[0].sha256 != plain.images[0].sha256, "the LoRA has an effect"


@pytest.fixture
def engine(rig: Rig, tmp_path: Path) -> Any:
    opened = open_image_engine(rig.models, tmp_path / "shm")
    yield opened
    opened.close()


async def test_names_are_those_of_the_converter_of_diffusers(engine: DiffusionEngine) -> None:
    """Every layer of the UNet under kohya's names of the first Stable Diffusion: we find the layer that diffusers finds."""
    import torch
    from diffusers.loaders.lora_conversion_utils import _maybe_map_sgm_blocks_to_diffusers

    family = engine.models.default().family
    pipeline, table = family.pipeline, LayerTable(family).targets
    names = [
        name for component, name in table if component == "unet" and "_blocks_" in name and name.startswith(("input", "output", "middle"))
    ]
    assert len(names) > 40
    for name in names:
        if any(part in name for part in ("_op", "_layers_", "_conv", "connection", "input_blocks_0_")):
            continue  # diffusers maps these in a second step, and samplers not at all
        key = f"lora_unet_{name}.lora_down.weight"
        (mapped,) = _maybe_map_sgm_blocks_to_diffusers({key: torch.zeros(1)}, pipeline.unet.config)
        for theirs, ours in (("input_blocks", "down_blocks"), ("output_blocks", "up_blocks"), ("middle_block", "mid_block")):
            mapped = mapped.replace(theirs, ours)
        assert mapped == f"lora_unet_{table['unet', name][0].layer.replace('.', '_')}.lora_down.weight"


@pytest.mark.parametrize("error", [KeyError("lora_unet_x.alpha"), AssertionError("rank"), ZeroDivisionError(), RecursionError()])
async def test_any_error_while_a_file_is_read_is_of_its_order(
    rig: Rig, engine: DiffusionEngine, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """A converter raises whatever it likes (huggingface/diffusers #11943): the file that does it next is covered by no list of cases."""

    def fail(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(slots, "read_changes", fail)
    settings: dict[str, Any] = {"prompt": "a cat", "width": 64, "height": 64, "steps": 2}
    engine.submit(1, DiffusionRequest(**settings, seed=1, loras=(lora_file(rig.models, "a"),)))
    engine.submit(2, DiffusionRequest(**settings, seed=2))
    events = run_to_end(engine, [1, 2])
    assert isinstance(events[1], Failed)
    assert (events[1].code, events[1].kind) == ("lora-invalid", "permanent")
    assert isinstance(events[2], Finished)


async def test_error_in_a_shared_step_fails_only_the_order_that_causes_it(rig: Rig, engine: DiffusionEngine) -> None:
    """sgl-project/sglang #3713: an adapter passes every check, and its first step raises. The others of the batch go on."""
    unet = engine.models.default().family.pipeline.unet
    forward = unet.forward

    def fail_for_wide_prompt(sample: Any, *arguments: Any, encoder_hidden_states: Any, **options: Any) -> Any:
        if any(bool((row == marked).all()) for row in encoder_hidden_states):
            raise RuntimeError("size of tensor a (5) must match the size of tensor b (6)")
        return forward(sample, *arguments, encoder_hidden_states=encoder_hidden_states, **options)

    settings: dict[str, Any] = {"width": 64, "height": 64, "steps": 30}
    for number, prompt in enumerate(("one", "the faulty one", "three"), start=1):
        engine.submit(number, DiffusionRequest(prompt, number, **settings))
    while len(engine.groups.rows) < 3:
        engine.tick()
    marked = next(row.conditions[1]["text"] for row in engine.groups.rows if row.request_id == 2)[0]
    unet.forward = fail_for_wide_prompt
    events = run_to_end(engine, [1, 2, 3])
    assert isinstance(events[2], Failed)
    assert (events[2].code, events[2].kind, "tensor a" in events[2].message) == ("engine-failed", "permanent", False)
    assert isinstance(events[1], Finished)
    assert isinstance(events[3], Finished)
    assert not engine.groups.rows


async def test_requests_that_kill_the_process_open_no_breaker() -> None:
    """vllm-project/vllm #11727: requests that crash the engine are refused one by one, and sound ones are served between them."""
    unready: list[str | None] = []
    limits = ExecutorSettings(step_seconds=5.0, first_wait_seconds=20.0, longest_wait_seconds=20.0, failures_before_open=2)
    spec = EngineSpec("tests.support.faulty_engine:open_faulty_engine")
    async with open_executor(spec, limits, max_in_flight=20, capacity=1, set_unready=unready.append) as executor:
        await executor.ready()
        killers = [executor.run(FaultyRequest(fault="segfault")) for _ in range(3)]
        *errors, sound = await asyncio.gather(*killers, executor.run(FaultyRequest()), return_exceptions=True)
        assert [error.code for error in errors if isinstance(error, PermanentError)] == ["engine-crash"] * 3
        assert sound.result["steps"] == 3  # type: ignore[union-attr]
        assert executor.healthy
        assert unready == [None]


async def test_lora_file_of_an_order_is_checked_before_the_engine_queues_it(rig: Rig, engine: DiffusionEngine, tmp_path: Path) -> None:
    """huggingface/diffusers #11286: names and shapes are compared with the model's layers at once, without reading the weights."""
    from safetensors.torch import save_file

    wrong = {key: tensor.new_zeros(4, 2048) if key.endswith("lora_down.weight") else tensor for key, tensor in rig.kohya.items()}
    save_file(wrong, tmp_path / "wide.safetensors")
    request = DiffusionRequest("a cat", 1, width=64, height=64, loras=(LoraFile(tmp_path / "wide.safetensors", "0" * 64, 1.0, "wide"),))
    with pytest.raises(PermanentError, match="lora_down") as raised:
        engine.submit(1, request)
    assert raised.value.code == "lora-invalid"
    assert engine.idle_seconds() != 0
