"""Secret settings as tools and people write them: stripped, or refused at the start with the setting's name and the cure."""

import re
from pathlib import Path

import pytest
from pydantic import SecretStr
from pydantic_settings import BaseSettings

from actors.llm.settings import TextSettings
from actors.settings import WebhookSettings
from bus.masking import mask_text
from bus.settings import BusSettings
from bus.storage.settings import StoreSettings
from gateway.middleware.api_keys import ApiKeys
from gateway.settings import GatewaySettings
from ops.cli import main
from ops.commands.doctor_models import ServerAnswer, configured_servers, describe_server
from ops.docgen.settings_catalog import settings_classes, unwrap_type
from ops.errors import describe_settings_error
from ops.local.model_choice import choose_text_model, choose_vision_models
from tests.support.secret_settings import MARK, SecretSetting, secret_settings

SETTINGS = secret_settings()
LOOKS_SECRET = re.compile(r"token$|secret|password|passwd|api_?keys?$|(^|_)key$|credential|authorization|cookie")
NO_SECRETS = {
    "UploadSettings.key": "a template of object keys",
    "CredentialSettings.key": "the path of a file",
}
TOKEN = "internal-t0pS3cret-4711-internal-0815"


def read(cls: type[BaseSettings]) -> BaseSettings:
    return cls()


def refusal(cls: type[BaseSettings]) -> str:
    """What the command line says about the settings of the environment."""
    with pytest.raises(ValueError) as error:  # the message is compared
        cls()
    described = describe_settings_error(error.value)
    assert described is not None
    return described


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for setting in SETTINGS:
        monkeypatch.delenv(setting.variable, raising=False)
    monkeypatch.setenv("AMQP_URL", "amqp://host/")
    monkeypatch.setenv("STORE_URL", "file:///nowhere")


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: f"{setting.settings.__name__}-{setting.variable}")
@pytest.mark.parametrize("around", ["{}\n", "\ufeff{}\r\n", " {}\t"], ids=["line feed", "byte order mark", "blanks"])
def test_white_space_around_a_secret_is_no_part_of_it(monkeypatch: pytest.MonkeyPatch, setting: SecretSetting, around: str) -> None:
    """depictio/depictio #104, openai/openai-python #961, langchain-ai/langchain #21261, jkreileder/cf-ips-to-hcloud-fw #1446: a secret from
    a file ends with a line feed, every call fails, and the error quotes the secret.
    """
    monkeypatch.setenv(setting.variable, around.format(setting.value))
    field = getattr(read(setting.settings), setting.field)
    assert field.get_secret_value() == setting.value


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: f"{setting.settings.__name__}-{setting.variable}")
def test_secret_that_was_read_is_masked_in_every_text(monkeypatch: pytest.MonkeyPatch, setting: SecretSetting) -> None:
    """jkreileder/cf-ips-to-hcloud-fw #1446: the text of a library's exception is logged as it is."""
    monkeypatch.setenv(setting.variable, setting.value)
    read(setting.settings)
    assert MARK not in mask_text(f"Illegal header value {setting.secret.encode()!r}, 'x{setting.secret}y' {setting.secret[:30]}")


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: f"{setting.settings.__name__}-{setting.variable}")
def test_secret_of_white_space_is_refused(monkeypatch: pytest.MonkeyPatch, setting: SecretSetting) -> None:
    """Zero6992/chatGPT-discord-bot #422: an empty secret ends as an illegal header at each call."""
    monkeypatch.setenv(setting.variable, " \n")
    assert re.search(r"^[A-Z_]+: it is white space only", refusal(setting.settings), re.MULTILINE)


def test_every_setting_that_looks_secret_has_a_secret_type() -> None:
    fields = [(cls, name, field) for cls in settings_classes() for name, field in cls.model_fields.items()]
    kinds = {f"{cls.__name__}.{name}": unwrap_type(field.annotation)[0] for cls, name, field in fields if LOOKS_SECRET.search(name)}
    assert {name for name, kind in kinds.items() if kind in (str, Path)} == NO_SECRETS.keys()
    assert len(SETTINGS) > 20


def test_settings_error_never_shows_the_other_settings(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """pydantic/pydantic-settings #256, pydantic/pydantic #9139, langflow-ai/langflow #15147: one invalid setting, and pydantic's error
    quotes the others.
    """
    monkeypatch.setattr("bus.observability.logs.configure_logging", lambda: None)
    monkeypatch.setenv("INTERNAL_API_TOKEN", TOKEN)
    monkeypatch.setenv("WEBHOOK_TIMEOUT_SECONDS", "soon")
    with pytest.raises(ValueError, match="webhook_timeout_seconds") as error:
        WebhookSettings()
    assert MARK not in mask_text(str(error.value))
    assert main(["run", "image_generation"]) == 1
    assert MARK not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "cure"),
    [
        (f"Bearer {TOKEN}", "set the token alone, the word is added"),
        (f'"{TOKEN}"', "it has quotation marks around it"),
        (f"'{TOKEN}'", "it has quotation marks around it"),
        (f"{TOKEN}\n{TOKEN}", "a line break"),
        (f"{TOKEN} {TOKEN}", "printable ASCII"),
        (f"{TOKEN}ö", "printable ASCII"),
        (f"{TOKEN}\u200b-", "printable ASCII"),
    ],
)
@pytest.mark.parametrize(("cls", "variable"), [(WebhookSettings, "INTERNAL_API_TOKEN"), (TextSettings, "VLLM_API_KEY")])
def test_token_that_no_header_can_carry_is_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch, cls: type[BaseSettings], variable: str, value: str, cure: str
) -> None:
    """datalab-org/datalab-api #14, sonichi/sutando #691: quotation marks of a .env file are sent, and each call is a 401.
    apollographql/apollo-client #9565: the error of an invalid character quotes the header.
    """
    monkeypatch.setenv(variable, value)
    described = refusal(cls)
    assert f"{variable}: " in described
    assert cure in described
    assert MARK not in described


def test_token_that_is_such_a_word_itself_is_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "token")
    key = TextSettings().api_key
    assert key is not None
    assert key.get_secret_value() == "token"


@pytest.mark.parametrize("password", ["pa/t0pS3cret", "pa#t0pS3cret", "pa?t0pS3cret"])
def test_password_that_would_be_read_as_a_port_is_refused_without_its_text(monkeypatch: pytest.MonkeyPatch, password: str) -> None:
    """pika/pika #1353, streadway/amqp #416: the error says `invalid port`, followed by a part of the password."""
    monkeypatch.setenv("AMQP_URL", f"amqp://me:{password}@host:5672/")
    described = refusal(BusSettings)
    assert "AMQP_URL: its host or port cannot be read: write special characters of the password as %XX" in described
    assert MARK not in mask_text(f"invalid port ':pa' of {password}")


def test_short_secret_of_the_installation_is_refused_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_SECRET", f"{MARK}\n")
    described = refusal(BusSettings)
    assert f"ATELIER_SECRET: it has {len(MARK)} characters, at least 32 are needed: make one with `openssl rand -hex 32`" in described
    assert MARK not in described


def test_id_of_a_key_is_stripped(monkeypatch: pytest.MonkeyPatch) -> None:
    """boto/botocore #2001, boto/boto3 #2280: the id stands in the Authorization header too, which the error quotes with its signature."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA0815\r\n")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", TOKEN)
    assert StoreSettings().aws_access_key_id == "AKIA0815"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "-n AKIA0815")  # of `echo -n` in a shell that does not know the option
    assert "AWS_ACCESS_KEY_ID: it has a blank" in refusal(StoreSettings)


@pytest.mark.parametrize(
    "written", ["one:{0},two:{1}\n", "\ufeffone:{0}\r\ntwo:{1}\r\n", " one:{0} , two:{1} ", "one:{0},,two:{1},"], ids=str.split
)
def test_key_list_is_read_as_people_write_it(written: str) -> None:
    """Majorfi/immich-stack #74: a list of keys from a secret's file, with line ends and commas at its end."""
    keys = ApiKeys(GatewaySettings(api_keys=SecretStr(written.format("a" * 20, "b" * 20))))
    assert (keys.name_of("a" * 20), keys.name_of("b" * 20)) == ("one", "two")


def test_key_file_of_a_windows_editor_is_read(tmp_path: Path) -> None:
    """exportarr, onedr0p/exportarr #304: a key from a file is refused, though it looks right."""
    file = tmp_path / "keys"
    file.write_bytes(b"\xef\xbb\xbfone:" + b"a" * 20 + b"\r\n# two\r\ntwo:" + b"b" * 20 + b"\r\n")
    keys = ApiKeys(GatewaySettings(api_keys_file=file))
    assert (keys.name_of("a" * 20), keys.name_of("b" * 20)) == ("one", "two")
    assert mask_text(f"unknown: {'a' * 20} {'b' * 20}") == "unknown: *** ***"


@pytest.mark.parametrize("variable", ["VLM_BASE_URL", "JUDGE_BASE_URL", "VLLM_SERVER_URL"])
def test_token_in_the_address_of_a_model_server_is_never_shown(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """`http://token@host`: a token in place of the user, as proxies take it; the doctor and `atelier up` show the address."""
    for name in ("VLM_ENGINE", "TEXT_ENGINE"):
        monkeypatch.setenv(name, "openai")
    monkeypatch.setenv(variable, f"http://{MARK}@127.0.0.1:1/v1\n")
    server = next(server for server in configured_servers() if server.url)
    assert server.url == f"http://{MARK}@127.0.0.1:1/v1"
    check = describe_server(server, ServerAnswer("does not answer"))
    assert check.detail == "http://127.0.0.1:1/v1: does not answer"
    assert MARK not in str([choose_vision_models(["judge"], Path("toy")), choose_text_model(Path("toy"))])


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("one:kürzel-und-t0pS3cret-4711", "no header can carry"),
        ("one:t0pS3cret", "at least 16 characters"),
        ("t0pS3cret-without-a-name", "not `name:key`"),
        ('"one:t0pS3cret-0123456789"', "not `name:key`"),
        ("one:t0pS3cret-0123456789,two:t0pS3cret-0123456789", "the key of one too"),
        (",", "has no key"),
    ],
)
def test_key_list_that_cannot_work_is_refused_with_the_name_of_the_setting(written: str, reason: str) -> None:
    """evolution-foundation/evolution-api #1707: a gateway starts with a key that no client can use, and answers 401 to all."""
    with pytest.raises(ValueError, match=f"GATEWAY_API_KEYS.*{reason}") as error:
        ApiKeys(GatewaySettings(api_keys=SecretStr(written)))
    assert MARK not in str(error.value)
