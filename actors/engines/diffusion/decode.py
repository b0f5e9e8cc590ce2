"""Decodes latents into PNG files in a thread, so that denoising steps do not wait for it."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

import structlog

from actors.engines.diffusion.oom import OomFallbacks, enable_vae_slicing
from actors.engines.diffusion.png import write_png
from actors.engines.diffusion.requests import DiffusionRequest, DiffusionResult
from actors.engines.process.protocol import Failed, Finished, MemoryExhausted

log = structlog.get_logger()

DecodeResult = Finished | Failed


class PictureNotFinite(Exception):
    """The latents or the decoded picture have values that are no numbers: drawn as they are, they would be black."""


@dataclass(eq=False)
class PendingDecode:
    """One order whose steps are done. `latents`: one tensor per image, in the order of the seeds; `png_metadata` is for all images."""

    request_id: int
    request: DiffusionRequest
    pipeline: Any
    latents: list[Any]
    png_metadata: dict[str, str]
    left_out: dict[str, int]
    largest_batch: int
    oom_fallbacks: tuple[str, ...]
    applied_fallbacks: set[str]


class DecodeThread:
    """Takes orders with `put`; appends to `results` and calls `request_tick`. No other thread uses the VAE."""

    def __init__(self, shm_dir: Path, oom: OomFallbacks, *, request_tick: Callable[[], None], timeout_seconds: float) -> None:
        self.shm_dir, self.oom, self.request_tick, self.timeout_seconds = shm_dir, oom, request_tick, timeout_seconds
        self.results: deque[DecodeResult] = deque()
        self.cancelled_ids: set[int] = set()
        self.out_of_memory: str | None = None
        self._started_at: float | None = None
        self._queue: SimpleQueue[PendingDecode | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)
        self._thread.start()

    def put(self, order: PendingDecode) -> None:
        self._queue.put(order)

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join(timeout=5)

    def raise_if_stuck(self) -> None:
        """Raises MemoryExhausted, or RuntimeError when one order takes too long: only a new process helps."""
        if self.out_of_memory:
            raise MemoryExhausted(self.out_of_memory)
        if self._started_at is not None and time.monotonic() - self._started_at > self.timeout_seconds:
            raise RuntimeError(f"decoding one order took longer than {self.timeout_seconds:g} s")

    def take_results(self) -> list[DecodeResult]:
        """The results since the last call, without those of cancelled orders, whose files are deleted."""
        events: list[DecodeResult] = []
        while self.results:
            event = self.results.popleft()
            if event.request_id in self.cancelled_ids:
                self.cancelled_ids.discard(event.request_id)
                for file in event.output_files if isinstance(event, Finished) else ():
                    file.unlink(missing_ok=True)
            else:
                events.append(event)
        return events

    def _run(self) -> None:
        while order := self._queue.get():
            self._started_at = time.monotonic()
            try:
                self.results.append(self._decode_order(order))
            except MemoryExhausted as error:
                self.out_of_memory = str(error)
            except PictureNotFinite as error:
                kind: Literal["permanent", "temporary"] = "permanent" if order.request.lora else "temporary"
                self.results.append(Failed(order.request_id, kind, "picture-not-finite", str(error)))
            except Exception as error:
                # The text may quote anything, such as a path or a request: it is logged, where secrets are masked, and not sent.
                log.exception("image.decode_failed", request_id=order.request_id)
                message = f"the images could not be decoded ({type(error).__name__}); the log of the model process has the cause"
                self.results.append(Failed(order.request_id, "temporary", "decode-failed", message))
            self._started_at = None
            self.request_tick()

    def _decode_order(self, order: PendingDecode) -> DecodeResult:
        import torch

        files, flags = [], []
        for index, latents in enumerate(order.latents):
            if order.request_id in self.cancelled_ids:
                break
            if not bool(torch.isfinite(latents).all()):
                cause = "its LoRA is too strong, or another dtype is needed" if order.request.lora else "try another dtype"
                raise PictureNotFinite(f"the latents are not finite: {cause} (IMAGE_DTYPE)")
            decoded = self.oom.run_with_fallbacks(
                partial(decode_latents, order.pipeline, latents), partial(enable_vae_slicing, order.pipeline, order.applied_fallbacks)
            )
            pixels = decoded[: order.request.height, : order.request.width]
            flags += safety_flags(order.pipeline, pixels)
            seed = order.request.seed + index
            files.append(self.shm_dir / f"{order.request_id}-{index}.png")
            write_png(files[-1], pixels, {**order.png_metadata, "seed": str(seed)})
        seeds = tuple(order.request.seed + index for index in range(order.request.count))
        fallbacks = (*order.oom_fallbacks, *sorted(order.applied_fallbacks))
        result = DiffusionResult(seeds, order.png_metadata, fallbacks, order.largest_batch, tuple(flags), **order.left_out)
        return Finished(order.request_id, result, tuple(files))


def latent_size(pipeline: Any, height: int, width: int) -> tuple[int, int]:
    """Height and width of the latents, rounded up where the VAE's scale does not divide a side; the image is cropped after decoding."""
    scale = pipeline.vae_scale_factor
    return -(-height // scale), -(-width // scale)


def decode_latents(pipeline: Any, latents: Any) -> Any:
    """The image as height × width × 3 bytes, rounded as in the stock pipeline. `latents`: 1 × 4 × h × w. Raises PictureNotFinite."""
    import torch

    with torch.inference_mode():
        image = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor, return_dict=False)[0]
        if not bool(torch.isfinite(image).all()):
            dtype = str(image.dtype).removeprefix("torch.")
            raise PictureNotFinite(f"the output of the VAE is not finite as {dtype}: try another dtype (IMAGE_DTYPE), such as float32")
        values = (image[0] / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).float().cpu().numpy()
    return (values * 255).round().astype("uint8")


def safety_flags(pipeline: Any, pixels: Any) -> list[bool]:
    """The safety checker's flag, if there is a checker. It gets a copy of the image, since it paints flagged images black."""
    if pipeline.safety_checker is None:
        return []
    import torch

    features = pipeline.feature_extractor(pixels, return_tensors="pt").to(pipeline.device)
    with torch.inference_mode():
        _, flags = pipeline.safety_checker(images=pixels[None].copy(), clip_input=features.pixel_values.to(pipeline.unet.dtype))
    return [bool(flags[0])]
