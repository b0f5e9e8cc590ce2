"""The console in a browser: a picture to start from, a painted mask, styles, the gallery, and the pictures in the list of jobs."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from uuid import uuid4

import pytest
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

from tests.e2e.conftest import LORA_ADDRESS
from tests.e2e.console_user import ConsoleUser

OpenConsoleUser = Callable[..., AbstractContextManager[ConsoleUser]]
RED, SIZE = (255, 0, 0), (96, 64)
READ_PIXELS = """
const [selector, points] = arguments, image = document.querySelector(selector), canvas = document.createElement("canvas");
canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
const context = canvas.getContext("2d");
context.drawImage(image, 0, 0);
return points.map(([x, y]) => [...context.getImageData(x, y, 1, 1).data].slice(0, 3));
"""

READ_CANVAS = "const [canvas, x, y] = arguments; return [...canvas.getContext('2d').getImageData(x, y, 1, 1).data];"
SECOND_FINGER = """
const [canvas] = arguments, box = canvas.getBoundingClientRect();
const place = { clientX: box.left + box.width * 0.8, clientY: box.top + box.height / 2 };
const event = { isPrimary: false, pointerId: 7, pointerType: "touch", ...place };
for (const name of ["pointerdown", "pointermove", "pointerup"]) canvas.dispatchEvent(new PointerEvent(name, event));
"""


@pytest.fixture
def red_picture(tmp_path: Path) -> Path:
    Image.new("RGB", SIZE, RED).save(tmp_path / "red.png")
    return tmp_path / "red.png"


def open_form(user: ConsoleUser, prompt: str, source: Path | None = None) -> None:
    user.open_page("/make")
    user.fill(prompt=prompt)
    if source:
        user.click("#source summary")
        user.find("#f-source").send_keys(str(source))
        user.wait_until(lambda: user.element_property("#mask-editor", "hidden") is False)


def submit(user: ConsoleUser) -> None:
    user.follow("form#make button.main")
    user.wait_until(lambda: user.element_property(".pictures img", "complete") and user.element_property(".pictures img", "naturalWidth"))


def pixels(user: ConsoleUser, *points: tuple[int, int], selector: str = ".pictures img") -> list[tuple[int, ...]]:
    return [tuple(pixel) for pixel in user.browser.execute_script(READ_PIXELS, selector, [list(point) for point in points])]


def is_red(pixel: tuple[int, ...]) -> bool:
    return pixel == RED


def test_painted_part_of_picture_is_drawn_anew(console_user: ConsoleUser, red_picture: Path) -> None:
    """The rest stays as it is, to the bit. The form of the job has the picture and the mask again."""
    open_form(console_user, "a harbour", red_picture)
    canvas = console_user.find("#mask-editor canvas")
    console_user.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    ActionChains(console_user.browser).move_to_element(canvas).click_and_hold().move_by_offset(30, 0).release().perform()
    submit(console_user)
    center, *corners = pixels(console_user, (48, 32), (0, 0), (95, 0), (0, 63), (95, 63))
    assert [is_red(pixel) for pixel in (center, *corners)] == [False, True, True, True, True]
    for name in ("source", "mask"):
        assert console_user.element_property(f"[name={name}_ref]", "checked") is True
    console_user.wait_until(lambda: console_user.element_property("#mask-editor", "hidden") is False)
    submit(console_user)
    assert [is_red(pixel) for pixel in pixels(console_user, (48, 32), (0, 0))] == [False, True]


def test_mask_is_painted_erased_and_cleared_by_keyboard(console_user: ConsoleUser, red_picture: Path) -> None:
    """The space bar puts the brush down and lifts it, the arrow keys move it; erasing keeps the picture there."""
    open_form(console_user, "a river", red_picture)
    canvas = console_user.find("#mask-editor canvas")
    canvas.send_keys(Keys.SPACE, Keys.ARROW_DOWN, Keys.SPACE)
    console_user.click("[data-tool=clear]")
    canvas.send_keys(*[Keys.ARROW_LEFT] * 9, Keys.SPACE, *[Keys.ARROW_RIGHT] * 18)
    assert console_user.browser.execute_script("return document.querySelector('#mask-editor [role=status]').textContent") != ""
    canvas.send_keys(Keys.SPACE)
    console_user.click("[data-tool=erase]")
    canvas.send_keys(Keys.SPACE, *[Keys.ARROW_LEFT] * 4, Keys.SPACE)
    submit(console_user)
    row = 32 + 3  # the brush is 5.8 pixels wide; it went down by half of that first
    assert [is_red(pixel) for pixel in pixels(console_user, (30, row), (73, row), (30, 10))] == [False, True, True]


def test_mask_file_is_used_without_painting(console_user: ConsoleUser, red_picture: Path, tmp_path: Path) -> None:
    mask = Image.new("L", SIZE, 0)
    mask.paste(255, (0, 0, 48, 64))
    mask.save(tmp_path / "mask.png")
    open_form(console_user, "a hill", red_picture)
    console_user.find("#f-mask").send_keys(str(tmp_path / "mask.png"))
    submit(console_user)
    assert [is_red(pixel) for pixel in pixels(console_user, (10, 32), (60, 32))] == [False, True]


def test_mask_file_is_painted_further_after_erasing(console_user: ConsoleUser, red_picture: Path, tmp_path: Path) -> None:
    """A second finger paints nothing."""
    mask = Image.new("L", SIZE, 0)
    mask.paste(255, (0, 0, 30, 64))
    mask.save(tmp_path / "mask.png")
    open_form(console_user, "a dune", red_picture)
    canvas = console_user.find("#mask-editor canvas")
    console_user.browser.execute_script(SECOND_FINGER, canvas)
    console_user.click("[data-tool=erase]")
    canvas.send_keys(Keys.SPACE, Keys.SPACE)
    console_user.find("#f-mask").send_keys(str(tmp_path / "mask.png"))
    console_user.wait_until(lambda: console_user.browser.execute_script(READ_CANVAS, canvas, 10, 32) != [*RED, 255])
    console_user.click("[data-tool=draw]")
    canvas.send_keys(Keys.SPACE, Keys.SPACE)
    submit(console_user)
    assert [is_red(pixel) for pixel in pixels(console_user, (10, 32), (48, 32), (80, 32))] == [False, False, True]


def test_picture_too_large_to_paint_on_is_reported(console_user: ConsoleUser, red_picture: Path, tmp_path: Path) -> None:
    """Until another one is chosen."""
    Image.new("1", (5001, 5000)).save(tmp_path / "large.png")
    console_user.open_page("/make")
    console_user.click("#source summary")
    console_user.find("#f-source").send_keys(str(tmp_path / "large.png"))
    console_user.wait_until(lambda: "too large to paint a mask on" in console_user.element_text("#mask-limit"))
    assert console_user.element_property("#mask-editor", "hidden") is True
    console_user.find("#f-source").send_keys(str(red_picture))
    console_user.wait_until(lambda: console_user.element_property("#mask-editor", "hidden") is False)
    assert console_user.element_text("#mask-limit") == ""


def test_mask_without_picture_and_text_file_are_refused_next_to_their_fields(console_user: ConsoleUser, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    console_user.open_page("/make")
    console_user.fill(prompt="a boat")
    console_user.click("#source summary")
    console_user.find("#f-mask").send_keys(str(tmp_path / "notes.txt"))
    console_user.follow("form#make button.main")
    assert console_user.element_text("#h-mask") == "Choose the picture that it belongs to."
    assert "Choose the files again." in console_user.element_text("[role=alert]")
    console_user.find("#f-source").send_keys(str(tmp_path / "notes.txt"))
    console_user.follow("form#make button.main")
    assert "no picture that is read" in console_user.element_text("#h-source")
    console_user.browser.get_log("browser")  # The browser logs the responses 422.


def test_two_styles_are_picked_by_name(console_user: ConsoleUser) -> None:
    """Each with its strength. The page has the names alone, not the addresses."""
    open_form(console_user, "a lighthouse")
    assert LORA_ADDRESS not in console_user.browser.page_source
    console_user.click("#loras summary")
    Select(console_user.find("[name=lora_0]")).select_by_visible_text("ink")
    console_user.fill(lora_0_scale="0.5")
    assert console_user.element_property("#loras > .row:nth-of-type(2)", "hidden") is True
    console_user.click("#more-loras")
    Select(console_user.find("[name=lora_1]")).select_by_visible_text("gouache")
    submit(console_user)
    console_user.click(".result summary")
    assert "ink:0.5 gouache:1" in console_user.element_text(".result details")
    assert [console_user.element_property(f"[name=lora_{row}]", "value") for row in (0, 1)] == ["ink", "gouache"]
    assert console_user.element_property("[name=lora_0_scale]", "value") == "0.5"


def test_format_and_quality_are_those_of_the_file(console_user: ConsoleUser) -> None:
    """The quality can be set for the formats that have one."""
    open_form(console_user, "a windmill")
    console_user.click("details.further summary")
    assert console_user.element_property("[name=quality]", "disabled") is True
    Select(console_user.find("[name=output_format]")).select_by_visible_text("jpeg")
    console_user.fill(quality="60")
    submit(console_user)
    assert str(console_user.element_property(".pictures img", "src")).endswith(".jpg")
    assert console_user.element_property("[name=quality]", "value") == "60"


def test_values_left_empty_are_the_models_own(console_user: ConsoleUser) -> None:
    open_form(console_user, "a meadow")
    submit(console_user)
    assert pixels(console_user, (511, 511))
    assert console_user.element_property(".pictures img", "naturalWidth") == 512
    assert console_user.element_property("[name=width]", "value") == ""


def test_picture_of_gallery_is_where_a_new_order_starts(console_user: ConsoleUser) -> None:
    """Without a download: the form names the picture, and the new picture has its size."""
    prompt = f"a pier {uuid4().hex[:8]}"
    console_user.open_page("/make")
    console_user.fill(prompt=prompt, width="128", height="64")
    submit(console_user)
    console_user.open_page("/gallery")
    assert console_user.element_text(".gallery li .prompt") == prompt
    console_user.wait_until(lambda: console_user.element_property(".gallery img", "naturalWidth") == 128)
    assert console_user.element_property(".gallery img", "alt") == prompt
    console_user.follow(".gallery .links a")
    assert console_user.element_property("[name=source_ref]", "checked") is True
    console_user.wait_until(lambda: console_user.element_property("#mask-editor", "hidden") is False)
    console_user.fill(prompt="the pier at night")
    submit(console_user)
    assert console_user.element_property(".pictures img", "naturalWidth") == 128
    console_user.open_page("/gallery")
    assert console_user.element_text(".gallery li .prompt") == "the pier at night"
    console_user.follow(".gallery a.picture")
    assert console_user.element_text("h1") == "the pier at night"


def test_list_of_jobs_shows_thumbnail_and_prompt(console_user: ConsoleUser) -> None:
    """A job without a picture shows its step and its question."""
    mark = uuid4().hex[:8]
    open_form(console_user, f"a bridge {mark}")
    submit(console_user)
    console_user.submit_order({"kind": "itinerary", "stops": [{"step": "consult", "arguments": {"prompt": f"What is {mark}?"}}]})
    console_user.open_page(f"/jobs?words={mark}")
    console_user.wait_until(lambda: console_user.count("td.job") == 2 or console_user.browser.refresh())
    question, bridge = (cell.text for cell in console_user.browser.find_elements("css selector", "td.job"))
    assert (f"What is {mark}?" in question, "consult" in question, f"a bridge {mark}" in bridge) == (True, True, True)
    assert console_user.count("td.job img") == 1
    console_user.wait_until(lambda: console_user.element_property("td.job img", "naturalWidth") == 384)


def test_new_pages_fit_a_phone_in_korean(open_console_user: OpenConsoleUser, red_picture: Path) -> None:
    with open_console_user(width=375, height=740, language="ko") as user:
        user.log_in()
        open_form(user, "항구", red_picture)
        assert "그림에서 시작하기" in user.element_text("#source summary")
        assert user.browser.execute_script("return document.documentElement.scrollWidth") <= 375
        submit(user)
        for path in ("/gallery", "/jobs"):
            user.open_page(path)
            assert user.browser.execute_script("return document.documentElement.scrollWidth") <= 375, path
        assert user.browser_errors() == []
