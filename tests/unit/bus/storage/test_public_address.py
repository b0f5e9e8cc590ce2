"""Links that stay valid: to the objects of the bucket of the image worker that this replaces, or to STORE_PUBLIC_URL."""

from typing import Any

import pytest

from bus.storage.public_address import describe_expiry, permanent_base
from bus.storage.settings import StoreSettings

SEOUL = {"AWS_S3_REGION_NAME": "ap-northeast-2"}


@pytest.mark.parametrize(
    ("settings", "base"),
    [
        ({"aws_storage_bucket_name": "media"}, "https://media.s3.amazonaws.com"),
        ({"aws_storage_bucket_name": "media"} | SEOUL, "https://media.s3.ap-northeast-2.amazonaws.com"),
        ({"aws_storage_bucket_name": "my.media"} | SEOUL, "https://s3.ap-northeast-2.amazonaws.com/my.media"),
        ({"aws_storage_bucket_name": "media", "AWS_S3_ENDPOINT_URL": "https://s3.example/"}, "https://s3.example/media"),
        ({"aws_storage_bucket_name": "media", "store_url": "s3://media/atelier"}, "https://media.s3.amazonaws.com"),
        ({"aws_storage_bucket_name": "media", "store_public_url": "https://cdn.example/"}, "https://cdn.example"),
        ({"store_url": "s3://media", "store_public_url": "https://cdn.example"}, "https://cdn.example"),
        ({"aws_storage_bucket_name": "media", "store_url": "s3://media-2"}, None),
        ({"store_url": "s3://media"}, None),
    ],
)
def test_base_of_permanent_links(settings: dict[str, Any], base: str | None) -> None:
    store = StoreSettings.model_validate(settings)
    assert permanent_base(store) == base
    assert (describe_expiry(store) is None) == (base is not None)


def test_expiring_links_are_described_and_a_folder_has_none() -> None:
    expiry = describe_expiry(StoreSettings(store_url="s3://media", s3_presign_seconds=86400))
    assert expiry == "links into s3://media are presigned and expire after 1 days"
    assert describe_expiry(StoreSettings(store_url="file:///srv")) is None
