"""The page in a real browser: Chromium and its driver, of the Debian packages chromium and chromium-driver."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from page_cases import IMAGE, QUOTES, SCRIPT, hostile_grid, small_grid
from report_cases import write_report
from selenium.common.exceptions import NoAlertPresentException
from selenium.webdriver import Chrome, ChromeOptions, Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.select import Select

from transfergrid.paths import StorePaths
from transfergrid.report.analysis.rows import COLUMNS

pytestmark = pytest.mark.slow

# Text colour, and the background it is seen on: the nearest ancestor's that is not transparent.
CONTRAST_JS = """
const seen = (e) => { while (e) { const c = getComputedStyle(e).backgroundColor;
  if (!c.endsWith(', 0)') && c !== 'transparent') return c; e = e.parentElement; } return 'rgb(255, 255, 255)'; };
return Array.from(document.querySelectorAll('body *')).filter((e) =>
  e.offsetParent && Array.from(e.childNodes).some((n) => n.nodeType === 3 && n.textContent.trim()))
  .map((e) => [e.tagName + '.' + e.className, getComputedStyle(e).color, seen(e)]);
"""


@pytest.fixture(scope="module")
def browser(request: pytest.FixtureRequest) -> Iterator[Chrome]:
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
    started = Chrome(options=options, service=Service(driver))
    yield started
    started.quit()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a small grid, with all its figures."""
    store = StorePaths(tmp_path_factory.mktemp("small"))
    small_grid(store)
    return write_report("small", store).with_name("index.html")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page, with figures, of a grid whose names would like to be HTML, in a folder with quotes in its name."""
    store = StorePaths(tmp_path_factory.mktemp("hostile") / 'it\'s a "store" <b>')
    hostile_grid(store)
    return write_report("hostile", store).with_name("index.html")


def opened(browser: Chrome, page: Path, *, width_px: int = 1300, height_px: int = 900) -> Chrome:
    size = {"width": width_px, "height": height_px, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page.as_uri())
    return browser


def column(browser: Chrome, name: str) -> list[str]:
    """A column's raw values, of the rows that show, from top to bottom."""
    position = COLUMNS.index(name) + 1
    cells = browser.find_elements(By.CSS_SELECTOR, f"#comparison tbody tr:not([hidden]) > td:nth-child({position})")
    return [cell.get_attribute("data-value") or "" for cell in cells]


def numbers(browser: Chrome, name: str) -> list[float | None]:
    return [round(float(value), 6) if value else None for value in column(browser, name)]


def logged(browser: Chrome) -> list[str]:
    """What the console said since it was last asked."""
    lines: list[dict[str, str]] = browser.get_log("browser")  # type: ignore[no-untyped-call]
    return [line["message"] for line in lines]


def header(browser: Chrome, name: str) -> Any:
    return browser.find_element(By.CSS_SELECTOR, f"th[data-column={name}]")


def test_it_loads_without_a_word_on_the_console_and_without_asking_for_anything_else(
    browser: Chrome, small: Path
) -> None:
    opened(browser, small)
    assert browser.title == "Comparison: small"
    assert logged(browser) == []
    asked = "return performance.getEntriesByType('resource').map((e) => e.name).filter((n) => !n.startsWith('data:'))"
    assert browser.execute_script(asked) == []
    assert small.stat().st_size < 5_000_000


def test_every_image_loads(browser: Chrome, small: Path) -> None:
    opened(browser, small)
    browser.execute_script("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    widths = browser.execute_async_script(
        "const done = arguments[0]; const all = Array.from(document.images);"
        "const widths = () => done(all.map((i) => i.naturalWidth));"
        "Promise.all(all.map((i) => i.decode())).then(widths, (e) => done(String(e)));"
    )
    assert isinstance(widths, list) and len(widths) >= 9 and min(widths) > 100
    assert logged(browser) == []


def test_a_header_sorts_by_raw_values_and_once_more_the_other_way_with_empty_cells_last(
    browser: Chrome, small: Path
) -> None:
    opened(browser, small)
    assert column(browser, "model") == ["resnet18", "googlenet", "resnet18+googlenet", "resnet18", "googlenet"]
    accuracy = header(browser, "test_accuracy")
    accuracy.find_element(By.TAG_NAME, "button").click()
    assert accuracy.get_attribute("aria-sort") == "descending"
    assert numbers(browser, "test_accuracy") == [0.9525, 0.9025, 0.8525, None, None]
    accuracy.find_element(By.TAG_NAME, "button").click()
    assert accuracy.get_attribute("aria-sort") == "ascending"
    assert numbers(browser, "test_accuracy") == [0.8525, 0.9025, 0.9525, None, None]
    header(browser, "model").find_element(By.TAG_NAME, "button").click()
    assert accuracy.get_attribute("aria-sort") == "none"
    assert column(browser, "model") == ["googlenet", "googlenet", "resnet18", "resnet18", "resnet18+googlenet"]


def test_the_keyboard_sorts_and_shows_all_columns(browser: Chrome, small: Path) -> None:
    opened(browser, small)
    header(browser, "val_accuracy").find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
    assert column(browser, "val_accuracy") == ["0.95", "0.9", "0.85", "", ""]
    headers = browser.find_elements(By.CSS_SELECTOR, "#comparison th")
    assert len(headers) == len(COLUMNS) and sum(th.is_displayed() for th in headers) == 10
    browser.find_element(By.ID, "all-columns").send_keys(Keys.SPACE)
    assert all(th.is_displayed() for th in headers)


def test_text_and_choices_filter_the_rows_together(browser: Chrome, small: Path) -> None:
    opened(browser, small)
    box, shown = browser.find_element(By.ID, "filter-text"), browser.find_element(By.ID, "shown")
    box.send_keys("GOOGLE")
    assert column(browser, "model") == ["googlenet", "resnet18+googlenet", "googlenet"]
    assert shown.text == "3 of 5 rows"
    Select(browser.find_element(By.CSS_SELECTOR, "select[data-filter=phase]")).select_by_value("finetune")
    assert column(browser, "status") == ["missing"] and shown.text == "1 of 5 rows"
    box.send_keys(Keys.BACKSPACE * len("GOOGLE"))
    assert column(browser, "status") == ["failed", "missing"]
    Select(browser.find_element(By.CSS_SELECTOR, "select[data-filter=status]")).select_by_value("failed")
    Select(browser.find_element(By.CSS_SELECTOR, "select[data-filter=phase]")).select_by_value("")
    assert column(browser, "model") == ["resnet18"] and shown.text == "1 of 5 rows"


def test_a_models_name_opens_its_details(browser: Chrome, small: Path) -> None:
    opened(browser, small)
    article = browser.find_element(By.ID, "row-1")
    assert not article.is_displayed()
    browser.find_element(By.CSS_SELECTOR, "a[href='#row-1']").click()
    assert article.is_displayed() and article.find_element(By.CSS_SELECTOR, "pre.command").is_displayed()


@pytest.mark.parametrize("width_px", [420, 1300])
def test_the_page_itself_never_scrolls_sideways(browser: Chrome, small: Path, hostile: Path, width_px: int) -> None:
    for page in (small, hostile):
        opened(browser, page, width_px=width_px)
        browser.execute_script("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        browser.find_element(By.ID, "all-columns").click()
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width_px


def test_at_1280_pixels_no_table_of_a_study_needs_to_be_scrolled_sideways(browser: Chrome, tmp_path: Path) -> None:
    """An unfinished study with joins, published figures and claims: its tables are the widest there are."""
    store = StorePaths(tmp_path)
    small_grid(store, "individual_vs_parallel")
    page = write_report("individual_vs_parallel", store, figures=False).with_name("index.html")
    boxes = opened(browser, page, width_px=1280).find_elements(By.CSS_SELECTOR, "section > .scroll")
    hidden_px = [browser.execute_script("return arguments[0].scrollWidth - arguments[0].clientWidth", b) for b in boxes]
    assert len(hidden_px) >= 8 and set(hidden_px) == {0}


def test_the_header_row_stays_when_the_table_scrolls_in_its_box(browser: Chrome, small: Path) -> None:
    opened(browser, small, height_px=160)
    top, header_top, header_bottom, first_top = browser.execute_script(
        "const box = document.getElementById('comparison-box'); box.scrollTop = 60;"
        "const top = (e) => e.getBoundingClientRect().top;"
        "const th = box.querySelector('th:not(.extra)');"
        "return [top(box), top(th), th.getBoundingClientRect().bottom, top(box.querySelector('td:not(.extra)'))];"
    )
    assert 0 <= header_top - top <= 1 and first_top < header_bottom - 10


def test_all_text_can_be_read_against_its_background(browser: Chrome, small: Path) -> None:
    opened(browser, small)
    browser.execute_script("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    pairs = {(name, text, behind) for name, text, behind in browser.execute_script(CONTRAST_JS)}
    assert len(pairs) > 20
    weak = {pair for pair in pairs if contrast(rgb(pair[1]), rgb(pair[2])) < 4.5}
    assert weak == set()


def rgb(colour: str) -> tuple[float, ...]:
    return tuple(float(part) / 255 for part in colour.partition("(")[2].rstrip(")").split(",")[:3])


def contrast(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """WCAG 2.1: (lighter + 0.05) / (darker + 0.05) of relative luminances."""

    def luminance(colour: tuple[float, ...]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    darker, lighter = sorted((luminance(a), luminance(b)))
    return (lighter + 0.05) / (darker + 0.05)


def test_the_contrast_of_black_on_white_is_21() -> None:
    assert contrast((0, 0, 0), (1, 1, 1)) == pytest.approx(21)
    assert contrast(rgb("rgb(118, 118, 118)"), rgb("rgb(255, 255, 255)")) == pytest.approx(4.54, abs=0.005)


# ----------------------------------------------------------------------------------------------- names from outside
def test_no_name_runs_or_becomes_part_of_the_page(browser: Chrome, hostile: Path) -> None:
    opened(browser, hostile)
    browser.execute_script("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    with pytest.raises(NoAlertPresentException):
        _ = browser.switch_to.alert
    assert browser.execute_script("return document.scripts.length") == 1
    assert browser.find_elements(By.CSS_SELECTOR, "img[src=x], [onerror], [onload], [onclick]") == []
    outside = [i.get_attribute("src") for i in browser.find_elements(By.TAG_NAME, "img")]
    assert outside and all(source and source.startswith("data:image/") for source in outside)
    text = browser.find_element(By.TAG_NAME, "body").text
    for name in (SCRIPT, IMAGE, QUOTES):
        assert name in text
    cells = browser.find_elements(By.CSS_SELECTOR, "#comparison tbody tr:first-child td")
    assert (cells[1].text, cells[2].text) == (QUOTES, SCRIPT)
    assert logged(browser) == []


def test_hostile_names_sort_and_filter_like_any_other(browser: Chrome, hostile: Path) -> None:
    opened(browser, hostile)
    Select(browser.find_element(By.CSS_SELECTOR, "select[data-filter=dataset]")).select_by_visible_text(QUOTES)
    browser.find_element(By.ID, "filter-text").send_keys("onerror=alert(1)")
    assert column(browser, "model") == [SCRIPT, f"</script></style>{IMAGE}", IMAGE]
    header(browser, "test_accuracy").find_element(By.TAG_NAME, "button").click()
    assert numbers(browser, "test_accuracy") == [0.755, 0.75, None]
    assert logged(browser) == []


def test_a_script_that_got_in_all_the_same_would_not_run(browser: Chrome, tmp_path: Path, small: Path) -> None:
    page = tmp_path / "index.html"
    got_in = "<script>document.title = 'run'</script><img src=x onerror=\"document.title = 'run'\">"
    page.write_text(small.read_text(encoding="utf-8").replace("<main>", f"<main>{got_in}"), encoding="utf-8")
    opened(browser, page)
    assert browser.title == "Comparison: small"
    refused = logged(browser)
    assert len(refused) >= 2 and all("Content Security Policy" in message for message in refused)
