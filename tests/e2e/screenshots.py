"""`make screenshots`: screenshots of every page of the console in docs/console/, with private services and the models of Atelier itself.

The image actor draws with tiny-shapes, the text actor writes with the small language model where it is at hand; standard error says which.
"""

import asyncio
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from bus.settings import BusSettings
from bus.storage.settings import StoreSettings
from gateway.settings import GatewaySettings
from ops.local.model_choice import choose_models, fetch_missing_models, format_choices, merged_environment
from ops.local.postgres import EmbeddedPostgres
from ops.local.rabbitmq import RabbitNode
from ops.local.rabbitmq_install import find_or_install_rabbitmq
from ops.local.tiny_models import copy_trained_models
from ops.registry import load_actors
from ops.settings import LocalSettings
from tests.e2e.chromium import open_browser
from tests.e2e.console_server import ConsoleServer, open_console_server
from tests.e2e.console_user import KEY, ConsoleUser

SCREENSHOT_FOLDER = Path(__file__).parents[2] / "docs" / "console"
MIN_HEIGHT, MAX_HEIGHT = 640, 2400
STEPS = ["image", "text", "conversations"]
PROMPTS = ("a yellow star on a blue background", "a red heart on a white background", "a blue moon on a black background")
PICTURE_SECONDS = 600
"""A CPU draws."""


@contextmanager
def open_screenshot_server() -> Iterator[ConsoleServer]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="atelier-screenshots-")))
        node = RabbitNode(folder / "rabbitmq", find_or_install_rabbitmq(LocalSettings()))
        stack.callback(node.stop)
        node.start()
        postgres = EmbeddedPostgres(folder / "postgres")
        stack.callback(postgres.stop)
        postgres.start()
        bus = BusSettings.model_validate(
            {"amqp_url": node.url, "database_url": postgres.url, "retry_delays_seconds": (0.1,), "worker": "worker-1"}
        )
        (folder / "store").mkdir()
        use_own_models(folder / "models")
        settings = GatewaySettings.model_validate({"api_keys": f"kim:{KEY}", "operators": ("kim",)})
        yield stack.enter_context(
            open_console_server(bus, StoreSettings(store_url=(folder / "store").as_uri()), settings, *load_actors(STEPS).actors)
        )


def use_own_models(folder: Path) -> None:
    """Set the actors' variables, as `atelier up` does."""
    models = copy_trained_models(folder)
    asyncio.run(fetch_missing_models(STEPS, folder, may_install=LocalSettings().may_install))
    choices = choose_models(STEPS, models)
    os.environ.update(merged_environment({}, choices, folder))
    sys.stderr.write(format_choices(choices) + "\n")


def submit_order(user: ConsoleUser, **fields: str) -> None:
    user.open_page("/make")
    user.click("form#make details.further summary")
    user.fill(**({"width": "512", "height": "512", "steps": "20", "seed": "42", "artist": "Kim"} | fields))
    user.follow("form#make button.main")


def resize(user: ConsoleUser, width: int, height: int) -> None:
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    user.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def take_screenshot(user: ConsoleUser, name: str) -> None:
    """The whole page, up to MAX_HEIGHT pixels."""
    user.browser.execute_script("document.activeElement?.blur(); window.scrollTo(0, 0)")
    width = user.browser.execute_script("return document.documentElement.clientWidth")
    resize(user, width, MIN_HEIGHT)
    height = user.browser.execute_script("return document.documentElement.scrollHeight")
    resize(user, width, min(height, MAX_HEIGHT))
    SCREENSHOT_FOLDER.mkdir(parents=True, exist_ok=True)
    user.browser.save_screenshot(str(SCREENSHOT_FOLDER / f"{name}.png"))
    sys.stderr.write(f"docs/console/{name}.png\n")


def capture_pages(user: ConsoleUser) -> None:
    user.open_page("/login")
    take_screenshot(user, "login")
    user.log_in()
    for seed, prompt in enumerate(PROMPTS):
        submit_order(user, prompt=prompt, seed=str(seed + 40))
        user.find(".pictures img", PICTURE_SECONDS)
    for prompt in PROMPTS:
        submit_order(user, prompt=prompt, lora_uri="file:///styles/autumn.safetensors")
        user.find(".step-failed")
    submit_order(user, prompt=PROMPTS[0], steps="40")
    user.find(".step-running progress")
    user.wait_until(lambda: int(user.element_property("#job-percent", "value") or 0) >= 10)
    take_screenshot(user, "make-live")
    user.find(".pictures img", PICTURE_SECONDS)
    take_screenshot(user, "make")
    user.follow(".links a")
    user.find(".timeline")
    take_screenshot(user, "job")
    for path, name in (("/gallery", "gallery"), ("/jobs", "jobs"), ("/dead-letters", "dead-letters")):
        user.open_page(path)
        take_screenshot(user, name)
    capture_workers_page(user)
    user.open_page("/dead-letters")
    user.follow(".group h2 a")
    user.follow("td a.id")
    user.find("#edit")
    take_screenshot(user, "dead-letter")
    prompt = user.find("[name='body.prompt']")
    prompt.clear()
    prompt.send_keys("a green star on a white background")
    user.follow("#edit button.main")
    user.find(".diff")
    take_screenshot(user, "dead-letter-edit")


def capture_workers_page(user: ConsoleUser) -> None:
    """Wait until the page shows rates and a warning."""
    user.open_page("/workers")
    user.submit_order({"kind": "itinerary", "stops": [{"step": "consult", "arguments": {"prompt": "hello"}}]})
    user.submit_order({"kind": "image_order", "prompt": PROMPTS[1], "count": 2})
    user.wait_until(lambda: "…" not in user.element_text(".table") and user.find(".warnings"))
    take_screenshot(user, "workers")


def capture_chat(user: ConsoleUser) -> None:
    user.open_page("/chat")
    user.fill(message="Name three colours of a sunset, in one short sentence.")
    user.click("#chat-form button.main")
    user.wait_until(lambda: is_complete(user), PICTURE_SECONDS)
    take_screenshot(user, "chat")


def is_complete(user: ConsoleUser) -> bool:
    """Whether the reply has text and does not grow."""
    before = user.element_text(".message-assistant p")
    time.sleep(2)
    return bool(before.strip()) and before == user.element_text(".message-assistant p")


def capture_variants(server: ConsoleServer) -> None:
    """Dark theme; phone layout in Korean."""
    with open_browser(dark=True) as browser:
        user = ConsoleUser(browser, server)
        user.log_in()
        user.open_page("/jobs?state=completed&words=star")
        user.follow("td a.id")
        user.find(".timeline")
        take_screenshot(user, "job-dark")
    with open_browser(width=390, height=844, language="ko") as browser:
        user = ConsoleUser(browser, server)
        user.log_in()
        submit_order(user, prompt="파란 배경에 노란 별")
        user.find(".pictures img", PICTURE_SECONDS)
        take_screenshot(user, "make-phone-korean")


def main() -> None:
    with open_screenshot_server() as server:
        with open_browser() as browser:
            user = ConsoleUser(browser, server)
            capture_pages(user)
            capture_chat(user)
        capture_variants(server)


if __name__ == "__main__":
    main()
