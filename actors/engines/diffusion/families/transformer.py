"""What families with a transformer share: prompts that are read whole up to a limit, and the schedule of flow matching."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy
import torch

from actors.engines.diffusion.batching import Condition
from actors.engines.diffusion.families.family import EditKind, Family
from actors.engines.diffusion.requests import ResolvedRequest
from bus.errors import PermanentError

ENCODERS = {"tokenizer": "text_encoder", "tokenizer_2": "text_encoder_2", "tokenizer_3": "text_encoder_3"}
FLOW_SCHEDULER = "FlowMatchEulerDiscreteScheduler"


class TransformerFamily(Family):
    """A transformer that reads squares of 2 × 2 latents. Prompts are encoded one by one, each as it would be alone."""

    latent_channels = 16
    patch = 2
    side_multiple = 16
    no_negative: ClassVar[str] = ""
    """What stands for the negative prompt of a guided order that has none."""

    # -- a checkpoint

    def check(self) -> None:
        for tokenizer_part, encoder_part in ENCODERS.items():
            tokenizer, encoder = (getattr(self.pipeline, part, None) for part in (tokenizer_part, encoder_part))
            if tokenizer is None or encoder is None:
                continue
            known = encoder.get_input_embeddings().num_embeddings
            if len(tokenizer) > known:
                raise ValueError(
                    f"the {tokenizer_part} has {len(tokenizer)} tokens, the {encoder_part} {known}: they are of different models"
                )
        config = self.pipeline.vae.config
        check_equal("the VAE's latent channels", config.get("latent_channels") or config.get("z_dim"), self.name, self.latent_channels)
        for what, (given, read) in self.widths().items():
            check_equal(f"the {what}", given, "what the transformer reads", read)

    @abstractmethod
    def widths(self) -> Mapping[str, tuple[int, int]]:
        """What the transformer reads → its width as the other parts give it, and in the transformer's configuration."""

    # -- an order

    def encode(self, request: ResolvedRequest) -> list[Condition]:
        prompts = {"prompt": request.prompt}
        if self.is_guided(request):
            prompts = {"negative prompt": request.negative_prompt or self.no_negative, **prompts}
        for which, prompt in prompts.items():
            count, limit = self.count_prompt(prompt)
            if count > limit:
                message = f"the {which} has {count} tokens; {self.name} reads at most {limit}: shorten it"
                raise PermanentError("prompt-too-long", message)
        return [{name: self.place(tensor) for name, tensor in self.encode_prompt(prompt).items()} for prompt in prompts.values()]

    def place(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor on the denoiser's device; numbers that are no integers in its dtype."""
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else tensor.dtype)

    @abstractmethod
    def count_prompt(self, prompt: str) -> tuple[int, int]:
        """The tokens of a prompt with those that the model puts around it, and how many it can read."""

    @abstractmethod
    def encode_prompt(self, prompt: str) -> Condition:
        """One half's condition, in the dtype and on the device of the text encoders."""


class FlowFamily(TransformerFamily):
    """Flow matching: the latents of an order's picture and noise are mixed by the noise level, which the scheduler steps down to 0.

    At strength 1 the first level is 1, so that nothing of the picture is left.
    """

    edits: ClassVar[frozenset[EditKind]] = frozenset({"img2img", "inpaint"})
    max_shift: ClassVar[float] = 1.15
    """Where the scheduler's configuration has none."""

    def check(self) -> None:
        super().check()
        if (kind := type(self.pipeline.scheduler).__name__) != FLOW_SCHEDULER:
            raise ValueError(f"its scheduler is a {kind}; {self.name} is drawn with {FLOW_SCHEDULER} (scheduler/scheduler_config.json)")

    def check_request(self, request: ResolvedRequest) -> None:
        """A schedule that is stretched between its first and its last level needs both."""
        if self.pipeline.scheduler.config.get("shift_terminal") and request.steps < 2:
            raise PermanentError("parameter-unsupported", f"{self.name} needs at least 2 steps")

    def build_schedule(self, request: ResolvedRequest) -> Any:
        """With the checkpoint's own scheduler. Larger pictures stay longer at high levels of noise where it has dynamic shifting."""
        scheduler = type(self.pipeline.scheduler).from_config(self.pipeline.scheduler.config)
        levels = self.noise_levels(request.steps)
        steps = {"num_inference_steps": request.steps} if levels is None else {"sigmas": levels}
        scheduler.set_timesteps(**steps, mu=self.shift(request), device=self.device)
        return scheduler

    def noise_levels(self, steps: int) -> Sequence[float] | None:
        """Those of each step before they are shifted. None: the scheduler's own."""
        return list(numpy.linspace(1.0, 1 / steps, steps))

    def shift(self, request: ResolvedRequest) -> float:
        """`mu` of dynamic shifting, linear in the number of tokens of the picture. Schedulers without dynamic shifting ignore it."""
        config = self.pipeline.scheduler.config
        few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        low, high = config.get("base_shift", 0.5), config.get("max_shift", self.max_shift)
        slope = (high - low) / (many - few)
        return float(self.count_tokens(request) * slope + low - slope * few)


def check_equal(one: str, given: Any, other: str, read: Any) -> None:
    if given != read:
        raise ValueError(f"{one}: {given}; {other}: {read}; they are of different models")


def count_tokens(tokenizer: Any, text: str) -> int:
    """With the tokens that the tokenizer adds at the begin and end."""
    return len(tokenizer(text, verbose=False).input_ids)
