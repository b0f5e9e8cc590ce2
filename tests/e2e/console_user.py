"""A person at a browser."""

from collections.abc import Callable
from typing import Any

import httpx
from selenium.common.exceptions import StaleElementReferenceException, WebDriverException
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from tests.e2e.console_server import ConsoleServer

KEY = "a-key-for-the-tests-0001"


class ConsoleUser:
    """A person at a browser."""

    def __init__(self, browser: Chrome, server: ConsoleServer) -> None:
        self.browser, self.server = browser, server

    def open_page(self, path: str) -> None:
        self.browser.get(f"{self.server.url}{path}")

    def log_in(self) -> None:
        self.open_page("/login")
        self.find("#f-key").send_keys(KEY)
        self.follow("form button.main")
        self.find("nav a")

    def submit_order(self, order: dict[str, Any]) -> None:
        """By the API, as a program does."""
        httpx.post(self.server.url.replace("/console", "/jobs"), json=order, headers={"X-API-Key": KEY}).raise_for_status()

    def find(self, selector: str, seconds: float = 20) -> WebElement:
        """The first that matches, as soon as there is one."""
        found: WebElement = WebDriverWait(self.browser, seconds, 0.02).until(lambda at: at.find_elements(By.CSS_SELECTOR, selector))[0]
        return found

    def element_text(self, selector: str) -> str:
        return str(self.read_element(selector, lambda element: element.text))

    def element_property(self, selector: str, name: str) -> Any:
        """What the page has of it now, which for a field is what was typed."""
        return self.read_element(selector, lambda element: element.get_property(name))

    def read_element(self, selector: str, read: Callable[[WebElement], Any]) -> Any:
        """A fact of the first that matches; read again when the page put another in its place meanwhile."""
        while True:
            try:
                return read(self.find(selector))
            except StaleElementReferenceException:
                continue

    def page_text(self) -> str:
        """All that the page says, whichever page it is by now."""
        return str(self.browser.execute_script("return document.body.innerText"))

    def count(self, selector: str) -> int:
        return len(self.browser.find_elements(By.CSS_SELECTOR, selector))

    def click(self, selector: str) -> None:
        """On what stays on the page."""
        self.read_element(selector, self._click)

    def follow(self, selector: str) -> None:
        """Click on what leads to another page, or to this one anew, and be there."""
        self.browser.execute_script("window.pageBefore = true")
        self.click(selector)
        self.wait_until(lambda: self.browser.execute_script("return !window.pageBefore && document.readyState === 'complete'"))

    def _click(self, element: WebElement) -> None:
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def fill(self, **fields: str) -> None:
        for name, value in fields.items():
            element = self.find(f"[name={name}]")
            element.clear()
            element.send_keys(value)

    def wait_until(self, condition: Callable[[], object], seconds: float = 20) -> None:
        WebDriverWait(self.browser, seconds, 0.02, [WebDriverException]).until(lambda _: condition())

    def browser_errors(self) -> list[str]:
        """What the browser's console has to say: a breach of the content policy, a failing script."""
        return [entry["message"] for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]
