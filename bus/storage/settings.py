"""The settings of the claim store and of foreign assets."""

import os
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, field_validator, model_validator

from bus.net.settings import AddressSettings
from bus.secrets import HeaderSecret, HeaderWord, Secret, ServerUrl
from bus.settings import PathList, StringList

WEEK_SECONDS = 7 * 24 * 3600.0
ChecksumUse = Literal["when_required", "when_supported"]


class StoreSettings(AddressSettings):
    """Where claims are stored, and which foreign addresses may be fetched. Durations are seconds."""

    store_url: str = Field(description="`file:///folder` or `s3://bucket/prefix`; default: the bucket AWS_STORAGE_BUCKET_NAME.")
    store_public_url: str | None = Field(None, description="The public base URL of the store, e.g. of a CDN; keys are appended to it.")
    store_timeout_seconds: float = Field(30.0, gt=0, description="One read from or write to S3.")
    upload_url: str | None = Field(None, description="`file:///folder` or `s3://bucket/prefix` to upload to; default: the claim store.")
    asset_roots: PathList = Field((), description="Folders from which `file://` assets may be fetched; the store is never one.")
    asset_buckets: StringList = Field(
        (),
        description="`bucket` or `bucket/prefix` from which `s3://` assets may be fetched; the store is never one. `*`: any other. "
        "`gs://bucket` or `gs://bucket/prefix`: tenants too may read it with this installation's GCS_TOKEN.",
    )
    asset_allowed_hosts: StringList = Field((), description="Hosts from which `https://` assets may be fetched. Empty: any public one.")
    asset_timeout_seconds: float = Field(60.0, gt=0, description="One fetch over https, from name resolution to last byte.")
    aws_access_key_id: HeaderWord | None = Field(None, description="Empty: the credentials of the machine's role.")
    aws_secret_access_key: Secret | None = Field(None, description="Belongs to the access key.")
    aws_session_token: HeaderSecret | None = Field(None, description="Of a temporary access key.")
    aws_storage_bucket_name: str | None = Field(None, description="Stands for `STORE_URL=s3://<name>`.")
    aws_s3_region_name: str | None = Field(
        None, validation_alias=AliasChoices("AWS_S3_REGION_NAME", "AWS_REGION", "AWS_DEFAULT_REGION"), description="The bucket's region."
    )
    aws_s3_endpoint_url: ServerUrl | None = Field(
        None,
        validation_alias=AliasChoices("AWS_S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
        description="An S3 server that is not Amazon's.",
    )
    aws_s3_addressing_style: Literal["auto", "path", "virtual"] = Field(
        "auto",
        description="Where the bucket stands: `path` after the host, `virtual` in the host name. `auto`: after the host of "
        "AWS_S3_ENDPOINT_URL, in the host name at Amazon.",
    )
    aws_request_checksum_calculation: ChecksumUse = Field(
        "when_required",
        description="`when_supported`: objects are written with the `x-amz-checksum-…` headers, which not every server knows. "
        "`when_required`: with a Content-MD5, and compared afterwards.",
    )
    aws_response_checksum_validation: ChecksumUse = Field(
        "when_required", description="`when_supported`: the SDK too checks what it reads. Claims are always checked."
    )
    s3_presign_seconds: float = Field(
        WEEK_SECONDS, gt=0, le=WEEK_SECONDS, description="How long a presigned URL is valid; S3 allows a week."
    )
    s3_cache_control: str = Field("public, max-age=31536000, immutable", description="`Cache-Control` of stored objects.")

    @model_validator(mode="before")
    @classmethod
    def store_url_from_bucket(cls, values: dict[str, Any]) -> dict[str, Any]:
        """STORE_URL from AWS_STORAGE_BUCKET_NAME, which the image worker that this replaces uses."""
        name = values.get("aws_storage_bucket_name") or os.environ.get("AWS_STORAGE_BUCKET_NAME")
        return {"store_url": f"s3://{name}", **values} if name else values

    @field_validator("aws_request_checksum_calculation", "aws_response_checksum_validation", "aws_s3_addressing_style", mode="before")
    @classmethod
    def lower_case(cls, value: Any) -> Any:
        """The SDK reads these variables in any case."""
        return value.strip().lower() if isinstance(value, str) else value

    @field_validator("aws_s3_region_name", "aws_s3_endpoint_url", "aws_storage_bucket_name", mode="before")
    @classmethod
    def strip_blanks(cls, value: Any) -> Any:
        """A line break at the end of a file would otherwise stand in a header."""
        return value.strip() or None if isinstance(value, str) else value

    @field_validator("aws_s3_endpoint_url")
    @classmethod
    def check_endpoint(cls, value: str | None) -> str | None:
        """The SDK says only "Invalid endpoint", or asks for a bucket in a bucket."""
        if value is None:
            return None
        try:
            url = urlsplit(value)
            readable = url.scheme in ("http", "https") and bool(url.hostname) and (url.port or 1) > 0
        except ValueError:
            readable = False
        if not readable or "@" in url.netloc or url.query or url.fragment:
            raise ValueError("AWS_S3_ENDPOINT_URL must be of the form https://host or http://host:port, without user and query")
        return value.rstrip("/")

    @model_validator(mode="after")
    def check_s3_settings(self) -> Self:
        if self.aws_access_key_id and not self.aws_secret_access_key:
            raise ValueError("AWS_ACCESS_KEY_ID needs AWS_SECRET_ACCESS_KEY: set both, or neither for the machine's role")
        path = urlsplit(self.aws_s3_endpoint_url or "").path.strip("/")
        for name, url in (("STORE_URL", self.store_url), ("UPLOAD_URL", self.upload_url)):
            if path and url and url.startswith("s3://") and url.removeprefix("s3://").partition("/")[0] == path:
                raise ValueError(f"AWS_S3_ENDPOINT_URL ends in the bucket {path!r}, which {name} names already: leave it out there")
        return self

    @field_validator("store_url")
    @classmethod
    def check_scheme(cls, value: str) -> str:
        if not value.startswith(("file:///", "s3://")):
            raise ValueError("STORE_URL must begin with file:/// or s3://")
        return value
