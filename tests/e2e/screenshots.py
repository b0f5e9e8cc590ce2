"""`make screenshots`: pictures of every page of the console into docs/console/, from a house of its own with a painter for a model."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from bus.settings import BusSettings
from bus.store_settings import StoreSettings
from gateway.settings import GatewaySettings
from ops.local.install import find_rabbitmq
from ops.local.postgres import EmbeddedPostgres
from ops.local.rabbitmq import RabbitNode
from ops.settings import LocalSettings
from tests.e2e.chromium import open_browser
from tests.e2e.painting import SLOW_PAINTER
from tests.e2e.site import Site, open_site
from tests.e2e.visitor import KEY, Visitor

FOLDER = Path(__file__).parents[2] / "docs" / "console"
LOWEST, HIGHEST = 640, 2400
PROMPTS = ("a quiet valley at dawn, watercolour", "hills above the sea, late light", "a red sun over blue mountains")


@contextmanager
def open_house() -> Iterator[Site]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="atelier-screenshots-")))
        node = RabbitNode(folder / "rabbitmq", find_rabbitmq(LocalSettings()))
        stack.callback(node.stop)
        node.start()
        server = EmbeddedPostgres(folder / "postgres")
        stack.callback(server.stop)
        server.start()
        bus = BusSettings.model_validate(
            {"amqp_url": node.url, "database_url": server.url, "retry_delays_seconds": (0.1,), "worker": "easel-1"}
        )
        (folder / "store").mkdir()
        settings = GatewaySettings.model_validate({"api_keys": f"kim:{KEY}", "operators": ("kim",)})
        yield stack.enter_context(open_site(bus, StoreSettings(store_url=(folder / "store").as_uri()), settings, SLOW_PAINTER))


def order(visitor: Visitor, **fields: str) -> None:
    visitor.go("/make")
    visitor.click("form#make summary")
    visitor.fill(**({"width": "512", "height": "512", "seed": "42", "artist": "Kim"} | fields))
    visitor.follow("form#make button.main")


def resize(visitor: Visitor, width: int, height: int) -> None:
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    visitor.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def shoot(visitor: Visitor, name: str) -> None:
    """The whole page, as high as it is."""
    visitor.browser.execute_script("document.activeElement?.blur(); window.scrollTo(0, 0)")
    wide = visitor.browser.execute_script("return document.documentElement.clientWidth")
    resize(visitor, wide, LOWEST)
    high = visitor.browser.execute_script("return document.documentElement.scrollHeight")
    resize(visitor, wide, min(high, HIGHEST))
    FOLDER.mkdir(parents=True, exist_ok=True)
    visitor.browser.save_screenshot(str(FOLDER / f"{name}.png"))
    sys.stderr.write(f"docs/console/{name}.png\n")


def tour(visitor: Visitor) -> None:
    visitor.go("/login")
    shoot(visitor, "login")
    visitor.log_in()
    for seed, prompt in enumerate(PROMPTS):
        order(visitor, prompt=prompt, seed=str(seed + 40))
        visitor.find(".pictures img")
    for prompt in ("a tower that fails", "a bridge that fails", "a gate that fails"):
        order(visitor, prompt=prompt)
        visitor.find(".step-failed")
    order(visitor, prompt=PROMPTS[0])
    visitor.find(".step-running progress")
    visitor.soon(lambda: int(visitor.property("#whole", "value") or 0) >= 10)
    shoot(visitor, "make-live")
    visitor.find(".pictures img")
    shoot(visitor, "make")
    visitor.follow(".links a")
    visitor.find(".timeline")
    shoot(visitor, "job")
    for path, name in (("/jobs", "jobs"), ("/dead-letters", "dead-letters")):
        visitor.go(path)
        shoot(visitor, name)
    workshop(visitor)
    visitor.go("/dead-letters")
    visitor.follow(".group h2 a")
    visitor.follow("td a.id")
    visitor.find("#edit")
    shoot(visitor, "dead-letter")
    prompt = visitor.find("[name='body.prompt']")
    prompt.clear()
    prompt.send_keys("a gate in the old wall")
    visitor.follow("#edit button.main")
    visitor.find(".diff")
    shoot(visitor, "dead-letter-edit")


def workshop(visitor: Visitor) -> None:
    """Busy, and with a warning."""
    visitor.go("/workshop")
    visitor.hand_in({"kind": "itinerary", "stops": [{"step": "consult", "arguments": {"prompt": "anybody?"}}]})
    visitor.hand_in({"kind": "image_order", "prompt": "a river", "count": 2})
    visitor.soon(lambda: "…" not in visitor.text(".table") and visitor.find(".warnings"))
    shoot(visitor, "workshop")


def chat(visitor: Visitor) -> None:
    visitor.go("/chat")
    visitor.fill(message="light evening the in hills quiet")
    visitor.click("#say button.main")
    visitor.soon(lambda: "light" in visitor.text(".line-assistant p"))
    shoot(visitor, "chat")


def other_ways(site: Site) -> None:
    """In the dark, on a phone, in Korean."""
    with open_browser(dark=True) as browser:
        visitor = Visitor(browser, site)
        visitor.log_in()
        visitor.go("/jobs?state=completed")
        visitor.follow("td a.id")
        visitor.find(".timeline")
        shoot(visitor, "job-dark")
    with open_browser(width=390, height=844, language="ko") as browser:
        visitor = Visitor(browser, site)
        visitor.log_in()
        order(visitor, prompt="새벽의 고요한 골짜기, 수채화")
        visitor.find(".pictures img")
        shoot(visitor, "make-phone-korean")


def main() -> None:
    with open_house() as site:
        with open_browser() as browser:
            visitor = Visitor(browser, site)
            tour(visitor)
            chat(visitor)
        other_ways(site)


if __name__ == "__main__":
    main()
