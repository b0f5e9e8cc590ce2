"""The message for invalid settings names the variable and the cure, and never the value."""

import pytest

from bus.errors import PermanentError
from ops.cli import main
from ops.errors import describe_start_error


@pytest.fixture(autouse=True)
def _logs_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A logger would keep the captured standard error, which is closed after the test."""
    monkeypatch.setattr("bus.observability.logs.configure_logging", lambda: None)


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"INTERNAL_API_TOKEN": "s3cr3t"}, "INTERNAL_API_TOKEN: it has 6 characters, at least 32 are needed: make one with `openssl rand"),
        ({"WEBHOOK_TIMEOUT_SECONDS": "s3cr3t"}, "WEBHOOK_TIMEOUT_SECONDS: "),
    ],
)
def test_invalid_setting_is_named_without_its_value(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variables: dict[str, str], named: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["run", "image_generation"]) == 1
    error = capsys.readouterr().err
    assert named in error
    assert "s3cr3t" not in error
    assert "Traceback" not in error


def test_another_error_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: list[str]) -> None:
        raise ValueError("a fault of the program")

    monkeypatch.setattr("ops.registry.load_actors", fail)
    with pytest.raises(ValueError, match="a fault of the program"):
        main(["run", "webhook"])


def test_error_of_the_start_is_one_line() -> None:
    """Those of the database have a detail and a hint on lines of their own."""
    error = PermanentError("database-refused", "DATABASE_URL: no right\nDETAIL:  none\nHINT:  ask: grant it")
    assert describe_start_error(error) == "DATABASE_URL: no right DETAIL: none HINT: ask: grant it"
