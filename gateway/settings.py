"""The settings of the gateway."""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from bus.net.ssrf import StringList

DAY_SECONDS = 24 * 3600.0


class GatewaySettings(BaseSettings):
    """Durations are seconds."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_prefix="GATEWAY_", env_ignore_empty=True, populate_by_name=True)

    host: str = Field("127.0.0.1", description="The address to listen on. Any but this machine's own needs API keys.")
    port: int = Field(8080, ge=0, le=65535, description="0 takes any free port.")
    api_keys: SecretStr | None = Field(None, description="`name:key` pairs, separated by commas or spaces. The name is the tenant.")
    api_keys_file: Path | None = Field(None, description="The same, one a line, `#` begins a remark. Read again when it changes.")
    operators: StringList = Field(
        (), description="Names of keys that see every tenant's jobs, order for any tenant, and work on dead letters."
    )
    cors_origins: StringList = Field((), description="Origins whose pages may call, comma between; `*` for any.")
    question_seconds: float = Field(5.0, gt=0, description="How long an answer about a job is awaited.")
    request_seconds: float = Field(300.0, gt=0, description="How long a request may take that brings no X-Request-Timeout.")
    job_seconds: float = Field(DAY_SECONDS, gt=0, description="The same for a job: not begun by then, it is dropped.")
    longest_seconds: float = Field(7 * DAY_SECONDS, gt=0, description="The longest X-Request-Timeout that is taken at its word.")
    longest_wait_seconds: float = Field(300.0, gt=0, description="The longest ?wait.")
    keepalive_seconds: float = Field(15.0, gt=0, description="A stream of events that has nothing to say says so this often.")
    max_body_bytes: int = Field(1 << 20, ge=1, description="A larger body is refused unread. A message holds about as much.")
    max_upload_bytes: int = Field(
        10 << 20, ge=1, validation_alias="MAX_UPLOAD_BYTES", description="A larger picture or document is refused: bytes."
    )
    max_uploads: int = Field(32, ge=1, description="So many requests that bring more than `max_body_bytes` are in hand at once.")
    max_requests: int = Field(2000, ge=1, description="So many requests are in hand at once; one more is told to come back.")
    max_streams: int = Field(1000, ge=1, description="So many streams of events among them.")
    tenant_requests: int = Field(1000, ge=1, description="So many requests of one tenant are in hand at once; one more is a 429.")
    max_file_bytes: int = Field(64 << 20, ge=1, description="A larger file is not handed out.")
    rate_requests: int = Field(6000, ge=0, description="Requests a key (or, without keys, an address) may make in `rate_seconds`; 0: any.")
    rate_seconds: float = Field(60.0, gt=0, description="The window in which requests are counted.")
    console_session_seconds: float = Field(12 * 3600.0, ge=60, description="A login to the console lasts so long after the last visit.")
    console_secure: bool = Field(False, description="The console is reached by https through a proxy: its cookies are sent by https alone.")
    grace_seconds: float = Field(10.0, gt=0, description="After SIGTERM, how long requests in hand may go on.")
