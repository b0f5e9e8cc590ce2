"""Where a store lies, and which key of it an address names."""

from pathlib import Path

import pytest

from bus.storage.locations import BucketLocation, FolderLocation, parse_bucket, parse_location


@pytest.mark.parametrize(
    ("url", "location"),
    [
        ("s3://media", BucketLocation("media")),
        ("s3://media/", BucketLocation("media")),
        ("s3://media/atelier", BucketLocation("media", "atelier/")),
        ("s3://media/a/b/", BucketLocation("media", "a/b/")),
        ("file:///srv/a%20store", FolderLocation(Path("/srv/a store"))),
    ],
)
def test_location_is_parsed_from_store_url(url: str, location: BucketLocation | FolderLocation) -> None:
    assert parse_location(url) == location


@pytest.mark.parametrize(
    ("setting", "uri", "key"),
    [
        ("media", "s3://media/loras/x.png", "loras/x.png"),
        ("media/loras", "s3://media/loras/x.png", "x.png"),
        ("media/loras/", "s3://media/loras/a b/ä.png", "a b/ä.png"),
        ("media/loras", "s3://media/loras-other/x.png", None),
        ("media/loras", "s3://media/loras", None),
        ("media/loras", "s3://media-other/loras/x.png", None),
        ("media/loras", "s3://media/loras/../private/x.png", None),
        ("media/loras", "s3://media/loras/./x.png", None),
        ("media/loras", "s3://media/loras//x.png", None),
        ("media/loras", "s3://media//loras/x.png", None),
        ("media/loras", "S3://media/loras/x.png", None),
        ("media/loras", "https://media/loras/x.png", None),
    ],
)
def test_prefix_of_bucket_ends_at_a_segment(setting: str, uri: str, key: str | None) -> None:
    assert parse_bucket(setting).key_of(uri) == key


def test_folder_has_the_key_of_the_file_that_an_address_leads_to(tmp_path: Path) -> None:
    root = tmp_path / "store"
    (root / "tenants" / "shop").mkdir(parents=True)
    (root / "link").symlink_to(root / "tenants" / "shop")
    (tmp_path / "alias").symlink_to(root)
    location = FolderLocation(tmp_path / "alias")
    for start in (root.as_uri(), (tmp_path / "alias").as_uri(), f"file://localhost{root}", f"file:{root}"):
        assert location.key_of(f"{start}/tenants/shop/x.png") == "tenants/shop/x.png"
        assert location.key_of(f"{start}/link/x.png") == "tenants/shop/x.png"
        assert location.key_of(f"{start}/link/%2e%2e/office/x.png") == "tenants/office/x.png"
        assert location.key_of(f"{start}/a/../../other/x.png") is None
        assert location.key_of(f"{start}-other/x.png") is None
    (root / "a#b?c").mkdir()
    assert location.key_of(f"{root.as_uri()}/a#b?c/x") == location.key_of(f"{root.as_uri()}/a%23b%3Fc/x") == "a#b?c/x"
    for uri in ("", "x", "file://[", "file://host/x", f"file://{root}/\0", "file:///\ud800", f"file://{root}/{'a/' * 500_000}"):
        assert location.key_of(uri) is None
    (root / "loop").symlink_to(root / "loop")
    assert location.key_of(f"{root.as_uri()}/loop/x") in (None, "loop/x")
