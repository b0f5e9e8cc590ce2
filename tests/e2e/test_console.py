"""The console in a browser: orders, live progress, login, dead letters, workers, chat, phone layout, accessibility."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from uuid import uuid4

from selenium.webdriver.common.keys import Keys

from tests.e2e.console_user import ConsoleUser

OpenConsoleUser = Callable[..., AbstractContextManager[ConsoleUser]]


def submit_order(user: ConsoleUser, **fields: str) -> None:
    user.open_page("/make")
    user.click("form#make details.further summary")
    user.fill(**({"prompt": "a quiet valley", "width": "128", "height": "128", "seed": "42"} | fields))
    user.follow("form#make button.main")


def test_submitted_order_shows_picture(console_user: ConsoleUser) -> None:
    """The picture is complete and has its seed; the form still has the order, so that it can be submitted again with changes."""
    submit_order(console_user)
    console_user.wait_until(lambda: console_user.element_property(".pictures img", "complete"))
    assert console_user.element_property(".pictures img", "naturalWidth") == 128
    assert "seed 42" in console_user.element_text("figcaption")
    assert console_user.element_text(".job-progress .state") == "completed"
    assert console_user.element_property("[name=prompt]", "value") == "a quiet valley"
    console_user.fill(seed="43")
    console_user.follow("form#make button.main")
    console_user.wait_until(lambda: "seed 43" in console_user.page_text())


def test_progress_bar_advances_during_generation(console_user: ConsoleUser) -> None:
    """At least four increasing values, without a page load."""
    console_user.open_page("/make")
    submit_order(console_user, prompt="a river")
    console_user.find(".step-running")
    console_user.browser.execute_script("window.notReloaded = true")
    percents: list[int] = []

    def complete() -> bool:
        value = int(console_user.browser.execute_script("return document.querySelector('#job-percent')?.value ?? 0"))
        if not percents or percents[-1] != value:
            percents.append(value)
        return bool(value == 100)

    console_user.wait_until(complete)
    assert len(percents) >= 4, percents
    assert percents == sorted(percents)
    console_user.find(".pictures img")
    assert console_user.browser.execute_script("return window.notReloaded") is True


def test_prompt_with_script_is_shown_as_text(console_user: ConsoleUser) -> None:
    """On every page that shows the prompt; the script never runs."""
    attack = "<script>window.hit=1</script><img src=x onerror='window.hit=1'>\"'>{{7*7}}"
    submit_order(console_user, prompt=attack, artist="<b onclick=alert(1)>x</b>")
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
    description_id = console_user.read_element("#f-width[aria-invalid=true]", lambda field: field.get_attribute("aria-describedby"))
    assert "multiple of 8" in console_user.element_text(f"#{description_id}")
    assert console_user.element_property("[name=prompt]", "value") == "a boat"
    console_user.browser.get_log("browser")  # The browser logs the response 422.


def test_unauthenticated_visitor_is_redirected_to_login_and_back(open_console_user: OpenConsoleUser) -> None:
    with open_console_user() as user:
        user.open_page("/jobs?state=completed")
        user.fill(key="an unknown key")
        user.follow("form button.main")
        assert "Unknown API key" in user.element_text("[role=alert]")
        user.log_in()
        user.open_page("/jobs?state=completed")
        assert user.element_text("h1") == "Jobs"
        cookie = user.browser.get_cookie("atelier_session")
        assert cookie is not None
        assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Lax", "/console")
        user.follow("form[action$=logout] button")
        user.open_page("/jobs")
        assert user.find("#f-key")


def test_phone_layout_has_no_horizontal_scroll(open_console_user: OpenConsoleUser) -> None:
    with open_console_user(width=375, height=740) as user:
        user.log_in()
        submit_order(user)
        user.find(".pictures img")
        for path in ("/make", "/make?kind=ad", "/jobs", "/dead-letters", "/workers", "/chat"):
            user.open_page(path)
            assert user.browser.execute_script("return document.documentElement.scrollWidth") <= 375, path
        user.open_page("/jobs")
        user.follow("td a.id")
        user.find(".timeline")
        assert user.browser.execute_script("return document.documentElement.scrollWidth") <= 375


def test_order_is_cancelled_from_job_page(console_user: ConsoleUser) -> None:
    submit_order(console_user, prompt="a fresco that dries")
    console_user.find(".step-running")
    console_user.follow(".links a")
    console_user.follow("form[action$='/cancel'] button")
    console_user.wait_until(lambda: console_user.browser.refresh() or console_user.count(".job-progress .head .state-cancelled"))
    assert console_user.count("form[action$='/cancel']") == 0


def test_order_is_found_by_full_text_search(console_user: ConsoleUser) -> None:
    """Consecutive words anywhere in the order, ignoring case; words that no order has find nothing."""
    word = uuid4().hex[:8]
    submit_order(console_user, prompt=f"A lighthouse of {word} at dusk")
    console_user.find(".pictures img")
    console_user.open_page("/jobs")
    console_user.fill(words=f"LIGHTHOUSE OF {word}")
    console_user.follow("form.filter button")
    assert console_user.element_property("#f-words", "value") == f"LIGHTHOUSE OF {word}"
    assert console_user.count("td a.id") == 1
    console_user.fill(words=f"{word} lighthouse")
    console_user.follow("form.filter button")
    assert console_user.find(".empty")


def test_dead_letter_is_edited_and_replayed_to_success(console_user: ConsoleUser) -> None:
    """From the group to the dead letter, the form with contract validation, the preview of the changes, to state `resolved`."""
    submit_order(console_user, prompt="a castle that fails")
    console_user.find(".step-failed")
    console_user.open_page("/dead-letters")
    console_user.follow(".group h2 a")
    console_user.follow("td a.id")
    assert "which this actor rejects" in console_user.element_text(".cause-message")
    console_user.find("[name='body.prompt']").clear()
    console_user.follow("#edit button.main")
    assert "prompt" in console_user.element_text("[role=alert]")
    console_user.find("[name='body.prompt']").send_keys("a castle by the sea")
    console_user.follow("#edit button.main")
    assert console_user.element_text(".diff ins") == "a castle by the sea"
    console_user.follow("button.main")
    console_user.wait_until(lambda: "resolved" in console_user.element_text("#state [role=status]"))
    console_user.follow("dd a.id")
    console_user.wait_until(lambda: console_user.browser.refresh() or console_user.count(".job-progress .head .state-completed"))
    assert console_user.find(".pictures img")
    console_user.browser.get_log("browser")  # The browser logs the response 422 for the empty prompt.


def test_dead_letter_group_is_archived_after_preview(console_user: ConsoleUser) -> None:
    submit_order(console_user, prompt="a tower that fails")
    console_user.find(".step-failed")
    console_user.open_page("/dead-letters?state=unresolved")
    console_user.follow(".group form:last-child button")
    assert "archived" in console_user.element_text(".lead")
    console_user.follow("button.main")
    console_user.find("td .state-archived")
    console_user.open_page("/dead-letters?state=unresolved")
    assert console_user.find(".empty")


def test_workers_page_lists_workers_and_warnings(console_user: ConsoleUser) -> None:
    """Workers answer discovery; a queue without a consumer is a warning; the page refreshes without a page load."""
    console_user.open_page("/workers")
    assert "image" in console_user.element_text(".workers .worker-steps")
    assert console_user.find(".no-problems")
    console_user.browser.execute_script("window.notReloaded = true")
    console_user.submit_order({"kind": "itinerary", "stops": [{"step": "consult", "arguments": {"prompt": "hello"}}]})
    console_user.wait_until(lambda: "1 messages are queued for consult" in console_user.element_text(".warnings"))
    assert "atelier run consult" in console_user.element_text(".warnings")
    assert console_user.browser.execute_script("return window.notReloaded") is True


def test_console_uses_korean_on_request_and_switches_language(open_console_user: OpenConsoleUser) -> None:
    with open_console_user(language="ko") as user:
        user.log_in()
        assert user.browser.execute_script("return document.documentElement.lang") == "ko"
        assert user.element_text("nav a[aria-current]") == "만들기"
        user.follow("button[name=language][value=en]")
        user.wait_until(lambda: user.element_text("nav a[aria-current]") == "Make")
        user.follow("button[name=theme]")
        user.find("html[data-theme=dark]")


def test_controls_have_labels_and_first_tab_stop_skips_menu(console_user: ConsoleUser) -> None:
    for path in ("/make", "/make?kind=ad", "/jobs", "/dead-letters", "/workers"):
        console_user.open_page(path)
        unlabelled = console_user.browser.execute_script(
            "return [...document.querySelectorAll('input:not([type=hidden]), select, textarea, button, a, svg[role=img]')]"
            ".filter(e => !(e.labels?.length || e.textContent.trim() || e.getAttribute('aria-label'))).map(e => e.outerHTML)"
        )
        assert unlabelled == [], path
        assert console_user.count("h1") == 1
        assert console_user.count("main#main") == 1
    console_user.browser.switch_to.active_element.send_keys(Keys.TAB)
    assert console_user.browser.switch_to.active_element.get_attribute("href").endswith("#main")


def test_chat_reply_is_streamed_to_page(console_user: ConsoleUser) -> None:
    """The reply appears without a page load; a message with markup is shown as text."""
    console_user.open_page("/chat")
    console_user.browser.execute_script("window.notReloaded = true")
    console_user.fill(message="three <b>two</b> one")
    console_user.click("#chat-form button.main")
    console_user.wait_until(
        lambda: "one" in console_user.element_text(".message-assistant p") and console_user.count("#messages[aria-busy=false]")
    )
    assert console_user.element_text(".message-user p") == "three <b>two</b> one"
    assert console_user.element_text(".message-assistant p") == "one <b>two</b> three"
    assert console_user.browser.execute_script("return window.notReloaded") is True
    assert "conversation=" in console_user.browser.current_url
