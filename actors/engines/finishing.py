"""From latents to a PNG, in a thread of its own: the others' steps do not wait for a decode."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from actors.engines.image_work import ImageMade, ImageWork
from actors.engines.png import write_png
from actors.engines.protocol import Failed, Finished, MemoryExhausted
from actors.engines.rungs import Rungs, slice_vae

Developed = Finished | Failed


@dataclass(eq=False)
class Undeveloped:
    """One order whose steps are done. `latents` in the order of the seeds; `texts` of all its pictures."""

    ticket: int
    work: ImageWork
    pipeline: Any
    latents: list[Any]
    texts: dict[str, str]
    largest_batch: int
    rungs: tuple[str, ...]
    sliced: set[str]


class Darkroom:
    """Takes orders with `put`; what became of them is in `done`, and `wake` is called. Nobody but the thread touches the VAE."""

    def __init__(self, spool: Path, rungs: Rungs, *, wake: Callable[[], None], seconds: float) -> None:
        self.spool, self.rungs, self.wake, self.seconds = spool, rungs, wake, seconds
        self.done: deque[Developed] = deque()
        self.dropped: set[int] = set()
        self.exhausted: str | None = None
        self._began: float | None = None
        self._orders: SimpleQueue[Undeveloped | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="darkroom", daemon=True)
        self._thread.start()

    def put(self, order: Undeveloped) -> None:
        self._orders.put(order)

    def close(self) -> None:
        self._orders.put(None)
        self._thread.join(timeout=5)

    def check(self) -> None:
        """Raise when the thread can go no further, or has been at one order for too long: only a fresh process helps."""
        if self.exhausted:
            raise MemoryExhausted(self.exhausted)
        if self._began is not None and time.monotonic() - self._began > self.seconds:
            raise RuntimeError(f"decoding one order took longer than {self.seconds:g} s")

    def collect(self) -> list[Developed]:
        events: list[Developed] = []
        while self.done:
            event = self.done.popleft()
            if event.ticket in self.dropped:
                self.dropped.discard(event.ticket)
                for file in getattr(event, "parcels", ()):
                    file.unlink(missing_ok=True)
            else:
                events.append(event)
        return events

    def _work(self) -> None:
        while order := self._orders.get():
            self._began = time.monotonic()
            try:
                self.done.append(self._develop(order))
            except MemoryExhausted as error:
                self.exhausted = str(error)
            except Exception as error:
                self.done.append(Failed(order.ticket, "temporary", "decode-failed", f"the pictures could not be decoded: {error!r}"))
            self._began = None
            self.wake()

    def _develop(self, order: Undeveloped) -> Developed:
        import torch

        files, flags = [], []
        for index, latents in enumerate(order.latents):
            if order.ticket in self.dropped:
                break
            if not bool(torch.isfinite(latents).all()):
                text = "the model's numbers ran out of their range: try another dtype (IMAGE_DTYPE)"
                return Failed(order.ticket, "temporary", "picture-not-finite", text)
            whole = self.rungs.try_hard(partial(decode, order.pipeline, latents), partial(slice_vae, order.pipeline, order.sliced))
            pixels = whole[: order.work.height, : order.work.width]
            flags += flag(order.pipeline, pixels)
            seed = order.work.seed + index
            files.append(self.spool / f"{order.ticket}-{index}.png")
            write_png(files[-1], pixels, {**order.texts, "seed": str(seed)})
        seeds = tuple(order.work.seed + index for index in range(order.work.count))
        made = ImageMade(seeds, order.texts, (*order.rungs, *sorted(order.sliced)), order.largest_batch, tuple(flags))
        return Finished(order.ticket, made, tuple(files))


def latent_size(pipeline: Any, height: int, width: int) -> tuple[int, int]:
    """Enough latents for the picture. Where the VAE's step does not divide a side, what is too much is cut off after decoding."""
    step = pipeline.vae_scale_factor
    return -(-height // step), -(-width // step)


def decode(pipeline: Any, latents: Any) -> Any:
    """Height × width × 3 bytes, rounded as the stock pipeline does."""
    import torch

    with torch.inference_mode():
        image = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor, return_dict=False)[0]
        values = (image[0] / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).float().cpu().numpy()
    return (values * 255).round().astype("uint8")


def flag(pipeline: Any, pixels: Any) -> list[bool]:
    """What the checkpoint's safety checker says. The picture stays as it is: the checker itself would paint it black."""
    if pipeline.safety_checker is None:
        return []
    import torch

    seen = pipeline.feature_extractor(pixels, return_tensors="pt").to(pipeline.device)
    with torch.inference_mode():
        _, flags = pipeline.safety_checker(images=pixels[None].copy(), clip_input=seen.pixel_values.to(pipeline.unet.dtype))
    return [bool(flags[0])]
