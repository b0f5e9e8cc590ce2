"""Text encoders that wait in the main memory and are on the device only while a prompt is encoded, where its memory is short.

Their weights do not change, so that nothing is copied back: what is in the main memory stays there, and the copy on the device is dropped.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import structlog
import torch

from actors.engines.diffusion.batching import Condition
from actors.engines.diffusion.families.family import Family
from actors.engines.diffusion.memory import measure_modules, pipeline_modules
from actors.engines.diffusion.oom import run_catching_oom
from actors.engines.diffusion.requests import ResolvedRequest
from actors.engines.process.gpu import free_memory

log = structlog.get_logger()

OffloadMode = Literal["auto", "always", "never"]

FALLBACK = "text-encoder-offload"
"""Among the fallbacks that were applied."""
HOST = "cpu"


class TextEncoders:
    """Those of one pipeline, whose family's `encode` is wrapped. `offloaded`: they wait in the main memory."""

    def __init__(self, family: Family, device: str, mode: OffloadMode) -> None:
        self.family, self.device, self.mode, self.offloaded = family, device, mode, False
        parts = pipeline_modules(family.pipeline)
        self.encoders = {name: module for name, module in parts.items() if name.startswith("text_encoder")}
        self.size_bytes = measure_modules(self.encoders.values())
        family.encode = partial(self._encode, family.encode)  # type: ignore[method-assign]

    @property
    def can_wait(self) -> bool:
        """Not on a CPU, and not with packed weights, which are bound to the device that quantized them."""
        plain = all(type(weight) is torch.nn.Parameter for module in self.encoders.values() for weight in module.parameters())
        return self.mode != "never" and bool(self.encoders) and plain and torch.device(self.device).type != HOST

    def place(self) -> None:
        """Move all parts to the device. The text encoders stay behind with `always`, and with `auto` where memory runs out."""
        for name, module in pipeline_modules(self.family.pipeline).items():
            if name not in self.encoders:
                module.to(self.device)
        if self.mode == "always" and self.can_wait:
            self.offload("IMAGE_OFFLOAD_TEXT_ENCODERS is always")
            return
        _, out_of_memory = run_catching_oom(lambda: [module.to(self.device) for module in self.encoders.values()])
        if out_of_memory and not self.offload("the model does not fit into the device's memory"):
            raise MemoryError(f"the model does not fit into the memory of {self.device}")

    def offload(self, cause: str) -> bool:
        """Whether they wait in the main memory from now on; they may do so already."""
        if not self.can_wait or self.offloaded:
            return False
        for module in self.encoders.values():
            module.to(HOST)
        free_memory()
        self.offloaded = True
        log.info("text_encoders.offloaded", bytes=self.size_bytes, cause=cause)
        return True

    def offload_as_fallback(self, applied: set[str]) -> str | None:
        """The fallback when memory runs out: its name, or None when it cannot help. Applied once for a model."""
        if not self.offload("memory ran out"):
            return None
        applied.add(FALLBACK)
        return FALLBACK

    def offload_if_short(self, draw_picture: Callable[[], None]) -> None:
        """With `auto` on CUDA: draw a picture, and offload where the memory that is left is less than the picture took."""
        if self.mode != "auto" or self.offloaded or not self.can_wait or torch.device(self.device).type != "cuda":
            return
        _, out_of_memory = run_catching_oom(partial(self._compare, draw_picture))
        if out_of_memory:
            self.offload("a picture does not fit beside them")

    def _compare(self, draw_picture: Callable[[], None]) -> None:
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        draw_picture()
        needed = torch.cuda.max_memory_allocated(self.device) - before
        free_memory()
        free, _ = torch.cuda.mem_get_info(self.device)
        if free < needed:
            self.offload(f"{free} bytes are free, a picture takes {needed}")

    def clear(self) -> None:
        """Drop all references to the model."""
        self.encoders.clear()

    def _encode(self, original: Callable[[ResolvedRequest], Sequence[Condition]], request: ResolvedRequest) -> list[Condition]:
        if not self.offloaded:
            return list(original(request))
        with copied_to(self.device, self.encoders.values()):
            return list(original(request))


@contextmanager
def copied_to(device: str, modules: Any) -> Iterator[None]:
    """Modules whose weights are on `device` inside the block; afterwards they have their own again. Tied weights are copied once."""
    tables = [table for module in modules for part in module.modules() for table in (part._parameters, part._buffers)]
    own = [(table, name, tensor) for table in tables for name, tensor in table.items() if tensor is not None]
    copies: dict[int, Any] = {}
    try:
        for table, name, tensor in own:
            if id(tensor) not in copies:
                copy = tensor.detach().to(device)
                copies[id(tensor)] = torch.nn.Parameter(copy, requires_grad=False) if isinstance(tensor, torch.nn.Parameter) else copy
            table[name] = copies[id(tensor)]
        yield
    finally:
        for table, name, tensor in own:
            table[name] = tensor
