"""The settings of the claim store and of foreign assets."""

import os
from typing import Any

from pydantic import AliasChoices, Field, SecretStr, field_validator, model_validator

from bus.net.ssrf import AddressSettings
from bus.settings import PathList, StringList

WEEK_SECONDS = 7 * 24 * 3600.0


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
    aws_access_key_id: str | None = Field(None, description="Empty: the credentials of the machine's role.")
    aws_secret_access_key: SecretStr | None = Field(None, description="Belongs to the access key.")
    aws_session_token: SecretStr | None = Field(None, description="Of a temporary access key.")
    aws_storage_bucket_name: str | None = Field(None, description="Stands for `STORE_URL=s3://<name>`.")
    aws_s3_region_name: str | None = Field(
        None, validation_alias=AliasChoices("AWS_S3_REGION_NAME", "AWS_REGION", "AWS_DEFAULT_REGION"), description="The bucket's region."
    )
    aws_s3_endpoint_url: str | None = Field(
        None,
        validation_alias=AliasChoices("AWS_S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
        description="An S3 server that is not Amazon's.",
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

    @field_validator("store_url")
    @classmethod
    def check_scheme(cls, value: str) -> str:
        if not value.startswith(("file:///", "s3://")):
            raise ValueError("STORE_URL must begin with file:/// or s3://")
        return value
