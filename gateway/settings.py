"""The settings of the gateway."""

from pathlib import Path

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from bus.settings import StringList

DAY_SECONDS = 24 * 3600.0
API_NAMES = ("jobs", "dead-letters", "vertex", "ad-validation", "text", "openai", "console", "docs")


class GatewaySettings(BaseSettings):
    """Durations are seconds."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_prefix="GATEWAY_", env_ignore_empty=True, populate_by_name=True)

    host: str = Field("127.0.0.1", description="The address to listen on. Any but a loopback address needs API keys.")
    port: int = Field(8080, ge=0, le=65535, description="0 takes any free port.")
    apis: StringList = Field(API_NAMES, description="The APIs to serve, separated by commas. All other paths are a 404.")
    api_keys: SecretStr | None = Field(None, description="`name:key` pairs, separated by commas or spaces. The name is the tenant.")
    api_keys_file: Path | None = Field(None, description="The same, one per line; `#` begins a comment. Read again when it changes.")
    operators: StringList = Field(
        (), description="Names of keys that may see all tenants' jobs, order for any tenant, and manage dead letters."
    )
    cors_origins: StringList = Field((), description="Origins whose pages may call, separated by commas; `*` for any.")
    question_seconds: float = Field(5.0, gt=0, description="How long the reply to a query is awaited.")
    request_seconds: float = Field(300.0, gt=0, description="The deadline of a request without X-Request-Timeout.")
    job_seconds: float = Field(DAY_SECONDS, gt=0, description="The same for a job; one that has not started by then is dropped.")
    longest_seconds: float = Field(7 * DAY_SECONDS, gt=0, description="A longer X-Request-Timeout is reduced to it.")
    longest_wait_seconds: float = Field(300.0, gt=0, description="A longer ?wait is reduced to it.")
    keepalive_seconds: float = Field(15.0, gt=0, description="The interval of keepalive comments in an idle event stream.")
    max_body_bytes: int = Field(1 << 20, ge=1, description="A larger body is rejected unread. A message may be about as large.")
    max_upload_bytes: int = Field(10 << 20, ge=1, validation_alias="MAX_UPLOAD_BYTES", description="A larger upload is rejected.")
    max_uploads: int = Field(32, ge=1, description="Concurrent requests with a body above GATEWAY_MAX_BODY_BYTES.")
    max_requests: int = Field(2000, ge=1, description="Concurrent requests; one more is a 503.")
    max_streams: int = Field(1000, ge=1, description="Concurrent event streams; one more is a 503.")
    tenant_requests: int = Field(1000, ge=1, description="Concurrent requests of one tenant; one more is a 429.")
    max_file_bytes: int = Field(64 << 20, ge=1, description="A larger file of a job cannot be downloaded.")
    rate_requests: int = Field(
        6000, ge=0, description="Requests of a key (or, without keys, of an address) in GATEWAY_RATE_SECONDS; 0: no limit."
    )
    rate_seconds: float = Field(60.0, gt=0, description="The window of the rate limit.")
    console_session_seconds: float = Field(12 * 3600.0, ge=60, description="How long a login to the console lasts after the last visit.")
    console_secure: bool = Field(False, description="The console is reached over https through a proxy: its cookies are `Secure`.")
    grace_seconds: float = Field(10.0, gt=0, description="How long requests in progress may take after SIGTERM.")

    @field_validator("apis")
    @classmethod
    def check_apis(cls, apis: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := set(apis) - set(API_NAMES):
            raise ValueError(f"unknown: {', '.join(sorted(unknown))}; the APIs are {', '.join(API_NAMES)}")
        return apis
