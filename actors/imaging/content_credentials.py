"""Content Credentials (C2PA): a signed manifest in the image file which says that a model generated the picture.

It must be the last change to the file: any later write or re-encoding invalidates or drops the manifest.
"""

import io
import json
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from actors.settings import CredentialSettings
from bus.errors import PermanentError

DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"

CredentialSigner = Callable[[bytes, str, str], bytes]
"""Takes an image file, its media type and a title; returns the file with the manifest."""


def load_credential_signer(settings: CredentialSettings) -> CredentialSigner | None:
    """None where no certificate is configured. Raises ValueError, which names what is missing or invalid."""
    if settings.chain is None and settings.key is None:
        return None
    if settings.chain is None or settings.key is None:
        raise ValueError("Content Credentials need both a certificate chain and its key: set CREDENTIALS_CHAIN and CREDENTIALS_KEY.")
    try:
        import c2pa
    except ImportError as error:
        raise ValueError("Content Credentials need c2pa-python: pip install 'atelier[credentials]'.") from error
    chain, key, algorithm = read_pem(settings.chain), read_pem(settings.key), settings.algorithm.encode()
    try:
        verify_signing(c2pa.C2paSignerInfo(algorithm, chain, key, None))
    except (c2pa.C2paError, PermanentError) as error:
        raise ValueError(
            f"CREDENTIALS_CHAIN and CREDENTIALS_KEY cannot sign with {settings.algorithm}: {error}. "
            "They must be PEM files: the signer's certificate first in the chain, and its key in PKCS#8."
        ) from error
    return partial(embed_credentials, c2pa.C2paSignerInfo(algorithm, chain, key, settings.timestamp_url or None))


def verify_signing(signer_info: Any) -> None:
    """Sign a picture of one pixel and read it back, so that a wrong key or an expired certificate is found at the start of the process."""
    import c2pa
    from PIL import Image

    from actors.imaging.png_metadata import encode_png

    sample = embed_credentials(signer_info, encode_png(Image.new("RGB", (1, 1)), {}), "image/png", "dot.png")
    with c2pa.Reader("image/png", io.BytesIO(sample)) as reader:
        if reader.get_validation_state() == "Invalid":
            raise PermanentError("credentials-refused", f"a picture signed with it is not valid: {reader.get_validation_results()}")


def read_pem(file: Path) -> bytes:
    try:
        return file.expanduser().read_bytes()
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}. It is named by CREDENTIALS_CHAIN or CREDENTIALS_KEY.") from error


def embed_credentials(signer_info: Any, picture: bytes, media_type: str, title: str) -> bytes:
    """Blocks for about 60 ms. Raises PermanentError("credentials-refused")."""
    import c2pa

    signed = io.BytesIO()
    try:
        with c2pa.Signer.from_info(signer_info) as signer, c2pa.Builder(json.dumps(build_manifest(media_type, title))) as builder:
            builder.sign(signer, media_type, io.BytesIO(picture), signed)
    except c2pa.C2paError as error:
        raise PermanentError("credentials-refused", f"{title} could not be signed as {media_type}: {error}") from error
    return signed.getvalue()


def build_manifest(media_type: str, title: str) -> dict[str, Any]:
    agent = {"name": "atelier", "version": version("atelier")}
    action = {"action": "c2pa.created", "digitalSourceType": DIGITAL_SOURCE_TYPE, "softwareAgent": agent}
    return {
        "title": title,
        "format": media_type,
        "claim_generator_info": [agent],
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [action]}}],
    }
