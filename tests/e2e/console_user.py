"""A user of the console, driven through a browser."""

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
    """Selectors are CSS. Every method that reads or clicks waits for its element."""

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
        """Submit a job over the HTTP API instead of the form."""
        httpx.post(self.server.url.replace("/console", "/jobs"), json=order, headers={"X-API-Key": KEY}).raise_for_status()

    def find(self, selector: str, seconds: float = 20) -> WebElement:
        """The first match, once there is one."""
        elements: list[WebElement] = WebDriverWait(self.browser, seconds, 0.02).until(
            lambda browser: browser.find_elements(By.CSS_SELECTOR, selector)
        )
        return elements[0]

    def element_text(self, selector: str) -> str:
        return str(self.read_element(selector, lambda element: element.text))

    def element_property(self, selector: str, name: str) -> Any:
        """The DOM property; for an input field `value` is its current content, not the attribute."""
        return self.read_element(selector, lambda element: element.get_property(name))

    def read_element(self, selector: str, read: Callable[[WebElement], Any]) -> Any:
        """`read` applied to the first match; repeated when the page replaces the element meanwhile."""
        while True:
            try:
                return read(self.find(selector))
            except StaleElementReferenceException:
                continue

    def page_text(self) -> str:
        """The visible text of the current page."""
        return str(self.browser.execute_script("return document.body.innerText"))

    def count(self, selector: str) -> int:
        return len(self.browser.find_elements(By.CSS_SELECTOR, selector))

    def click(self, selector: str) -> None:
        """Click an element that does not lead to another page."""
        self.read_element(selector, self._click)

    def follow(self, selector: str) -> None:
        """Click an element that loads a page, and wait until that page is complete."""
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
        """Severe entries of the browser's log, such as content security policy violations and script errors."""
        return [entry["message"] for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]
