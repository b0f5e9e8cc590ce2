"""Schedulers by name. Each image has its own, since a scheduler keeps the state of one image."""

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
"""Name → class in diffusers, and options that override the checkpoint's configuration."""


def build_scheduler(name: str, config: Any) -> Any:
    """A new scheduler with the checkpoint's noise schedule."""
    import diffusers

    kind, options = SCHEDULERS[name]
    return getattr(diffusers, kind).from_config(config, **options)
