"""The console in a real browser: from click to picture, what moves meanwhile, who is let in, and on a phone."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from uuid import uuid4

from selenium.webdriver.common.keys import Keys

from tests.e2e.console_user import ConsoleUser

Strangers = Callable[..., AbstractContextManager[ConsoleUser]]


def order(user: ConsoleUser, **fields: str) -> None:
    user.open_page("/make")
    user.click("form#make summary")
    user.fill(**({"prompt": "a quiet valley", "width": "128", "height": "128", "seed": "42"} | fields))
    user.follow("form#make button.main")


def test_an_order_from_click_to_picture(console_user: ConsoleUser) -> None:
    """The picture is there, whole, with its seed; `again` brings the form as it was."""
    order(console_user)
    console_user.wait_until(lambda: console_user.element_property(".pictures img", "complete"))
    assert console_user.element_property(".pictures img", "naturalWidth") == 128
    assert "seed 42" in console_user.element_text("figcaption")
    assert console_user.element_text(".course .state") == "completed"
    assert console_user.element_property("[name=prompt]", "value") == "a quiet valley"
    console_user.fill(seed="43")
    console_user.follow("form#make button.main")
    console_user.wait_until(lambda: "seed 43" in console_user.page_text())


def test_progress_bar_advances_during_generation(console_user: ConsoleUser) -> None:
    """At least three values between begin and end, never backwards, without the page being loaded again."""
    console_user.open_page("/make")
    order(console_user, prompt="a river")
    console_user.find(".step-running")
    console_user.browser.execute_script("window.stillHere = true")
    seen: list[int] = []

    def over() -> bool:
        value = int(console_user.browser.execute_script("return document.querySelector('#whole')?.value ?? 0"))
        if not seen or seen[-1] != value:
            seen.append(value)
        return bool(value == 100)

    console_user.wait_until(over)
    assert len(seen) >= 4, seen
    assert seen == sorted(seen)
    console_user.find(".pictures img")
    assert console_user.browser.execute_script("return window.stillHere") is True


def test_a_prompt_with_a_script_is_shown_as_text(console_user: ConsoleUser) -> None:
    """Stored and shown on every page that has it; it never runs."""
    attack = "<script>window.hit=1</script><img src=x onerror='window.hit=1'>\"'>{{7*7}}"
    order(console_user, prompt=attack, artist="<b onclick=alert(1)>x</b>")
    console_user.find(".pictures img")
    assert console_user.element_property("[name=prompt]", "value") == attack
    assert console_user.element_property(".pictures img", "alt") == attack
    console_user.follow(".links a")
    assert console_user.element_text("h1") == attack
    assert console_user.find(".timeline svg rect.bar-completed")
    assert console_user.browser.execute_script("return window.hit") is None


def test_invalid_field_shows_error_next_to_it(console_user: ConsoleUser) -> None:
    console_user.open_page("/make")
    console_user.browser.execute_script("document.querySelector('#make').noValidate = true")
    console_user.fill(prompt="a boat", width="77")
    console_user.follow("form#make button.main")
    told_by = console_user.read_element("#f-width[aria-invalid=true]", lambda field: field.get_attribute("aria-describedby"))
    assert "multiple of 8" in console_user.element_text(f"#{told_by}")
    assert console_user.element_property("[name=prompt]", "value") == "a boat"
    console_user.browser.get_log("browser")  # The refusal itself, 422, which the browser tells of.


def test_unauthenticated_visitor_is_redirected_to_login_and_back(open_console_user: Strangers) -> None:
    with open_console_user() as visitor:
        visitor.open_page("/jobs?state=completed")
        visitor.fill(key="not a key of anybody")
        visitor.follow("form button.main")
        assert "Nobody has this key" in visitor.element_text("[role=alert]")
        visitor.log_in()
        visitor.open_page("/jobs?state=completed")
        assert visitor.element_text("h1") == "Jobs"
        cookie = visitor.browser.get_cookie("atelier_session")
        assert cookie is not None
        assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Lax", "/console")
        visitor.follow("form[action$=logout] button")
        visitor.open_page("/jobs")
        assert visitor.find("#f-key")


def test_phone_layout_has_no_horizontal_scroll(open_console_user: Strangers) -> None:
    with open_console_user(width=375, height=740) as visitor:
        visitor.log_in()
        order(visitor)
        visitor.find(".pictures img")
        for path in ("/make", "/make?kind=ad", "/jobs", "/dead-letters", "/workshop", "/chat"):
            visitor.open_page(path)
            assert visitor.browser.execute_script("return document.documentElement.scrollWidth") <= 375, path
        visitor.open_page("/jobs")
        visitor.follow("td a.id")
        visitor.find(".timeline")
        assert visitor.browser.execute_script("return document.documentElement.scrollWidth") <= 375


def test_order_is_cancelled_from_job_page(console_user: ConsoleUser) -> None:
    order(console_user, prompt="a fresco that dries")
    console_user.find(".step-running")
    console_user.follow(".links a")
    console_user.follow("form[action$='/cancel'] button")
    console_user.wait_until(lambda: console_user.browser.refresh() or console_user.count(".course .head .state-cancelled"))
    assert console_user.count("form[action$='/cancel']") == 0


def test_order_is_found_by_full_text_search(console_user: ConsoleUser) -> None:
    """Wherever they stand, in any case; and what nobody ordered is said to be nowhere."""
    word = uuid4().hex[:8]
    order(console_user, prompt=f"A lighthouse of {word} at dusk")
    console_user.find(".pictures img")
    console_user.open_page("/jobs")
    console_user.fill(words=f"LIGHTHOUSE OF {word}")
    console_user.follow("form.filter button")
    assert console_user.element_property("#f-words", "value") == f"LIGHTHOUSE OF {word}"
    assert console_user.count("td a.id") == 1
    console_user.fill(words=f"{word} lighthouse")
    console_user.follow("form.filter button")
    assert console_user.find(".empty")


def test_a_dead_letter_is_edited_and_replayed_to_success(console_user: ConsoleUser) -> None:
    """From its group to the letter, through the form that knows the contract and a look at what will change, to `resolved`."""
    order(console_user, prompt="a castle that fails")
    console_user.find(".step-failed")
    console_user.open_page("/dead-letters")
    console_user.follow(".group h2 a")
    console_user.follow("td a.id")
    assert "nobody can draw" in console_user.element_text(".says")
    console_user.find("[name='body.prompt']").clear()
    console_user.follow("#edit button.main")
    assert "prompt" in console_user.element_text("[role=alert]")
    console_user.find("[name='body.prompt']").send_keys("a castle by the sea")
    console_user.follow("#edit button.main")
    assert console_user.element_text(".diff ins") == "a castle by the sea"
    console_user.follow("button.main")
    console_user.wait_until(lambda: "resolved" in console_user.element_text("#state [role=status]"))
    console_user.follow("dd a.id")
    console_user.wait_until(lambda: console_user.browser.refresh() or console_user.count(".course .head .state-completed"))
    assert console_user.find(".pictures img")
    console_user.browser.get_log("browser")  # The refusal of the empty prompt, 422.


def test_dead_letter_group_is_archived_after_preview(console_user: ConsoleUser) -> None:
    order(console_user, prompt="a tower that fails")
    console_user.find(".step-failed")
    console_user.open_page("/dead-letters?state=unresolved")
    console_user.follow(".group form:last-child button")
    assert "archived" in console_user.element_text(".lead")
    console_user.follow("button.main")
    console_user.find("td .state-archived")
    console_user.open_page("/dead-letters?state=unresolved")
    assert console_user.find(".empty")


def test_workers_page_lists_workers_and_warnings(console_user: ConsoleUser) -> None:
    """The crew answers the roll call; an order that nobody takes is said, not only counted; the page renews itself."""
    console_user.open_page("/workshop")
    assert "image" in console_user.element_text(".crew .steps-of")
    assert console_user.find(".well")
    console_user.browser.execute_script("window.stillHere = true")
    console_user.submit_order({"kind": "itinerary", "stops": [{"step": "consult", "arguments": {"prompt": "anybody?"}}]})
    console_user.wait_until(lambda: "1 orders wait for consult" in console_user.element_text(".warnings"))
    assert "atelier run consult" in console_user.element_text(".warnings")
    assert console_user.browser.execute_script("return window.stillHere") is True


def test_console_uses_korean_on_request_and_switches_language(open_console_user: Strangers) -> None:
    with open_console_user(language="ko") as visitor:
        visitor.log_in()
        assert visitor.browser.execute_script("return document.documentElement.lang") == "ko"
        assert visitor.element_text("nav a[aria-current]") == "만들기"
        visitor.follow("button[name=language][value=en]")
        visitor.wait_until(lambda: visitor.element_text("nav a[aria-current]") == "Make")
        visitor.follow("button[name=theme]")
        visitor.find("html[data-theme=dark]")


def test_every_control_has_a_name_and_the_keyboard_reaches_the_content(console_user: ConsoleUser) -> None:
    """What a screen reader says of a field is its label; the first stop of Tab leads past the menu."""
    for path in ("/make", "/make?kind=ad", "/jobs", "/dead-letters", "/workshop"):
        console_user.open_page(path)
        nameless = console_user.browser.execute_script(
            "return [...document.querySelectorAll('input:not([type=hidden]), select, textarea, button, a, svg[role=img]')]"
            ".filter(e => !(e.labels?.length || e.textContent.trim() || e.getAttribute('aria-label'))).map(e => e.outerHTML)"
        )
        assert nameless == [], path
        assert console_user.count("h1") == 1
        assert console_user.count("main#main") == 1
    console_user.browser.switch_to.active_element.send_keys(Keys.TAB)
    assert console_user.browser.switch_to.active_element.get_attribute("href").endswith("#main")


def test_chat_reply_is_streamed_to_page(console_user: ConsoleUser) -> None:
    """The answer appears without the page being loaded again; a message with markup is shown as text."""
    console_user.open_page("/chat")
    console_user.browser.execute_script("window.stillHere = true")
    console_user.fill(message="three <b>two</b> one")
    console_user.click("#say button.main")
    console_user.wait_until(
        lambda: "one" in console_user.element_text(".line-assistant p") and console_user.count("#said[aria-busy=false]")
    )
    assert console_user.element_text(".line-user p") == "three <b>two</b> one"
    assert console_user.element_text(".line-assistant p") == "one <b>two</b> three"
    assert console_user.browser.execute_script("return window.stillHere") is True
    assert "conversation=" in console_user.browser.current_url
