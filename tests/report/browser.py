"""Headless Chromium for the tests of the pages: started once a module, on pages from file://."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
WITHOUT = "chromium and chromedriver are not installed"
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1200,900",
)  # fmt: skip


def wait(condition: Callable[[], Any], what: str, seconds: float = 300) -> Any:
    """Poll until the condition holds; the limit only bounds a failure."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    return pytest.fail(f"{what} did not happen within {seconds} s")


@contextmanager
def started(folder: Path) -> Iterator[Any]:
    """A driver whose profile and downloads lie in `folder`."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.command_executor.client_config.timeout = 600  # as everywhere here, a limit only bounds a failure
    driver.set_script_timeout(300)
    try:
        (folder / "downloads").mkdir()
        driver.execute_cdp_cmd(
            "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder / "downloads")}
        )
        driver.folder = folder
        yield driver
    finally:
        driver.quit()


def problems(driver: Any) -> list[str]:
    """What the console said that is no mere remark."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def script(driver: Any, code: str) -> Any:
    return driver.execute_script(code)


def show(driver: Any, address: str) -> None:
    """A new document of that address, drawn.

    By way of an empty one: what is asked next is answered by the new document, never by the one before, also where the two
    addresses differ in their fragment alone. A test therefore opens what it wants anew; it never reloads.
    """
    driver.get("about:blank")
    driver.get(address)
    drawn = "const set = document.documentElement.dataset; return (set.drawn ?? '0') !== '0' || set.ready"
    wait(lambda: script(driver, drawn), "drawing")  # a live page counts what it has read, from 0


def click(driver: Any, selector: str) -> None:
    script(driver, f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center'}})")
    driver.find_element("css selector", selector).click()


def look_as(driver: Any, *, width: int, height: int = 900, dark: bool = False) -> None:
    """A window of that width in the system's light or dark theme."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    theme = "dark" if dark else "light"
    driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    )
