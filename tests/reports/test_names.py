"""Names of people as they are written in the world: drawn right, or refused before a device does anything; never a wrong word in silence.

The reports are public ones, in our words; the head of each test names its report.
"""

import asyncio
import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from anyio import CapacityLimiter
from PIL import Image, ImageChops, ImageFont, features

from actors.imaging import fonts
from actors.imaging.fonts import BUNDLED_FONTS, FOLDER, FontFace, load_fonts, prepare_drawing, read_code_points
from actors.imaging.signature import load_font, render_text_mark
from actors.imaging.text_runs import TextRun, split_into_runs
from actors.overlay import open_overlay
from actors.settings import WatermarkSettings
from actors.watermark import open_watermark, watermark
from actors.webhooks.webhook_request import build_request
from bus.actor import Resources
from bus.errors import PermanentError
from bus.storage.claim_store import open_claim_store
from bus.storage.settings import StoreSettings
from contracts.drawn_characters import is_drawable
from contracts.drawn_text import prepare_text
from contracts.watermark import Watermark, WatermarkDone
from contracts.webhook import Webhook
from gateway.console.order_form import ORDER_ADAPTER
from gateway.jobs.drawn_texts import find_drawing_problems
from gateway.settings import GatewaySettings
from ops.commands.doctor_host import check_shaping
from ops.docgen.settings_catalog import ROOT
from ops.settings import LocalSettings
from tests.support.actor_context import make_context
from tests.support.picture_files import encode

PICTURE = (1200, 600)
UNDRAWABLE = "ሀይሌ"


def runs_of(text: str) -> list[TextRun]:
    faces = load_fonts()
    return split_into_runs(prepare_drawing(text, faces).text, faces)


def words_of(text: str) -> list[tuple[str, str | None]]:
    """From left to right."""
    return [(run.text.strip(), run.direction) for run in runs_of(text) if run.text.strip()]


def draw(text: str) -> Image.Image:
    return render_text_mark(runs_of(text), PICTURE, "large")


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.size == other.size and ImageChops.difference(one, other).getbbox() is None


def order(text: str, **more: Any) -> Any:
    return ORDER_ADAPTER.validate_python({"kind": "image_order", "prompt": "x", "signature": {"text": text}} | more)


NAMES = {
    "bastienlc/pdf-watermark #19: Chinese": "张伟",
    "Japanese": "山田太郎",
    "half-width Japanese, as banks write it": "ﾔﾏﾀﾞ ﾀﾛｳ",
    "Korean": "김철수",
    "three scripts in one name": "Kim 张伟 김철수",
    "python-pillow/Pillow #3081: Arabic": "محمد",
    "Hebrew with vowels": "שָׁלוֹם",
    "python-pillow/Pillow #3191, #4070: Devanagari": "राष्ट्रिय दृश्य",
    "Thai": "สวัสดี น้ำ",
    "Vietnamese": "Nguyễn Đặng Hữu",
    "python-pillow/Pillow #6258: Sanskrit in Latin letters": "Kṛṣṇa",
    "Persian with a joiner": "می\u200cخواهم",
    "Armenian and Georgian": "Արամ გიორგი",
    "signs": "Jane & Joe ★ © 2026",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=list(NAMES))
def test_name_is_drawn(name: str) -> None:
    """C37, C38. What is drawn has every letter, and the gateway accepts it too."""
    assert draw(name).getbbox() is not None
    assert prepare_text(name, is_drawable).left_out == ""
    assert find_drawing_problems(order(name), GatewaySettings()) == {}


EQUAL = {
    "kovidgoyal/kitty #8433, crosspoint-reader/crosspoint-reader #3036: Korean from macOS": (
        unicodedata.normalize("NFD", "김철수"),
        "김철수",
    ),
    "an accent of its own": ("Zoe\u0308", "Zoë"),
    "sakura-editor/sakura #1899: a variant of a Japanese letter": ("葛\U000e0100城", "葛城"),
    "chatmail/core #3479: a control that reverses": ("Evil Rabbit\u202e", "Evil Rabbit"),
    "infinity-next/infinity-next #65: a mark of direction before it": ("\u200fvatsuG", "vatsuG"),
    "isolates": ("\u2067Jane\u2069", "Jane"),
    "Facepunch/garrysmod-issues #5908, discourse/discourse #21331: blank letters within": ("Ja\u200bn\u2060e\u3164", "Jane"),
    "line breaks, tabs and NUL": ("Jane\r\n\tDoe\0", "Jane Doe"),
    "half an emoji, as a limit of length leaves it": ("Jane\ud83c", "Jane"),
    "what replaced half an emoji": ("Jane\ufffd", "Jane"),
    "a joiner between Latin letters": ("Ja\u200dne", "Jane"),
    "python-pillow/Pillow #4403: a radical in place of its letter": ("\u2fa6", "金"),
    "a company's sign": ("㍿タナカ", "株式会社タナカ"),
    "letters in squares": ("\U0001f13a\U0001f138\U0001f13c", "KIM"),
    "a decorated name": ("\U0001d4d9\U0001d4ea\U0001d4f7\U0001d4ee", "Jane"),
    "telegramdesktop/tdesktop #31220, infinity-next #65: marks without end": ("J\u0301" + "\u0315" * 150, "J\u0301" + "\u0315" * 3),
}


@pytest.mark.parametrize(("name", "plain"), EQUAL.values(), ids=list(EQUAL))
def test_name_is_drawn_as_its_plain_form(name: str, plain: str) -> None:
    assert same(draw(name), draw(plain))


def test_arabic_is_joined_and_runs_from_right_to_left() -> None:
    """python-pillow/Pillow #3081: letters stood alone, from left to right. The joined forms have code points of their own."""
    by_hand = ImageFont.truetype(FOLDER / "DejaVuSans.ttf", 40, layout_engine=ImageFont.Layout.BASIC)
    joined = "\ufee3\ufea4\ufee4\ufeaa"[::-1]
    assert bytes(load_font(FOLDER / "DejaVuSans.ttf", 40).getmask("محمد")) == bytes(by_hand.getmask(joined))
    assert bytes(by_hand.getmask("محمد")) != bytes(by_hand.getmask(joined))


def test_words_of_two_fonts_keep_the_order_of_the_language() -> None:
    """CnCNet/xna-cncnet-client #1036: a text that needs two fonts was shaped in parts, and its words came in the wrong order."""
    assert words_of("김철수 محمد علي") == [("김철수", "ltr"), ("محمد علي", "rtl")]
    assert [word for word, _ in words_of("محمد 张 علي")] == ["علي", "张", "محمد"]


def test_numbers_in_text_from_right_to_left_are_not_reversed() -> None:
    """SixLabors/Fonts #198: numbers run from left to right."""
    assert words_of("محمد 123 张") == [("张", "ltr"), ("123", "ltr"), ("محمد", "rtl")]


def test_letter_keeps_its_marks_in_one_font() -> None:
    """python-pillow/Pillow #4808: with a second font for what the first lacks, an accent lost its letter."""
    assert {run.face.path.stem: run.text for run in runs_of("x\u0323김")} == {"DejaVuSans": "x\u0323", "NanumGothic": "김"}


def test_mark_that_its_letters_font_lacks_is_left_out_and_named() -> None:
    drawn = prepare_drawing("김\u0308", load_fonts())
    assert (drawn.text, drawn.left_out) == ("김", "\u0308")


def test_name_of_one_word_has_one_font_where_one_has_all_of_it() -> None:
    assert [run.face.path.stem for run in runs_of("김 张伟")] == ["NanumGothic", "DroidSansFallbackCJK"]


EMOJI = {
    "C38": ("Kim 🎨", "Kim", "🎨"),
    "drkPrince/tweet-to-image #7: several": ("🔥 Jane 🎉🎉", "Jane", "🔥🎉🎉"),
    "zenn-dev/zenn-community #720: nothing else": ("🌱🌿☘️🍀", "☘", "🌱🌿🍀"),
    "scastiel/github-business-card #1": ("Cloud @ 🍏", "Cloud @", "🍏"),
    "a family": ("👨\u200d👩\u200d👧 Doe", "Doe", "👨\u200d👩\u200d👧"),
    "a skin tone": ("Joe 👍🏽", "Joe", "👍🏽"),
    "a flag": ("Kim 🇰🇷", "Kim", "🇰🇷"),
    "a flag of tags": ("🏴\U000e0067\U000e0062\U000e007f Ann", "Ann", "🏴\U000e0067\U000e0062\U000e007f"),
    "a key": ("1\ufe0f\u20e3 Ann", "Ann", "1\ufe0f\u20e3"),
    "an emoji of next year": ("Ann \U0001fae9", "Ann", "\U0001fae9"),
    "one that a font has": ("a 😀", "a", "😀"),
    "a sign for private use": ("\uf8ff Kim", "Kim", "\uf8ff"),
    "two halves": ("Kim \ud83c\udfa8", "Kim", "🎨"),
}


@pytest.mark.parametrize(("name", "text", "left_out"), EMOJI.values(), ids=list(EMOJI))
def test_emoji_are_left_out_and_named(name: str, text: str, left_out: str) -> None:
    drawn = prepare_drawing(name, load_fonts())
    assert (drawn.text, drawn.left_out) == (text, left_out)


async def sign(folder: Path, **signature: Any) -> tuple[WatermarkDone, Image.Image]:
    async with open_claim_store(StoreSettings(store_url=folder.as_uri())) as claims:
        claim = await claims.write(encode(Image.new("RGB", (400, 200), "grey"), "PNG"), media_type="image/png", tenant=None, generated=True)
        command = Watermark.model_validate({"images": [claim.model_dump()], "signature": signature})
        done = await watermark(command, make_context(), claims=claims, settings=WatermarkSettings(), threads=CapacityLimiter(1))
        return done, Image.open(await asyncio.to_thread(local_path, done.images[0].uri))


def local_path(uri: str) -> Path:
    return Path(uri.removeprefix("file://"))


async def test_result_says_what_was_left_out_of_a_signature(tmp_path: Path) -> None:
    done, signed = await sign(tmp_path, text="Kim 🎨")
    assert (done.signature_left_out, done.signature_missing) == ("🎨", False)
    assert len(signed.getcolors(10**6) or []) > 1
    assert signed.info["artist"] == "Kim 🎨"


async def test_signature_of_emoji_alone_is_missing_and_no_failure(tmp_path: Path) -> None:
    done, signed = await sign(tmp_path, text="🎨👍🏽")
    assert (done.signature_left_out, done.signature_missing) == ("🎨👍🏽", True)
    assert len(signed.getcolors() or []) == 1


async def test_name_that_stands_in_for_a_missing_picture_never_fails_the_order(tmp_path: Path) -> None:
    uri = (tmp_path / "missing.png").as_uri()
    done, signed = await sign(tmp_path, text=UNDRAWABLE, image_uri=uri, required=False)
    assert (done.signature_missing, len(signed.getcolors() or [])) == (True, 1)


def test_backend_learns_what_was_left_out() -> None:
    fields = {"kind": "complete", "generation_id": 1, "result_url": "https://a/b.png"}
    body = json.loads(build_request(Webhook.model_validate(fields | {"signature_left_out": "🎨"})).body)
    assert body["metadata"] == {"signature_left_out": "🎨"}
    assert "metadata" not in json.loads(build_request(Webhook.model_validate(fields)).body)


def test_gateway_knows_exactly_the_characters_of_the_bundled_fonts() -> None:
    points = frozenset().union(*(read_code_points(path) for path in BUNDLED_FONTS))
    assert {point for point in points if point >= 0x20} == {point for point in range(sys.maxunicode + 1) if is_drawable(chr(point))}
    assert {path.name for path in BUNDLED_FONTS} == {path.name for path in BUNDLED_FONTS[0].parent.glob("*.ttf")}


def test_every_font_has_its_licence_and_a_blank() -> None:
    texts = "".join(path.read_text() for path in BUNDLED_FONTS[0].parent.glob("*.txt"))
    faces = load_fonts()
    assert [face.path.name for face in faces if not face.supports(" ")] == []
    assert [face.path.name for face in faces if face.path.name.startswith(("Droid", "Noto")) and face.path.name not in texts] == []
    assert "Apache License" in texts
    assert sum(face.path.stat().st_size for face in faces) < 10 << 20


def test_any_text_is_drawn_or_refused_with_its_character() -> None:
    """Finds the next report: a letter of every block of Unicode, alone, doubled, with a mark and beside Latin and Arabic ones."""
    faces = load_fonts()
    outcomes = {"drawn": 0, "glyph-missing": 0}
    for start in (*range(0x20, 0x30000, 0x80), 0xE0100, 0xF0000, 0x10FFFF):
        character = chr(start + 3 if start < 0x30000 else start)
        for name in (character, f"{character}\u0301{character}", f"Kim {character}", f"محمد {character} علي"):
            outcomes[outcome_of(name, faces)] += 1
    assert min(outcomes.values()) > 100


def outcome_of(name: str, faces: tuple[FontFace, ...]) -> str:
    try:
        drawn = prepare_drawing(name, faces)
    except PermanentError as error:
        return error.code if "U+" in str(error) else str(error)
    runs = split_into_runs(drawn.text, faces) if drawn.text else []
    assert sorted("".join(run.text for run in runs)) == sorted(drawn.text)
    assert all(run.face.supports(run.text) for run in runs)
    return "drawn"


async def test_steps_that_draw_do_not_start_without_shaping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """python-pillow/Pillow #6860, mpcabd/python-arabic-reshaper #102: a slim image lacks FriBiDi, and the text is drawn reversed."""
    monkeypatch.setattr(fonts.features, "check", lambda feature: feature != "raqm")
    async with open_claim_store(StoreSettings(store_url=tmp_path.as_uri())) as claims:
        for open_step in (open_watermark, open_overlay):
            with pytest.raises(PermanentError, match=r"FriBiDi.*apt-get install libfribidi0"):
                await open_step(Resources(claims)).__aenter__()
    check = check_shaping(LocalSettings())
    assert (check.ok, "libfribidi0" in check.cure) == (False, True)


def test_doctor_is_content_with_shaping() -> None:
    assert check_shaping(LocalSettings()).ok


@pytest.mark.skipif(os.geteuid() != 0, reason="a file can be hidden from a process by root only")
def test_process_without_the_library_ends_at_its_start_with_the_cure(amqp_url: str, tmp_path: Path) -> None:
    """The real lack: FriBiDi is hidden from the process, as in python:3.11-slim."""
    libraries = {path.resolve() for folder in ("/lib", "/usr/lib") for path in Path(folder).rglob("libfribidi.so*")}
    hide = " && ".join(f"mount --bind /dev/null {path}" for path in libraries) or "true"
    command = ["unshare", "-m", "sh", "-c", f'{hide} && exec "$0" -m ops.cli run watermark', sys.executable]
    settings = {
        "AMQP_URL": amqp_url,
        "STORE_URL": tmp_path.as_uri(),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "HEALTH_PORT": "0",
    }
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=settings, timeout=60, check=False)
    output = ended.stdout + ended.stderr
    if "unshare:" in output or "mount:" in output:
        pytest.skip(f"no mount namespace: {output[:200]}")
    assert ended.returncode not in (0, None)
    assert "apt-get install libfribidi0" in output
    assert "Traceback" not in ended.stderr


def test_every_image_installs_what_shaping_needs() -> None:
    """Pillow's wheel has raqm, and loads FriBiDi when it runs."""
    files = [ROOT / "Dockerfile", *(ROOT / "ops/images").glob("*.Dockerfile")]
    assert len(files) > 3
    last_stages = {path.name: path.read_text().rpartition("\nFROM ")[2] for path in files}
    assert [name for name, stage in last_stages.items() if "libfribidi0" not in stage] == []
    assert features.check("raqm"), "tests draw names too: apt-get install libfribidi0"
