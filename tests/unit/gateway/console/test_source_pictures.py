"""The pictures of jobs that an order of the page Make starts from: which one a reference means, and how large it may be."""

from typing import Any, cast

import pytest

from contracts.event import EventKind
from contracts.job import Job
from gateway.console import source_pictures
from gateway.console.job_progress import JobProgress
from gateway.console.job_view import ConsoleJobView
from gateway.console.order_form import form_from_order
from gateway.services import Services
from tests.support.fake_broker import FakePublisher, make_services
from tests.unit.gateway.console.events import START, accepted, job_event


def claim(folder: str, size: int = 1) -> dict[str, Any]:
    """All of one file name."""
    return {"uri": f"s3://store/{folder}/1.png", "sha256": "0" * 64, "size": size, "media_type": "image/png"}


ORDER = {"kind": "image_order", "edit": {"image": claim("source"), "mask": claim("mask")}, "control": {"image": claim("control")}}


class FakeRequest:
    """What is read of a request: the services."""

    def __init__(self, services: Services) -> None:
        self.app = self
        self.state = self
        self.services = services


@pytest.fixture
def open_request(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`open_request(result_size)`: a request of a caller that sees the job `j`, whose result has a picture of this many bytes."""

    def open_fake(result_size: int = 1) -> Any:
        result = {"files": [claim("result", result_size)]}
        job = Job(job_id="j", kind="image_order", state="completed", created_at=START, updated_at=START, result=result, tenant="shop")
        view = ConsoleJobView(job, JobProgress.from_events([accepted("image", **ORDER), job_event(EventKind.COMPLETED, 1, result=result)]))

        async def load_job_view(_: Any, job_id: str) -> ConsoleJobView:
            assert job_id == "j"
            return view

        monkeypatch.setattr(source_pictures, "load_job_view", load_job_view)
        return cast("Any", FakeRequest(make_services(FakePublisher({}), max_file_bytes=1000)))

    return open_fake


async def test_pictures_of_one_file_name_are_not_confused(open_request: Any) -> None:
    """The picture and the mask of an order, and the result of its job, lie in folders of their own with equal file names."""
    request, form = open_request(), form_from_order(ORDER, "j")
    references = {name: form[f"{name}_ref"] for name in ("source", "mask", "control")} | {"result": "j/1.png"}
    found = {name: await source_pictures.find_picture(request, reference) for name, reference in references.items()}
    assert {name: picture and (picture.claim.uri, picture.recorded) for name, picture in found.items()} == {
        name: (f"s3://store/{name}/1.png", name == "result") for name in references
    }


async def test_picture_of_a_job_above_the_limit_of_files_is_refused_by_its_setting(open_request: Any) -> None:
    errors: dict[str, str] = {}
    found = await source_pictures.find_pictures(open_request(result_size=1001), {"source": "j/1.png"}, errors)
    assert (found, list(errors)) == ({}, ["source"])
    assert "GATEWAY_MAX_FILE_BYTES" in errors["source"]


async def test_picture_without_a_place_in_the_order_is_unknown(open_request: Any) -> None:
    errors: dict[str, str] = {}
    references = {"source": "j/other.png", "mask": "j/edit.other", "control": "j/edit"}
    assert await source_pictures.find_pictures(open_request(), references, errors) == {}
    assert errors == dict.fromkeys(references, source_pictures.UNKNOWN)
