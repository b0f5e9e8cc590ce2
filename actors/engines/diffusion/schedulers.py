"""Schedulers by name. Each picture has one of its own, since a scheduler keeps the state of one picture's way."""

from typing import Any

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "lms": ("LMSDiscreteScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
"""Name → class in diffusers, and what is set beside the checkpoint's own configuration."""


def build_scheduler(name: str, config: Any) -> Any:
    """A fresh scheduler with the checkpoint's noise schedule."""
    import diffusers

    kind, options = SCHEDULERS[name]
    return getattr(diffusers, kind).from_config(config, **options)
