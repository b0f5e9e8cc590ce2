"""A headless Chromium with its WebDriver: Debian's packages, installed when missing if ATELIER_MAY_INSTALL allows it."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

from ops.local.rabbitmq_install import root_prefix
from ops.settings import LocalSettings

BROWSER_NAMES = ("chromium", "chromium-browser", "google-chrome")
INSTALL = "apt-get install -y -q --no-install-recommends chromium chromium-driver"
INSTALL_WITH_UPDATE = f"{INSTALL} || {{ apt-get update -q && {INSTALL}; }}"
BROWSER_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)
FONTS = Path(__file__).parents[2] / "actors" / "fonts"
"""Makes Korean text legible on a machine without a Korean font."""

INSTALL_HINT = "The end-to-end tests of the console need a headless Chromium. Install it: sudo apt-get install chromium chromium-driver"


class ChromiumMissing(Exception):
    def __init__(self, detail: str = "") -> None:
        super().__init__(f"{detail}\n{INSTALL_HINT}".strip())


def find_chromium() -> tuple[str, str]:
    """Paths of the browser and of chromedriver. Raises ChromiumMissing with an installation hint."""
    if not _find_browser_and_driver() and LocalSettings().may_install and shutil.which("apt-get") and (prefix := root_prefix()) is not None:
        completed = subprocess.run([*prefix, "sh", "-c", INSTALL_WITH_UPDATE], capture_output=True, text=True, timeout=600, check=False)
        if completed.returncode:
            raise ChromiumMissing("\n".join(completed.stderr.splitlines()[-4:]))
    if not (paths := _find_browser_and_driver()):
        raise ChromiumMissing
    return paths


def _find_browser_and_driver() -> tuple[str, str] | None:
    browser = next((path for name in BROWSER_NAMES if (path := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


@contextmanager
def open_browser(
    width: int = 1280, height: int = 900, language: str = "en", *, dark: bool = False, scale: int = 1, any_certificate: bool = False
) -> Iterator[Chrome]:
    """A browser with an empty profile. `language`: Accept-Language; `dark`: preferred color scheme; a width below 600 emulates a phone.

    `any_certificate`: also one that a test has made.
    """
    program, driver = find_chromium()
    with TemporaryDirectory(prefix="atelier-chromium-", ignore_cleanup_errors=True) as profile:
        options = ChromeOptions()
        options.binary_location = program
        options.accept_insecure_certs = any_certificate
        for flag in (*BROWSER_FLAGS, f"--user-data-dir={Path(profile)}", f"--window-size={width},{height}", f"--accept-lang={language}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        (Path(profile) / "fonts").symlink_to(FONTS)
        browser = Chrome(options, Service(driver, env=os.environ | {"XDG_DATA_HOME": profile}))
        try:
            size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 600}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
            yield browser
        finally:
            browser.quit()
