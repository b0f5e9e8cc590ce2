"""An order with every parameter that its model's family decides, or the reason why this model cannot draw it."""

import math
from dataclasses import fields
from typing import Any

from actors.engines.diffusion.families.family import Family
from actors.engines.diffusion.requests import DiffusionRequest, InputPicture, ResolvedRequest
from bus.errors import PermanentError

LONGEST_SIDE = 2048
SHORTEST_SIDE = 64
AnyFamily = Family | type[Family]
"""A loaded model's, or the class of one that is not loaded."""


def resolve_request(request: DiffusionRequest, family: AnyFamily, side: int) -> ResolvedRequest:
    """`side`: pixels of the checkpoint's own size, which may also have defaults of its own when it is loaded.

    Raises PermanentError("size-unsupported" · "scheduler-unsupported" · "edit-unsupported" · "parameter-unsupported").
    """
    scheduler = request.scheduler or family.defaults.scheduler
    if scheduler not in family.schedulers:
        known = ", ".join(family.schedulers)
        raise PermanentError("scheduler-unsupported", f"{family.name} has no scheduler {scheduler!r}; it has {known}")
    if request.true_cfg_scale is not None and not family.takes_true_cfg:
        raise PermanentError("parameter-unsupported", f"{family.name} has no true_cfg_scale: its guidance is guidance_scale")
    check_edits(request, family)
    width, height = resolve_size(request, family, side)
    steps = family.defaults.steps if request.steps is None else request.steps
    guidance = family.defaults.guidance_scale if request.guidance_scale is None else request.guidance_scale
    given: dict[str, Any] = {field.name: getattr(request, field.name) for field in fields(DiffusionRequest)}
    decided = {"width": width, "height": height, "steps": steps, "guidance_scale": guidance, "scheduler": scheduler}
    return ResolvedRequest(**given | decided)


def check_edits(request: DiffusionRequest, family: AnyFamily) -> None:
    kind = "control" if request.control else "inpaint" if request.edit and request.edit.mask else "img2img" if request.edit else None
    if request.edit and request.control:
        raise PermanentError("edit-unsupported", "an order has either a picture to start from or one to follow (control), not both")
    if kind and kind not in family.edits:
        known = ", ".join(sorted(family.edits)) or "none"
        raise PermanentError("edit-unsupported", f"{family.name} has no {kind}; its edits: {known}")


def resolve_size(request: DiffusionRequest, family: AnyFamily, side: int) -> tuple[int, int]:
    """What is not given is as the order's picture, rounded down to what the family can, else the checkpoint's own size."""
    picture = (request.edit or request.control).image if request.edit or request.control else None  # type: ignore[union-attr]
    width, height = own_size(picture, family.side_multiple, side)
    width, height = request.width or width, request.height or height
    multiple = family.side_multiple
    if width % multiple or height % multiple:
        raise PermanentError("size-unsupported", f"{width}×{height}: with {family.name} both sides must be multiples of {multiple}")
    return width, height


def own_size(picture: InputPicture | None, multiple: int, side: int) -> tuple[int, int]:
    """Width and height of an order that names none."""
    if picture is None:
        return side, side
    scale = min(1.0, LONGEST_SIDE / max(picture.width, picture.height))
    width, height = (max(SHORTEST_SIDE, int(length * scale) // multiple * multiple) for length in (picture.width, picture.height))
    return width, height


def check_loaded(request: ResolvedRequest, family: Family) -> None:
    """What only the loaded checkpoint knows. Raises PermanentError("edit-unsupported" · "size-unsupported" · "strength-too-low")."""
    if family.mask_beside and not (request.edit and request.edit.mask):
        raise PermanentError("edit-unsupported", "this checkpoint is for inpainting: an order needs a picture and a mask (edit)")
    if edit := request.edit:
        multiple = family.vae_scale * family.patch
        if request.width % multiple or request.height % multiple:
            message = f"{request.width}×{request.height}: to edit a picture with this checkpoint both sides must be multiples of {multiple}"
            raise PermanentError("size-unsupported", message)
        if family.first_step(request, edit) >= request.steps:
            least = math.ceil(1000 / request.steps) / 1000
            raise PermanentError(
                "strength-too-low", f"a strength of {edit.strength:g} makes none of {request.steps} steps: it must be at least {least:g}"
            )
    family.check_request(request)
