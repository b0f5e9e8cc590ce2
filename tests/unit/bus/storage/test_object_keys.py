"""Keys of objects in a claim store: which are safe, in whose folder they lie, and who may read them."""

import hashlib
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.errors import PermanentError
from bus.storage.object_keys import claim_key, is_generated_key, may_read, put_key, sha256_base64, sha256_hex, tenant_prefix

DIGEST = sha256_hex(b"picture")
HOSTILE_NAMES = [
    *("", "/", ".", "..", "../shop", "shop/../office", "shop/", "/shop", "%2f", "..%2fshop", "shop%00", "shop\0", "a\\b", "shop\n"),
    *("Shop", "SHOP", "ſhop", "s\u0301hop", "샵", "\ud800", "sha256-", "claims", "generated", "tenants", "con", "x" * 300),
    f"sha256-{sha256_hex(b'Shop')}",
]
TENANTS = st.sampled_from(HOSTILE_NAMES) | st.text(max_size=80) | st.text(string.ascii_letters + string.digits + "._:@-/%\\", max_size=80)


@pytest.mark.parametrize(
    ("media_type", "extension"),
    [("image/png", "png"), ("image/jpeg", "jpg"), ("application/json", "json"), ("application/x-other", "bin"), ("", "bin")],
)
def test_claim_key_has_digest_and_extension(media_type: str, extension: str) -> None:
    assert claim_key(DIGEST, media_type, tenant=None) == f"claims/{DIGEST[:2]}/{DIGEST}.{extension}"


def test_claim_key_lies_in_folder_of_tenant_and_of_origin() -> None:
    name = f"{DIGEST[:2]}/{DIGEST}.png"
    assert claim_key(DIGEST, "image/png", tenant="shop") == f"tenants/shop/claims/{name}"
    assert claim_key(DIGEST, "image/png", tenant="shop", generated=True) == f"tenants/shop/generated/{name}"
    assert claim_key(DIGEST, "image/png", tenant=None, generated=True) == f"generated/{name}"


@pytest.mark.parametrize("key", ["a", "gen-1.png", "tenant/2026/gen_1~x+y=z.png", "claims-2026/x.png", "a" * 512])
def test_safe_key_is_returned_within_folder_of_tenant(key: str) -> None:
    assert put_key(key, None) == key
    assert put_key(key, "shop") == f"tenants/shop/{key}"


UNSAFE_KEYS = ["", "/a", "a/", "a//b", "../a", "a/../b", "a/.hidden", ".hidden", "a b", "a\\b", "ä", "a\n", "a/%2e%2e/b", "a" * 513]
RESERVED_KEYS = ["claims/ab/x.png", "Claims/x", "generated/ab/x.png", "tenants/office/generations/x.png", "TENANTS/x", "tenants", "claims"]


@pytest.mark.parametrize("tenant", [None, "shop"])
@pytest.mark.parametrize("key", UNSAFE_KEYS + RESERVED_KEYS)
def test_unsafe_or_reserved_key_is_refused(key: str, tenant: str | None) -> None:
    with pytest.raises(PermanentError) as refused:
        put_key(key, tenant)
    assert refused.value.code == "key-refused"


@given(TENANTS, TENANTS)
def test_tenants_have_distinct_folders_below_one(one: str, other: str) -> None:
    """Also on a file system without upper case, and no folder is the start of another one."""
    folders = [tenant_prefix(name) for name in (one, other)]
    for prefix in folders:
        tenants, folder, end = prefix.split("/")
        assert (tenants, end) == ("tenants", "")
        assert set(folder) <= set(string.ascii_lowercase + string.digits + "-_")
        assert 0 < len(folder) <= 80
    assert (folders[0] == folders[1]) == (one == other)
    assert one == other or not folders[0].startswith(folders[1])


def test_hostile_names_have_folders_of_their_own() -> None:
    """A name in the form of another name's folder among them."""
    assert len({tenant_prefix(name) for name in HOSTILE_NAMES}) == len(HOSTILE_NAMES)


@given(TENANTS, TENANTS)
def test_tenant_reads_its_own_keys_alone(one: str, other: str) -> None:
    keys = [
        put_key("gen-1.png", one),
        claim_key(DIGEST, "image/png", tenant=one),
        claim_key(DIGEST, "image/png", tenant=one, generated=True),
    ]
    for recorded in (False, True):
        assert all(may_read(key, one, sha256=DIGEST, recorded=recorded) for key in keys)
        assert all(may_read(key, other, sha256=DIGEST, recorded=recorded) == (one == other) for key in keys)
    assert all(may_read(key, None) for key in keys)


def test_plain_name_is_its_own_folder() -> None:
    assert tenant_prefix("shop-7_b") == "tenants/shop-7_b/"
    assert tenant_prefix("Shop") == f"tenants/sha256-{hashlib.sha256(b'Shop').hexdigest()}/"
    assert tenant_prefix("sha256-x") == f"tenants/sha256-{hashlib.sha256(b'sha256-x').hexdigest()}/"
    assert tenant_prefix(None) == ""


@pytest.mark.parametrize(
    ("key", "from_message", "recorded"),
    [
        ("tenants/shop/generations/gen-1.png", True, True),
        (f"claims/{DIGEST[:2]}/{DIGEST}.png", True, True),
        (f"claims/{DIGEST[:2]}/{'0' * 64}.png", False, True),
        (f"generated/{DIGEST[:2]}/{DIGEST}.png", False, True),
        ("generations/gen-1.png", False, True),
        ("tenants/shops/generations/gen-1.png", False, False),
        ("tenants/office/generations/gen-1.png", False, False),
        ("Tenants/office/generations/gen-1.png", False, False),
        ("tenants", False, True),
        ("tenants/shop/../office/x.png", False, False),
        ("tenants/shop//../office/x.png", False, False),
        ("x/../tenants/office/x.png", False, False),
        ("/tenants/office/x.png", False, False),
        ("./tenants/office/x.png", False, False),
        ("tenants/shop/%2e%2e/office/x.png", False, False),
    ],
)
def test_tenant_reads_keys_of_before_only_from_records(key: str, from_message: bool, recorded: bool) -> None:
    assert may_read(key, "shop", sha256=DIGEST) == from_message
    assert may_read(key, "shop", sha256=DIGEST, recorded=True) == recorded


def test_only_the_folder_of_generated_pictures_says_generated() -> None:
    generated = claim_key(DIGEST, "image/png", tenant="shop", generated=True)
    assert is_generated_key(generated, "shop")
    assert is_generated_key(generated, None)
    assert not is_generated_key(generated, "office")
    for key in (claim_key(DIGEST, "image/png", tenant="shop"), "tenants/shop/x/generated/a.png", "tenants/shop/generations/a.png"):
        assert not is_generated_key(key, "shop")


def test_digest_is_converted_to_base64() -> None:
    assert bytes.fromhex(DIGEST) == hashlib.sha256(b"picture").digest()
    assert sha256_base64(sha256_hex(b"")) == "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
