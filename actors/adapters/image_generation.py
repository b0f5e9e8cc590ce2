"""The queue `image_generation`: translates an order in any of its three public forms into an `image` command with a routing slip.

The steps are image, watermark, upload and webhook; webhooks also report progress and failure to the backend.
"""

import json
import re
from collections.abc import Sequence
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from pydantic import ValidationError

from actors.imaging.fonts import FontFace, check_drawable, find_fonts
from actors.settings import OrderSettings, WatermarkSettings, WebhookSettings
from bus.actor import Adapter, IgnoredMessage, InvalidMessage, TranslatedCommand
from bus.errors import PermanentError
from bus.ids import derived_id, former_id_header, public_id
from bus.json_text import storable_json
from bus.net.ssrf import has_private_ip_host
from contracts import broker_names
from contracts.image import Image
from contracts.image_generation import ASPECT_RATIO_SIZES, FlatOrder, NestedOrder, OrderData, Parameters, read_generation_id
from contracts.slip import Slip, SlipStep
from contracts.watermark import Signature
from contracts.wire import Step


def build_adapter() -> Adapter:
    read_order = partial(translate, webhooks=WebhookSettings(), orders=OrderSettings(), fonts=find_fonts(WatermarkSettings().fonts))
    return Adapter(name="image_generation", queue=broker_names.IMAGE_GENERATION_QUEUE, translate=read_order)


def translate(body: bytes, webhooks: WebhookSettings, orders: OrderSettings, fonts: Sequence[FontFace] = ()) -> TranslatedCommand:
    """One order. Raises InvalidMessage, with a `failed` webhook when the body has a generation id. `fonts`: by which a name is checked.

    Raises IgnoredMessage for a message of another type: a failure would be a refund to whoever sent it.
    """
    message = _parse_json(body)
    generation_id = read_generation_id(message)
    try:
        order, base_url = _parse_order(message)
        _check_artist_name(order, fonts)
        return _build_command(order, base_url, webhooks, orders)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in problem["loc"])
        raise InvalidMessage(
            _error_code(field), f"{field or 'order'}: {problem['msg']}", notification=_failure_webhook(generation_id)
        ) from None
    except InvalidMessage as error:
        raise InvalidMessage(error.code, str(error), notification=_failure_webhook(generation_id)) from None


def _parse_json(body: bytes) -> Any:
    try:
        return json.loads(storable_json(body))
    except (ValueError, RecursionError) as error:
        raise InvalidMessage("invalid-json", f"the body is not JSON: {error}") from None


def _parse_order(message: Any) -> tuple[OrderData, str | None]:
    """Forms A and C have `data`; form B is flat and is converted."""
    if not isinstance(message, dict):
        raise InvalidMessage("invalid-message", f"an order is a JSON object, this is a {type(message).__name__}")
    if "data" not in message and "prompt_tags" in message:
        flat = FlatOrder.model_validate(message)
        fields = flat.model_dump(include=set(OrderData.model_fields))
        return OrderData(**fields, lora_path=flat.lora_model_url), _origin(flat.webhook_url)
    if message.get("type", "image_generation") != "image_generation":
        raise IgnoredMessage(f"type is {str(message['type'])[:100]!r}; this queue accepts 'image_generation'")
    nested = NestedOrder.model_validate({"type": "image_generation", **message})
    return nested.data, _origin(nested.callback_url)


def _build_command(order: OrderData, base_url: str | None, webhooks: WebhookSettings, orders: OrderSettings) -> TranslatedCommand:
    _check_backend_address(base_url, webhooks)
    signature = _signature(order, orders)
    image = Image.model_validate(_image_fields(order, orders) | {"signature": signature if signature.image_uri else None})
    name = f"gen-{order.generation_id}"
    variables = {
        "generation_id": order.generation_id,
        "base_url": base_url,
        "name": name,
        "artist": order.artist_name,
        "prompt_tags": order.prompt_tags,
        "signature": signature.model_dump(mode="json", exclude_none=True),
    }
    slip = Slip(
        itinerary=[SlipStep(step=Step.WATERMARK), SlipStep(step=Step.UPLOAD), SlipStep(step=Step.WEBHOOK, arguments={"kind": "complete"})],
        variables={key: value for key, value in variables.items() if value is not None},
        on_progress=SlipStep(step=Step.WEBHOOK, arguments={"kind": "progress"}),
        on_failure=SlipStep(step=Step.WEBHOOK, arguments={"kind": "failed"}),
    )
    body = image.model_copy(update={"slip": slip}).model_dump(mode="json", exclude_defaults=True)
    headers = former_id_header(_former_message_id(order.generation_id))
    return TranslatedCommand(Step.IMAGE, body, _message_id(order.generation_id), _job_id(order.generation_id), headers)


def _check_artist_name(order: OrderData, fonts: Sequence[FontFace]) -> None:
    """A name that no font can draw is refused before anything is drawn, unless a picture is the signature."""
    try:
        check_drawable("" if order.signature_path else order.artist_name or "", fonts)
    except PermanentError as error:
        raise InvalidMessage(error.code, f"artist_name: {error}") from None


def _check_backend_address(base_url: str | None, settings: WebhookSettings) -> None:
    """A private address in a message is refused before any work, unless it is the configured backend's."""
    allowed = base_url == _origin(settings.backend_api_url) or settings.allow_private_addresses
    if base_url and has_private_ip_host(base_url) and not allowed:
        raise InvalidMessage("webhook-address-refused", f"{base_url} is a private address; only BACKEND_API_URL may name one")


def _image_fields(order: OrderData, orders: OrderSettings) -> dict[str, Any]:
    parameters = order.parameters or Parameters()
    width, height = _size(order, parameters)
    if not 1 <= order.count <= 4:
        raise InvalidMessage("invalid-count", f"an order is for 1 to 4 images, this one is for {order.count}")
    seed = order.seed if order.seed is not None else parameters.seed
    image = {
        "prompt": order.prompt or ", ".join(order.prompt_tags),
        "negative_prompt": order.negative_prompt,
        "width": width,
        "height": height,
        "steps": order.num_inference_steps or parameters.steps,
        "guidance_scale": parameters.cfg_scale,
        "seed": seed,
        "count": order.count,
    }
    if order.lora_path:
        required = orders.assets_required and not order.allow_base_model
        image["lora"] = {"uri": order.lora_path, "required": required, "alpha": order.lora_alpha}
    return image


def _size(order: OrderData, parameters: Parameters) -> tuple[int, int]:
    """Width and height in pixels, from `aspect_ratio`, `parameters.size`, or `parameters.width` and `height`."""
    if order.aspect_ratio is not None:
        if order.aspect_ratio not in ASPECT_RATIO_SIZES:
            raise InvalidMessage("unknown-size", f"aspect_ratio is {order.aspect_ratio!r}; known are {', '.join(ASPECT_RATIO_SIZES)}")
        return ASPECT_RATIO_SIZES[order.aspect_ratio]
    if parameters.size is not None:
        match = re.fullmatch(r"(\d{2,4})x(\d{2,4})", parameters.size)
        if not match:
            raise InvalidMessage("unknown-size", f"size is {parameters.size!r}; it is written as '512x512'")
        return int(match[1]), int(match[2])
    return parameters.width or 512, parameters.height or 512


def _signature(order: OrderData, orders: OrderSettings) -> Signature:
    asset = {"text": order.artist_name, "image_uri": order.signature_path or None, "required": orders.assets_required}
    return Signature.model_validate(order.signature_config.model_dump() | asset)


def _origin(url: str | None) -> str | None:
    """Scheme and host of an address, without its path; None for one that is not readable, in place of which BACKEND_API_URL is called."""
    try:
        parts = urlsplit(url or "")
    except ValueError:
        return None
    return f"{parts.scheme}://{parts.netloc}" if parts.scheme and parts.netloc else None


def _failure_webhook(generation_id: int | None) -> TranslatedCommand | None:
    if generation_id is None:
        return None
    body = {"kind": "failed", "generation_id": generation_id}
    message_id = derived_id(_message_id(generation_id), "unreadable")
    headers = former_id_header(public_id(_former_message_id(generation_id), "unreadable"))
    return TranslatedCommand(Step.WEBHOOK, body, message_id, _job_id(generation_id), headers)


def _error_code(field: str) -> str:
    return "unknown-size" if field in {"width", "height"} else "invalid-message"


def _message_id(generation_id: int) -> str:
    return derived_id(broker_names.IMAGE_GENERATION_QUEUE, generation_id)


def _former_message_id(generation_id: int) -> str:
    """The message id of earlier releases, recognised for one release."""
    return public_id(broker_names.IMAGE_GENERATION_QUEUE, generation_id)


def _job_id(generation_id: int) -> str:
    return f"generation-{generation_id}"
