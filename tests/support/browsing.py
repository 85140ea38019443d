"""A real Chromium: started for a test file, and a page opened in it at a size and in a theme."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service


def started_chrome(request: pytest.FixtureRequest) -> Chrome:
    """Of the Debian packages chromium and chromium-driver. Skips without them, and fails with --forbid-skips."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        missing = "chromium or chromedriver is not on the PATH; next: apt-get install chromium chromium-driver"
        if request.config.getoption("--forbid-skips"):
            pytest.fail(missing)
        pytest.skip(missing)
    options = ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = Chrome(options=options, service=Service(driver))
    grant = {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    chrome.execute_cdp_cmd("Browser.grantPermissions", grant)
    return chrome


def opened(browser: Chrome, page: Path, *, width_px: int = 1300, height_px: int = 900, theme: str = "light") -> Chrome:
    size = {"width": width_px, "height": height_px, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    theme_feature = {"name": "prefers-color-scheme", "value": theme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [theme_feature]})
    browser.get(page.as_uri())
    return browser


def clipboard(browser: Chrome) -> str:
    """What was copied last in this browser."""
    read = "const done = arguments[0]; navigator.clipboard.readText().then(done, (e) => done(String(e)));"
    return str(browser.execute_async_script(read))
