"""The body of a POST to the console: a urlencoded form, or one with files. Bounded in fields, escapes and files."""

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from urllib.parse import parse_qs

from fastapi import Request
from starlette.datastructures import UploadFile

from bus.json_text import storable_text
from gateway.compat.chat_requests import MAX_FORM_ESCAPES
from gateway.json_body import run_parser
from gateway.middleware.origins import media_type_of
from gateway.problems import HttpProblem

MAX_FIELDS, MAX_FILE_FORM_FIELDS, MAX_FILES = 500, 100, 3
"""Of a urlencoded form; of one with files, and its files: browsers send an empty one for each input without a file."""


class SubmittedForm(dict[str, str]):
    """Form fields by name. When a field occurs more than once, the last value counts. `files`: the files that were chosen, by field."""

    files: Mapping[str, bytes] = MappingProxyType({})

    def non_blank(self, *names: str) -> dict[str, str]:
        """The named fields that are not blank, stripped."""
        return {name: self[name].strip() for name in names if self.get(name, "").strip()}


async def read_form(request: Request) -> SubmittedForm:
    """Raises HttpProblem(400, 413), HTTPException(400)."""
    if media_type_of(request.headers.get("content-type", "")) == "multipart/form-data":
        return await read_form_with_files(request)
    return await read_urlencoded_form(request)


async def read_urlencoded_form(request: Request) -> SubmittedForm:
    """Parse a urlencoded body; newlines become `\\n`. Raises HttpProblem(400, 413)."""
    body = await request.body()
    if body.count(b"%") > MAX_FORM_ESCAPES:
        raise HttpProblem(413, "form-too-large", f"the form has more than {MAX_FORM_ESCAPES} escapes")
    try:
        parse = partial(parse_qs, body.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS)
        fields = await run_parser(parse, size=len(body))
    except ValueError as error:
        raise HttpProblem(400, "form-unreadable", f"the form cannot be read: {error}") from None
    return SubmittedForm({name: _field_text(values[-1]) for name, values in fields.items()})


async def read_form_with_files(request: Request) -> SubmittedForm:
    """Parse a `multipart/form-data` body, whose length the admission of the request limits. Raises HTTPException(400)."""
    submitted, files = SubmittedForm(), {}
    async with request.form(max_files=MAX_FILES, max_fields=MAX_FILE_FORM_FIELDS) as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                files[name] = await value.read()
            else:
                submitted[name] = _field_text(value)
    submitted.files = {name: data for name, data in files.items() if data}
    return submitted


def _field_text(value: str) -> str:
    return storable_text(value.replace("\r\n", "\n"))
