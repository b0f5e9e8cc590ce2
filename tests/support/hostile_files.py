"""Small inputs that cost a decoder much: bombs, deep nesting, many frames, scans and digits. Each has at most a few megabytes."""

import io
import json
import struct
import zlib
from collections.abc import Iterator

from PIL import Image

from tests.support.picture_files import EXIF_HEAD, exif_comment, jpeg, with_segment
from tests.support.sample_documents import make_docx, make_pdf, make_pdf_bomb

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
ENTITY_LEVELS = 12


def hostile_json(size: int = 1 << 20) -> Iterator[bytes]:
    """About `size` bytes each: depth, digits, escapes, members, lone surrogates, and text that only begins as JSON."""
    yield b"[" * size
    yield b'{"a":' * (size // 5)
    yield b"[" * (size // 2) + b"]" * (size // 2)
    yield b'{"a": ' + b"9" * size + b"}"
    yield b'{"a": 1e' + b"9" * size + b"}"
    yield b'{"a": 0.' + b"3" * size + b"}"
    yield b'{"a": "' + b"\\u0041" * (size // 6) + b'"}'
    yield b'{"a": "' + b"\\ud800" * (size // 6) + b'"}'
    yield b'{"a": "' + b"\\" * size
    yield b"{" + b",".join(b'"%d":0' % number for number in range(size // 12)) + b"}"
    yield b"{" + b",".join([b'"a":0'] * (size // 6)) + b"}"
    yield b"[" + b",".join([b"{}"] * (size // 3)) + b"]"
    yield b"{ " * (size // 2)
    yield b" " * size
    yield b"\xff\xfe" * (size // 2)


def hostile_texts_of_json(size: int = 1 << 16) -> Iterator[str]:
    yield from (data.decode(errors="replace") for data in hostile_json(size))


def hostile_base64(size: int = 1 << 21) -> Iterator[str]:
    yield "A" * size
    yield "A " * (size // 2)
    yield " " * size
    yield "=" * size
    yield "data:" * (size // 5)
    yield "data:image/" + "a" * size
    yield "data:," + "%3D" * (size // 3)
    yield "\ud800" * size


def scan_bomb(scans: int = 1000, side: int = 1600) -> bytes:
    """A progressive JPEG whose last scan is repeated: few bytes each, and a pass over all pixels."""
    with io.BytesIO() as file:
        Image.new("RGB", (side, side), "white").save(file, "JPEG", progressive=True)
        data = file.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + data[-2:]


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(*chunks: bytes, side: int = 16, pixels: bytes | None = None) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    data = zlib.compress(pixels if pixels is not None else b"\0" * (side * (3 * side + 1)))
    return PNG_SIGNATURE + header + b"".join(chunks) + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


def animation(image_format: str, frames: int = 500) -> bytes:
    pictures = [Image.new("RGB", (64, 64), (number % 256, 0, 0)) for number in range(frames)]
    with io.BytesIO() as file:
        pictures[0].save(file, image_format, save_all=True, append_images=pictures[1:])
        return file.getvalue()


def hostile_metadata() -> Iterator[bytes]:
    """Pictures of at most 10 MB: bombs, and chunks that each stay within the limit of a chunk or exceed it by little."""
    text, compressed, international = b"key\0", b"key\0\0", b"key\0\1\0\0\0"
    for kind, head, size in ((b"iCCP", compressed, 4 << 20), (b"zTXt", compressed, 2 << 20), (b"iTXt", international, 5 << 20)):
        yield png_with(png_chunk(kind, head + zlib.compress(bytes(80 << 20))))
        bomb = head + zlib.compress(bytes(size))
        for data in (bomb, bomb[:-8]):
            yield png_with(*[png_chunk(kind, data)] * (9_000_000 // len(data)))
    yield png_with(*[png_chunk(b"tEXt", b"key%d\0" % number + b"x" * 1000) for number in range(9000)])
    small = (
        (b"tEXt", text + b"v"),
        (b"iTXt", b"a\0\0\0\0\0v"),
        (b"eXIf", b"MM\0*\0\0\0\x08\0\0"),
        (b"iCCP", b""),
        (b"tIME", b""),
        (b"tRNS", b""),
    )
    for kind, content in small:
        yield png_with(*[png_chunk(kind, content)] * 500_000)
    yield png_with(png_chunk(b"eXIf", b"MM\0*\0\0\0\x08" + b"\xff\xff" * 30_000))
    yield png_with(png_chunk(b"eXIf", b"Exif\0\0" * 1_500_000))
    yield b"RIFF\xff\xff\xff\xffWEBPEXIF" + struct.pack("<I", 9_000_000) + b"Exif\0\0" * 1_500_000
    for comment in hostile_json(60_000):
        yield with_segment(jpeg(), 0xE1, EXIF_HEAD + exif_comment(b"ASCII\0\0\0" + comment[:65_000]))


def animated_gif(frame_size: bytes, frames: int) -> bytes:
    """A picture of one pixel, and frames of any size, each with the data of one pixel."""
    frame = b"\x2c\0\0\0\0%s\0\2\2\x44\1\0"
    head = b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff"
    return head + frame % b"\1\0\1\0" + frame % frame_size * frames + b";"


def hostile_pictures() -> Iterator[bytes]:
    yield scan_bomb()
    yield from hostile_metadata()
    yield png_with(side=100_000, pixels=b"\0" * 1000)
    yield png_with(side=4900, pixels=b"\0" * (100 << 20))
    yield from (animation(image_format) for image_format in ("GIF", "PNG", "WEBP"))
    yield animated_gif(b"\1\0\1\0", frames=100_000)
    yield animated_gif(b"\xff\xff\xff\xff", frames=3)
    for image_format in ("TIFF", "PPM", "ICO", "EPS", "PCX", "TGA"):
        with io.BytesIO() as file:
            Image.new("RGB", (16, 16)).save(file, image_format)
            yield file.getvalue()
    yield b"\xff\xd8" + b"\xff\xe1\xff\xff" * 100_000
    yield b"\xff\xd8" + b"\xff\xe1\0\2" * 1_000_000
    yield b"\xff\xd8" + b"\xff\xda\0\2" * 1_000_000
    yield b"\xff\xd8" + b"\xff" * 4_000_000
    yield b"RIFF\xff\xff\xff\xffWEBP" + b"VP8 \0\0\0\0" * 500_000
    yield PNG_SIGNATURE + b"\0\0\0\0IDAT\0\0\0\0" * 500_000
    yield b"GIF89a" + b"\xff" * 1_000_000
    yield b"RIFF\xff\xff\xff\xffWEBPVP8X" + b"\xff" * 1_000_000
    yield b""


def hostile_documents() -> Iterator[bytes]:
    levels = "".join(f'<!ENTITY e{number} "{f"&e{number - 1};" * 10}">' for number in range(1, ENTITY_LEVELS))
    yield make_docx("&e11;", prologue=f'<!DOCTYPE d [<!ENTITY e0 "ha">{levels}]>')
    yield make_docx("x" * (20 << 20))
    yield make_docx("<w:r>" * 100_000)
    yield make_docx("text").replace(b"PK\x01\x02", b"PK\x01\x02" * 2)
    yield make_pdf_bomb(20)
    pdf = make_pdf("Hello")
    yield pdf.replace(b"/Kids [ 3 0 R ]", b"/Kids [ 1 0 R ]")
    yield b"%PDF-1.7\n" + b"[" * 1_000_000
    yield b"%PDF-1.7\n" + b"<<" * 500_000
    yield b"%PDF-1.7\n1 0 obj\n" + b"9" * 1_000_000 + b"\nendobj\nstartxref\n9\n%%EOF"
    yield b"%PDF-1.7\n" + b"xref\n0 99999999\n" + b"0000000000 65535 f \n" * 50_000
    yield b"PK\x03\x04" + b"PK\x01\x02" * 500_000
    yield ("e\u0301\u0323" * 500_000).encode()


def safetensors(header: object, length: int | None = None, weights: int = 64) -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded) if length is None else length) + encoded + b"\0" * weights


def hostile_weights() -> Iterator[bytes]:
    """Headers of 100 MB and of 2^63 bytes, depth, digits, offsets that overlap or exceed the file."""
    tensor = {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}
    key = "unet.down_blocks.0.lora_A.weight"
    yield safetensors(b" " * (100 << 20))
    yield safetensors({}, length=1 << 63)
    yield from (safetensors(data) for data in hostile_json(1 << 20))
    yield safetensors({key: tensor, key.replace("lora_A", "lora_B"): tensor | {"shape": [10**4000, -1]}})
    yield safetensors({f"{key}{number}": tensor for number in range(50_000)})
    yield safetensors({key: tensor | {"data_offsets": [64, 0]}})
    yield safetensors({key: tensor | {"shape": "many"}})
    yield safetensors({"_" * 1_000_000: tensor})
