"""The image step's arguments over HTTP: in place of the claim on a picture, a client may send the picture itself, as base64."""

from functools import cache
from typing import Annotated, Any

from pydantic import BaseModel, Field, create_model

from contracts.claim import Claim
from contracts.image import Control, Edit, Image
from gateway.strict_model import strict_model

PICTURES = {"edit": ("image", "mask"), "control": ("image",)}
"""The fields that are pictures, by argument."""
InlinePicture = Annotated[
    str, Field(min_length=1, description="base64, with or without a `data:` prefix: it is stored, and becomes a claim.")
]
_PictureField: Any = strict_model(Claim) | InlinePicture
_EditBase: Any = strict_model(Edit, without=("image", "mask"))
_ControlBase: Any = strict_model(Control, without=("image",))


class EditFields(_EditBase):  # type: ignore[misc]
    """The picture that an order starts from."""

    image: _PictureField
    mask: _PictureField | None = Edit.model_fields["mask"]


class ControlFields(_ControlBase):  # type: ignore[misc]
    """A picture, such as edges or a pose, that a ControlNet follows."""

    image: _PictureField


@cache
def image_fields(*, without: tuple[str, ...] = (), optional: bool = False) -> type[BaseModel]:
    """The fields of an image command but its slip, as `strict_model` makes them; a picture is a claim, or base64."""
    plain = strict_model(Image, without=("slip", *PICTURES, *without), optional=optional)
    return create_model(plain.__name__, __base__=plain, edit=(EditFields | None, None), control=(ControlFields | None, None))
