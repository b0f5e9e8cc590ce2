"""The table of decoders: for each call of a decoding function that reads input from outside, the hostile inputs and what is called."""

import asyncio
import base64
import gzip
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote

from pydantic import ValidationError
from pydantic_core import from_json

from tests.support import hostile_files as files

CPU_SECONDS, WALL_SECONDS, MEMORY_BYTES = 5.0, 60.0, 3 << 30
"""Of one hostile input; the busiest takes a fifth of the time. Memory is the address space of the process that runs them all."""


@dataclass(frozen=True)
class Budget:
    """`call` reads each of `inputs`, or refuses it with an error that is made for it: no RecursionError, MemoryError or TypeError."""

    call: Callable[[Any], Any]
    inputs: Callable[[], Iterable[Any]]


@dataclass(frozen=True)
class Trusted:
    """Not from outside, or read elsewhere before; `reason` says by whom it was written."""

    reason: str


def read_order(data: bytes) -> None:
    from actors.adapters.image_generation import _parse_json

    _parse_json(data)


def read_document(data: bytes) -> None:
    from actors.attachments.documents import DocumentReader
    from actors.settings import AttachmentSettings

    asyncio.run(DocumentReader(AttachmentSettings(read_seconds=5.0, memory_bytes=1 << 28)).extract_text(data))


def read_base64(text: str) -> None:
    from bus.net.data_urls import decode_base64

    codes = {"broken_code": "broken", "large_code": "large", "label": "it"}
    asyncio.run(decode_base64(text, max_bytes=10 << 20, **codes))


def compare_ad_copy(text: str) -> None:
    """A picture with as many lines as the reader finds."""
    from actors.vision.ocr import MAX_READ_LINES
    from actors.vision.ocr_evidence import Reading, ReadLine, compare_copy
    from contracts.verdict import Region

    line = ReadLine(text[:100], 1.0, Region(x=0.0, y=0.0, width=1.0, height=1.0), 20.0)
    compare_copy(Reading([line] * MAX_READ_LINES, "m"), text[:4000], None, 400, ("buy now",))


def read_picture(data: bytes) -> None:
    """Its first frame, and all of them."""
    from actors.imaging.image_decoding import decode_image
    from bus.errors import PermanentError

    with suppress(PermanentError):
        decode_image(data, 25_000_000)
    asyncio.run(frame_reader().read(data, "it"))


@cache
def frame_reader() -> Any:
    """One for all inputs, since its process takes longer to start than to read most of them."""
    from actors.moderation.picture_frames import FrameReader

    return FrameReader(25_000_000)


def read_compressed(data: bytes) -> None:
    """As a download of at most 10 MB, in chunks as they arrive."""
    from bus.errors import PermanentError, TemporaryError
    from bus.storage.http_download import CHUNK_BYTES, Inflater

    inflater, size = Inflater(31, "https://host.example/x"), 0
    with suppress(PermanentError, TemporaryError):
        for start in range(0, len(data), CHUNK_BYTES):
            for part in inflater.inflate(data[start : start + CHUNK_BYTES]):
                size += len(part)
                if size > 10_000_000:
                    return
        inflater.check_end()


def compressed_downloads() -> Iterable[bytes]:
    """One that grows a thousandfold, one of very many members, one that ends early, and none at all."""
    return [gzip.compress(bytes(200_000_000)), gzip.compress(b"") * 200_000, gzip.compress(bytes(1000))[:-5], b"", bytes(1 << 20)]


def read_weights(data: bytes) -> None:
    from actors.engines.diffusion.lora.validation import validate_lora

    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        validate_lora(Path(file.name), "it", max_bytes=1 << 30, max_rank=256)


def read_adapter_config(data: bytes) -> None:
    """LoraFileCache fetches at most MAX_CONFIG_BYTES."""
    from actors.engines.diffusion.lora.strength import MAX_CONFIG_BYTES, parse_adapter_config

    parse_adapter_config(data[:MAX_CONFIG_BYTES], "it")


def read_answer(text: str) -> None:
    from actors.llm.json_extraction import extract_json_object

    extract_json_object(text)


def read_call_arguments(text: str) -> None:
    from actors.engines.language.chat_format import read_arguments

    read_arguments(text)


def read_verdict(text: str) -> None:
    from actors.engines.language.requests import VlmResponse
    from actors.vision.verdict_parser import parse_verdict
    from contracts.verdict import ImageVerdictSchema

    parse_verdict(VlmResponse(text=text, prompt_tokens=1, completion_tokens=1, finish_reason="stop", model="m"), ImageVerdictSchema)


def read_overlay_text(text: str) -> None:
    from contracts.drawn_text import clean_text

    clean_text(text[:500])


def read_moderated_text(text: str) -> None:
    from actors.moderation.word_list import parse_word_list
    from contracts.moderate import MAX_TEXT_CHARS

    parse_word_list("[hate]\n" + "e\n" + "e" * 100).find(text[:MAX_TEXT_CHARS])


def read_command(data: bytes) -> None:
    from contracts.consult import Consult

    Consult.model_validate_json(data)


def read_event(data: bytes) -> None:
    from contracts.event import Event

    Event.model_validate_json(data)


def read_export_line(data: bytes) -> None:
    from bus.dead_letters.jsonl import _parse_line

    _parse_line(data.decode(errors="replace"), 1)


def read_json_body(data: bytes) -> None:
    from gateway.json_body import parse_json

    parse_json(data)


def read_session(data: str) -> None:
    from gateway.middleware.api_keys import ApiKeys
    from gateway.middleware.sessions import Sessions
    from gateway.settings import GatewaySettings

    Sessions(ApiKeys(GatewaySettings()), 60.0).read_cookie(f"atelier_session={data}")


def read_slip(data: bytes) -> None:
    from bus.worker.outgoing import read_slip

    read_slip(b'{"slip":' + data)


def read_content(data: bytes) -> None:
    from bus.persistence.entry_id import content_digest

    content_digest(b'{"slip":' + data)


def read_form(body: bytes) -> None:
    parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=500)


def hostile_forms() -> Iterable[bytes]:
    yield b"a=" + quote("\u2028" * 100_000).encode()
    yield b"&" * 1_000_000
    yield b"a&" * 500_000
    yield b"%" * 1_000_000


def hostile_marks() -> Iterable[str]:
    """Combining marks, whose order takes quadratic time: the texts of overlays and signatures have at most 500 characters."""
    yield "e\u0301\u0323" * 1_000_000
    yield "\u0315\u0300" * 1_000_000


def hostile_cookies() -> Iterable[str]:
    yield from (base64.urlsafe_b64encode(data).decode() for data in files.hostile_json(60_000))


def read_json_answer(text: str) -> None:
    from actors.llm.json_answers import check_answer

    asyncio.run(check_answer(text, {"type": "array"}, "stop", 1))


def refusals() -> tuple[type[Exception], ...]:
    from actors.engines.language.requests import PromptTooLong
    from bus.actor import InvalidMessage
    from bus.errors import PermanentError, TemporaryError

    return PermanentError, TemporaryError, InvalidMessage, PromptTooLong, ValidationError, ValueError


ORDER = Budget(read_order, files.hostile_json)
DOCUMENT = Budget(read_document, files.hostile_documents)
BASE64 = Budget(read_base64, files.hostile_base64)
PICTURE = Budget(read_picture, files.hostile_pictures)
WEIGHTS = Budget(read_weights, files.hostile_weights)
ANSWER = Budget(read_answer, files.hostile_texts_of_json)
CALL_ARGUMENTS = Budget(read_call_arguments, files.hostile_texts_of_json)
JSON_ANSWER = Budget(read_json_answer, files.hostile_texts_of_json)
VERDICT = Budget(read_verdict, files.hostile_texts_of_json)
COMMAND = Budget(read_command, files.hostile_json)
EVENT = Budget(read_event, files.hostile_json)
VALUE = Budget(from_json, files.hostile_json)
FORM = Budget(read_form, hostile_forms)
SESSION = Budget(read_session, hostile_cookies)

OWN_PROCESS = Trusted("written by another process of this installation")
OWN_FILE = Trusted("a file of this package or of this installation")
CHECKPOINT = Trusted("a file of a checkpoint that the settings name; in the model process")
MODEL_SERVER = Trusted("the answer of a server that the settings name")
GUARDED_FORM = Trusted("the console's form, parsed before by gateway/console/guard.py")
OPERATOR = Trusted("read by the command line of the operator, who may stop it")

DECODERS: dict[tuple[str, str], Budget | Trusted] = {
    ("actors/adapters/image_generation.py", "json.loads"): ORDER,
    ("actors/attachments/document_reader.py", "defusedxml.ElementTree.iterparse"): DOCUMENT,
    ("actors/attachments/document_reader.py", "pypdf.PdfReader"): DOCUMENT,
    ("actors/attachments/document_reader.py", "zipfile.ZipFile"): DOCUMENT,
    ("actors/attachments/file_types.py", "zipfile.ZipFile"): DOCUMENT,
    ("actors/decoding/json_schemas.py", "json.loads"): JSON_ANSWER,
    ("actors/decoding/jpeg_file.py", "struct.unpack_from"): PICTURE,
    ("actors/decoding/metadata.py", "json.loads"): PICTURE,
    ("actors/decoding/metadata.py", "struct.unpack_from"): PICTURE,
    ("actors/decoding/metadata.py", "zlib.decompressobj"): PICTURE,
    ("actors/decoding/pictures.py", "PIL.Image.frombytes"): Trusted("colours of our own, to which a profile is applied"),
    ("actors/decoding/pictures.py", "PIL.Image.open"): PICTURE,
    ("actors/decoding/png_file.py", "struct.unpack_from"): PICTURE,
    ("actors/decoding/protocol.py", "json.loads"): OWN_PROCESS,
    ("actors/decoding/webp_file.py", "struct.unpack_from"): PICTURE,
    ("actors/engines/diffusion/checkpoint_check.py", "json.loads"): CHECKPOINT,
    ("actors/engines/diffusion/lora/strength.py", ".model_validate_json"): Budget(read_adapter_config, files.hostile_json),
    ("actors/engines/diffusion/empty_model.py", "json.loads"): OPERATOR,
    ("actors/engines/diffusion/families/family.py", "PIL.Image.frombytes"): Trusted("pixels that the worker has decoded and measured"),
    ("actors/engines/diffusion/families/registry.py", "json.loads"): CHECKPOINT,
    ("actors/engines/diffusion/lora/strength.py", "json.loads"): WEIGHTS,
    ("actors/engines/diffusion/memory.py", "json.loads"): CHECKPOINT,
    ("actors/engines/diffusion/memory.py", "torch.load"): CHECKPOINT,
    ("actors/engines/diffusion/lora/tensors.py", "safetensors.safe_open"): Trusted("a file that lora/validation.py has accepted"),
    ("actors/engines/diffusion/lora/validation.py", "json.loads"): WEIGHTS,
    ("actors/engines/diffusion/lora/validation.py", "struct.unpack"): WEIGHTS,
    ("actors/engines/diffusion/model.py", "json.loads"): CHECKPOINT,
    ("actors/engines/diffusion/tiny_stable_diffusion.py", "safetensors.safe_open"): OWN_FILE,
    ("actors/engines/language/checkpoint_check.py", "json.loads"): CHECKPOINT,
    ("actors/engines/language/checkpoint_check.py", "PIL.Image.open"): Trusted("the test picture of the module itself"),
    ("actors/engines/language/tiny_vision.py", "json.loads"): Trusted("a file that the module has just written"),
    ("actors/engines/language/vision_model.py", "PIL.Image.open"): Trusted("a PNG that the worker has encoded; in the model process"),
    ("actors/engines/language/grammar.py", "json.loads"): Trusted("a schema that the worker has encoded; in the model process"),
    ("actors/engines/moderation/engine.py", "PIL.Image.frombytes"): Trusted("pixels that the worker has decoded and measured"),
    ("actors/engines/process/framing.py", "pickle.loads"): OWN_PROCESS,
    ("actors/engines/remote/event_stream.py", "json.loads"): MODEL_SERVER,
    ("actors/engines/remote/openai_client.py", "json.loads"): MODEL_SERVER,
    ("actors/engines/remote/openai_text.py", ".json"): MODEL_SERVER,
    ("actors/engines/remote/refusals.py", "json.loads"): MODEL_SERVER,
    ("actors/engines/remote/served_models.py", ".json"): MODEL_SERVER,
    ("actors/engines/remote/vision_probe.py", ".json"): MODEL_SERVER,
    ("actors/imaging/content_credentials.py", "c2pa.Builder"): Trusted("pictures that a model generated and the watermark step encoded"),
    ("actors/imaging/content_credentials.py", "c2pa.Reader"): OWN_FILE,
    ("actors/imaging/fonts.py", "struct.unpack_from"): OWN_FILE,
    ("contracts/drawn_text.py", "unicodedata.normalize"): Budget(read_overlay_text, hostile_marks),
    ("actors/moderation/word_list.py", "unicodedata.normalize"): Budget(read_moderated_text, hostile_marks),
    ("actors/vision/ocr_evidence.py", "unicodedata.normalize"): Budget(compare_ad_copy, hostile_marks),
    ("actors/imaging/image_decoding.py", "PIL.Image.frombytes"): PICTURE,
    ("actors/imaging/signature.py", "PIL.ImageFont.truetype"): OWN_FILE,
    ("actors/engines/language/chat_format.py", "json.loads"): CALL_ARGUMENTS,
    ("actors/engines/language/lora_adapters.py", "json.loads"): CHECKPOINT,
    ("actors/engines/language/lora_adapters.py", "safetensors.safe_open"): CHECKPOINT,
    ("actors/engines/remote/tool_calls.py", "json.loads"): MODEL_SERVER,
    ("actors/llm/json_answers.py", "json.loads"): JSON_ANSWER,
    ("actors/llm/json_extraction.py", "json.loads"): ANSWER,
    ("actors/vision/overlay_layout.py", "json.loads"): Trusted("a row of the source database"),
    ("actors/vision/verdict_parser.py", ".model_validate_json"): VERDICT,
    ("actors/vision/verdict_parser.py", ".raw_decode"): VERDICT,
    ("actors/vision/verdict_parser.py", "json.JSONDecoder"): VERDICT,
    ("actors/webhooks/signature.py", "base64.b64decode"): Trusted("a secret of the settings"),
    ("bus/amqp/discovery.py", ".model_validate_json"): COMMAND,
    ("bus/amqp/request_reply.py", "pydantic_core.from_json"): VALUE,
    ("bus/amqp/raw_properties.py", "struct.unpack_from"): Trusted("fields of fixed length; tests/unit/bus/amqp/ draws every kind of them"),
    ("bus/amqp/revocations.py", ".model_validate_json"): COMMAND,
    ("bus/amqp/subscriptions.py", ".model_validate_json"): EVENT,
    ("bus/amqp/tolerant_decoding.py", "struct.unpack"): Trusted("fields of fixed length; tests/unit/bus/amqp/ draws every kind of them"),
    ("bus/dead_letters/jsonl.py", ".model_validate_json"): Budget(read_export_line, files.hostile_json),
    ("bus/dead_letters/jsonl.py", "base64.b64decode"): Budget(read_export_line, files.hostile_json),
    ("bus/dead_letters/jsonl.py", "json.loads"): Trusted("JSON that the line above has written"),
    ("bus/dead_letters/typed_values.py", "struct.unpack"): Trusted("a field of eight bytes, whose length raw_properties.py has checked"),
    ("bus/net/data_urls.py", "base64.b64decode"): BASE64,
    ("bus/persistence/database_url.py", "urllib.parse.parse_qsl"): Trusted("a setting of the operator"),
    ("bus/persistence/entry_id.py", "json.loads"): Budget(read_content, files.hostile_json),
    ("bus/persistence/pool.py", "pydantic_core.from_json"): Trusted("a row of our own database"),
    ("bus/storage/gcs.py", ".json"): Trusted("the answer of the metadata server that the settings name"),
    ("bus/storage/http_download.py", "zlib.decompressobj"): Budget(read_compressed, compressed_downloads),
    ("bus/storage/prefix_sync.py", ".json"): Trusted("the answer of the store that the settings name"),
    ("bus/storage/prefix_sync.py", "base64.b64decode"): Trusted("the answer of the store that the settings name"),
    ("bus/worker/control.py", ".model_validate_json"): COMMAND,
    ("bus/worker/decoding.py", ".model_validate_json"): COMMAND,
    ("bus/worker/outgoing.py", "json.loads"): Budget(read_slip, files.hostile_json),
    ("bus/worker/pg_listener.py", "json.loads"): Trusted("a notification of Postgres: at most 8000 bytes"),
    ("gateway/compat/chat_requests.py", ".form"): Trusted("multipart: MAX_FORM_FIELDS and two files, read in parts"),
    ("gateway/compat/chat_requests.py", "urllib.parse.parse_qsl"): FORM,
    ("gateway/console/auth.py", ".form"): GUARDED_FORM,
    ("gateway/console/chat_page.py", ".form"): GUARDED_FORM,
    ("gateway/console/dead_letter_pages.py", ".form"): GUARDED_FORM,
    ("gateway/console/dead_letter_pages.py", "json.loads"): VALUE,
    ("gateway/console/guard.py", ".form"): GUARDED_FORM,
    ("gateway/console/form_body.py", ".form"): Trusted("multipart: MAX_FILE_FORM_FIELDS and three files, read in parts"),
    ("gateway/console/form_body.py", "urllib.parse.parse_qs"): FORM,
    ("gateway/console/i18n.py", "json.loads"): OWN_FILE,
    ("gateway/console/job_pages.py", ".form"): GUARDED_FORM,
    ("gateway/console/make.py", ".form"): GUARDED_FORM,
    ("gateway/docs/asyncapi.py", "yaml.load"): OWN_FILE,
    ("gateway/json_body.py", "pydantic_core.from_json"): Budget(read_json_body, files.hostile_json),
    ("actors/engines/embedding/checkpoint.py", "json.loads"): CHECKPOINT,
    ("gateway/openai/embeddings.py", "base64.b64decode"): OWN_PROCESS,
    ("gateway/openai/embeddings.py", "struct.unpack"): OWN_PROCESS,
    ("gateway/openai/image_edits.py", ".form"): Trusted("multipart: MAX_FORM_FIELDS and MAX_FORM_FILES, read in parts"),
    ("gateway/middleware/sessions.py", "base64.urlsafe_b64decode"): SESSION,
    ("gateway/middleware/sessions.py", "json.loads"): SESSION,
}


def trusted_reader(path: str) -> Trusted | None:
    """The command line and its documents are run by the operator."""
    return OPERATOR if path.startswith("ops/") else None


def run_budget(place: str, name: str) -> list[str]:
    """What went wrong with any of the inputs: too much time, or an error that is no refusal."""
    budget = DECODERS[place, name]
    assert isinstance(budget, Budget)
    accepted = refusals()
    return [problem for number, data in enumerate(budget.inputs()) if (problem := _run_one(budget, number, data, accepted))]


def _run_one(budget: Budget, number: int, data: Any, accepted: tuple[type[Exception], ...]) -> str | None:
    label = f"input {number}, {data[:40]!r}… ({len(data)})"
    started = time.process_time()
    try:
        budget.call(data)
    except Exception as error:
        if not isinstance(error, accepted):
            return f"{label}: {error!r}"[:300]
    seconds = time.process_time() - started
    return f"{label}: {seconds:.1f} s" if seconds > CPU_SECONDS else None
