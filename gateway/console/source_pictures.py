"""The pictures that an order of the page Make starts from: files that were chosen, and pictures of jobs, stored as claims of the caller.

They are identified by their content, and never decoded here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import Request

from bus.amqp.request_reply import ReplyFault
from bus.errors import PermanentError
from contracts.claim import Claim
from contracts.identifiers import is_identifier
from gateway.callers import caller_of
from gateway.console.form_body import SubmittedForm
from gateway.console.job_view import load_job_view
from gateway.console.order_form import PICTURE_FIELDS
from gateway.memory_budget import hold_bytes
from gateway.services import services_of
from gateway.text.uploads import image_media_type

UNREADABLE = "The file is no picture that is read: PNG, JPEG, WebP, GIF or BMP."
TOO_LARGE = "The file is larger than MAX_UPLOAD_BYTES allows."
JOB_PICTURE_TOO_LARGE = "The picture is larger than GATEWAY_MAX_FILE_BYTES allows."
UNKNOWN = "The picture is not among the files of your jobs. Choose another one."
SOURCE_MISSING = "Choose the picture that it belongs to."
CONTROL_MISSING = "Choose both a picture and a ControlNet."
TWO_PICTURES = "A picture to start from and a picture to follow cannot be in one order."


class InvalidPictures(Exception):
    """`errors`: a text to translate, by form field."""

    def __init__(self, errors: dict[str, str]) -> None:
        super().__init__("; ".join(f"{name}: {text}" for name, text in errors.items()))
        self.errors = errors


@dataclass(frozen=True)
class JobPicture:
    """A picture of a job. `recorded`: from a result, which an actor wrote; else from the order, which its client wrote."""

    claim: Claim
    tenant: str | None
    recorded: bool


def check_pictures(form: SubmittedForm) -> set[str]:
    """The fields that have a picture. Raises InvalidPictures unless the pictures and the values that need them are there together."""
    present = {name for name in PICTURE_FIELDS if form.files.get(name) or form.get(f"{name}_ref", "").strip()}
    errors: dict[str, str] = {}
    if "source" not in present:
        errors |= {name: SOURCE_MISSING for name in ("mask", "strength") if name in present or form.get(name, "").strip()}
    if "control" in present and not form.get("control_model", "").strip():
        errors["control_model"] = CONTROL_MISSING
    if "control" not in present:
        errors |= {name: CONTROL_MISSING for name in ("control_model", "control_scale") if form.get(name, "").strip()}
    if {"source", "control"} <= present:
        errors["control"] = TWO_PICTURES
    if errors:
        raise InvalidPictures(errors)
    return present


async def store_pictures(request: Request, form: SubmittedForm) -> dict[str, Claim]:
    """Claims of the caller by field, on copies where the picture is one of a job: a job's file may be replaced, or another tenant's.

    Raises InvalidPictures, HttpProblem(413, 503), ReplyTimeout, TemporaryError.
    """
    services, errors = services_of(request), dict[str, str]()
    pictures: dict[str, bytes] = {}
    references = {name: form.get(f"{name}_ref", "").strip() for name in PICTURE_FIELDS if name not in form.files}
    for name, picture in (await find_pictures(request, references, errors)).items():
        if (data := await read_picture(request, picture)) is None:
            errors[name] = UNKNOWN
        else:
            pictures[name] = data
    for name in PICTURE_FIELDS:
        data = form.files.get(name)
        if data and len(data) > services.settings.max_upload_bytes:
            errors[name] = TOO_LARGE
        elif data:
            pictures[name] = data
    media_types = {name: image_media_type(data) for name, data in pictures.items()}
    errors |= {name: UNREADABLE for name, media_type in media_types.items() if media_type is None}
    if errors:
        raise InvalidPictures(errors)
    tenant = caller_of(request)
    return {
        name: await services.require_store().write(data, tenant=tenant, media_type=media_types[name] or "")
        for name, data in pictures.items()
    }


async def find_pictures(request: Request, references: Mapping[str, str], errors: dict[str, str]) -> dict[str, JobPicture]:
    """The pictures of jobs that the caller may see, by field, with their memory reserved. `errors` gets an entry for each other one."""
    found: dict[str, JobPicture] = {}
    for field, reference in references.items():
        if not reference:
            continue
        if picture := await find_picture(request, reference):
            found[field] = picture
        else:
            errors[field] = UNKNOWN
    services = services_of(request)
    errors |= {field: JOB_PICTURE_TOO_LARGE for field, picture in found.items() if picture.claim.size > services.settings.max_file_bytes}
    found = {field: picture for field, picture in found.items() if field not in errors}
    if found:
        await hold_bytes(request, services.file_memory, sum(picture.claim.size for picture in found.values()))
    return found


async def find_picture(request: Request, reference: str) -> JobPicture | None:
    """A picture of a job by `job id/name`, one of its order by its place there, as `job id/edit.mask`.

    None where the caller sees no such job or picture. Raises ReplyFault, ReplyTimeout.
    """
    job_id, _, name = reference.rpartition("/")
    if not is_identifier(job_id):
        return None
    try:
        view = await load_job_view(request, job_id)
    except ReplyFault as error:
        if error.fault.code == "job-unknown":
            return None
        raise
    if claim := view.order_files.get(name):
        return JobPicture(claim, view.job.tenant, recorded=False)
    claim = view.files.get(name)
    return JobPicture(claim, view.job.tenant, recorded=True) if claim else None


async def read_picture(request: Request, picture: JobPicture) -> bytes | None:
    """The bytes; None where the store has none for the job's tenant. Raises TemporaryError."""
    store = services_of(request).require_store()
    read = store.read_recorded if picture.recorded else store.read
    try:
        return await read(picture.claim, tenant=picture.tenant)
    except PermanentError:
        return None
