"""The console in a real browser: from click to picture, what moves meanwhile, who is let in, and on a phone."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from uuid import uuid4

from selenium.webdriver.common.keys import Keys

from tests.e2e.visitor import Visitor

Strangers = Callable[..., AbstractContextManager[Visitor]]


def order(visitor: Visitor, **fields: str) -> None:
    visitor.go("/make")
    visitor.click("form#make summary")
    visitor.fill(**({"prompt": "a quiet valley", "width": "128", "height": "128", "seed": "42"} | fields))
    visitor.follow("form#make button.main")


def test_an_order_from_click_to_picture(visitor: Visitor) -> None:
    """The picture is there, whole, with its seed; `again` brings the form as it was."""
    order(visitor)
    visitor.soon(lambda: visitor.property(".pictures img", "complete"))
    assert visitor.property(".pictures img", "naturalWidth") == 128
    assert "seed 42" in visitor.text("figcaption")
    assert visitor.text(".course .state") == "completed"
    assert visitor.property("[name=prompt]", "value") == "a quiet valley"
    visitor.fill(seed="43")
    visitor.follow("form#make button.main")
    visitor.soon(lambda: "seed 43" in visitor.words())


def test_the_bar_moves_while_the_picture_is_drawn(visitor: Visitor) -> None:
    """At least three values between begin and end, never backwards, without the page being loaded again."""
    visitor.go("/make")
    order(visitor, prompt="a river")
    visitor.find(".step-running")
    visitor.browser.execute_script("window.stillHere = true")
    seen: list[int] = []

    def over() -> bool:
        value = int(visitor.browser.execute_script("return document.querySelector('#whole')?.value ?? 0"))
        if not seen or seen[-1] != value:
            seen.append(value)
        return bool(value == 100)

    visitor.soon(over)
    assert len(seen) >= 4, seen
    assert seen == sorted(seen)
    visitor.find(".pictures img")
    assert visitor.browser.execute_script("return window.stillHere") is True


def test_a_prompt_with_a_script_is_shown_as_text(visitor: Visitor) -> None:
    """Stored and shown on every page that has it; it never runs."""
    attack = "<script>window.hit=1</script><img src=x onerror='window.hit=1'>\"'>{{7*7}}"
    order(visitor, prompt=attack, artist="<b onclick=alert(1)>x</b>")
    visitor.find(".pictures img")
    assert visitor.property("[name=prompt]", "value") == attack
    assert visitor.property(".pictures img", "alt") == attack
    visitor.follow(".links a")
    assert visitor.text("h1") == attack
    assert visitor.find(".timeline svg rect.bar-completed")
    assert visitor.browser.execute_script("return window.hit") is None


def test_a_field_that_is_wrong_says_so_beside_it(visitor: Visitor) -> None:
    visitor.go("/make")
    visitor.browser.execute_script("document.querySelector('#make').noValidate = true")
    visitor.fill(prompt="a boat", width="77")
    visitor.follow("form#make button.main")
    told_by = visitor.read("#f-width[aria-invalid=true]", lambda field: field.get_attribute("aria-describedby"))
    assert "multiple of 8" in visitor.text(f"#{told_by}")
    assert visitor.property("[name=prompt]", "value") == "a boat"
    visitor.browser.get_log("browser")  # The refusal itself, 422, which the browser tells of.


def test_a_stranger_is_sent_to_the_login_and_back(stranger: Strangers) -> None:
    with stranger() as visitor:
        visitor.go("/jobs?state=completed")
        visitor.fill(key="not a key of anybody")
        visitor.follow("form button.main")
        assert "Nobody has this key" in visitor.text("[role=alert]")
        visitor.log_in()
        visitor.go("/jobs?state=completed")
        assert visitor.text("h1") == "Jobs"
        cookie = visitor.browser.get_cookie("atelier_session")
        assert cookie is not None
        assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Lax", "/console")
        visitor.follow("form[action$=logout] button")
        visitor.go("/jobs")
        assert visitor.find("#f-key")


def test_a_phone_shows_everything_without_scrolling_sideways(stranger: Strangers) -> None:
    with stranger(width=375, height=740) as visitor:
        visitor.log_in()
        order(visitor)
        visitor.find(".pictures img")
        for path in ("/make", "/make?kind=ad", "/jobs", "/dead-letters", "/workshop", "/chat"):
            visitor.go(path)
            assert visitor.browser.execute_script("return document.documentElement.scrollWidth") <= 375, path
        visitor.go("/jobs")
        visitor.follow("td a.id")
        visitor.find(".timeline")
        assert visitor.browser.execute_script("return document.documentElement.scrollWidth") <= 375


def test_an_order_is_stopped_from_its_page(visitor: Visitor) -> None:
    order(visitor, prompt="a fresco that dries")
    visitor.find(".step-running")
    visitor.follow(".links a")
    visitor.follow("form[action$='/cancel'] button")
    visitor.soon(lambda: visitor.browser.refresh() or visitor.count(".course .head .state-cancelled"))
    assert visitor.count("form[action$='/cancel']") == 0


def test_an_order_is_found_by_its_words(visitor: Visitor) -> None:
    """Wherever they stand, in any case; and what nobody ordered is said to be nowhere."""
    word = uuid4().hex[:8]
    order(visitor, prompt=f"A lighthouse of {word} at dusk")
    visitor.find(".pictures img")
    visitor.go("/jobs")
    visitor.fill(words=f"LIGHTHOUSE OF {word}")
    visitor.follow("form.filter button")
    assert visitor.property("#f-words", "value") == f"LIGHTHOUSE OF {word}"
    assert visitor.count("td a.id") == 1
    visitor.fill(words=f"{word} lighthouse")
    visitor.follow("form.filter button")
    assert visitor.find(".empty")


def test_a_dead_letter_is_edited_and_replayed_to_success(visitor: Visitor) -> None:
    """From its group to the letter, through the form that knows the contract and a look at what will change, to `resolved`."""
    order(visitor, prompt="a castle that fails")
    visitor.find(".step-failed")
    visitor.go("/dead-letters")
    visitor.follow(".group h2 a")
    visitor.follow("td a.id")
    assert "nobody can draw" in visitor.text(".says")
    visitor.find("[name='body.prompt']").clear()
    visitor.follow("#edit button.main")
    assert "prompt" in visitor.text("[role=alert]")
    visitor.find("[name='body.prompt']").send_keys("a castle by the sea")
    visitor.follow("#edit button.main")
    assert visitor.text(".diff ins") == "a castle by the sea"
    visitor.follow("button.main")
    visitor.soon(lambda: "resolved" in visitor.text("#state [role=status]"))
    visitor.follow("dd a.id")
    visitor.soon(lambda: visitor.browser.refresh() or visitor.count(".course .head .state-completed"))
    assert visitor.find(".pictures img")
    visitor.browser.get_log("browser")  # The refusal of the empty prompt, 422.


def test_a_group_is_archived_after_a_look(visitor: Visitor) -> None:
    order(visitor, prompt="a tower that fails")
    visitor.find(".step-failed")
    visitor.go("/dead-letters?state=unresolved")
    visitor.follow(".group form:last-child button")
    assert "archived" in visitor.text(".lead")
    visitor.follow("button.main")
    visitor.find("td .state-archived")
    visitor.go("/dead-letters?state=unresolved")
    assert visitor.find(".empty")


def test_the_workshop_shows_who_is_there_and_warns_in_words(visitor: Visitor) -> None:
    """The crew answers the roll call; an order that nobody takes is said, not only counted; the page renews itself."""
    visitor.go("/workshop")
    assert "image" in visitor.text(".crew .steps-of")
    assert visitor.find(".well")
    visitor.browser.execute_script("window.stillHere = true")
    visitor.hand_in({"kind": "itinerary", "stops": [{"step": "consult", "arguments": {"prompt": "anybody?"}}]})
    visitor.soon(lambda: "1 orders wait for consult" in visitor.text(".warnings"))
    assert "atelier run consult" in visitor.text(".warnings")
    assert visitor.browser.execute_script("return window.stillHere") is True


def test_it_speaks_korean_to_whom_asks_for_it_and_switches(stranger: Strangers) -> None:
    with stranger(language="ko") as visitor:
        visitor.log_in()
        assert visitor.browser.execute_script("return document.documentElement.lang") == "ko"
        assert visitor.text("nav a[aria-current]") == "만들기"
        visitor.follow("button[name=language][value=en]")
        visitor.soon(lambda: visitor.text("nav a[aria-current]") == "Make")
        visitor.follow("button[name=theme]")
        visitor.find("html[data-theme=dark]")


def test_every_control_has_a_name_and_the_keyboard_reaches_the_content(visitor: Visitor) -> None:
    """What a screen reader says of a field is its label; the first stop of Tab leads past the menu."""
    for path in ("/make", "/make?kind=ad", "/jobs", "/dead-letters", "/workshop"):
        visitor.go(path)
        nameless = visitor.browser.execute_script(
            "return [...document.querySelectorAll('input:not([type=hidden]), select, textarea, button, a, svg[role=img]')]"
            ".filter(e => !(e.labels?.length || e.textContent.trim() || e.getAttribute('aria-label'))).map(e => e.outerHTML)"
        )
        assert nameless == [], path
        assert visitor.count("h1") == 1
        assert visitor.count("main#main") == 1
    visitor.browser.switch_to.active_element.send_keys(Keys.TAB)
    assert visitor.browser.switch_to.active_element.get_attribute("href").endswith("#main")


def test_a_talk_is_answered_word_by_word_on_the_page(visitor: Visitor) -> None:
    """The answer appears without the page being loaded again; a message with markup is shown as text."""
    visitor.go("/chat")
    visitor.browser.execute_script("window.stillHere = true")
    visitor.fill(message="three <b>two</b> one")
    visitor.click("#say button.main")
    visitor.soon(lambda: "one" in visitor.text(".line-assistant p") and visitor.count("#said[aria-busy=false]"))
    assert visitor.text(".line-user p") == "three <b>two</b> one"
    assert visitor.text(".line-assistant p") == "one <b>two</b> three"
    assert visitor.browser.execute_script("return window.stillHere") is True
    assert "conversation=" in visitor.browser.current_url
