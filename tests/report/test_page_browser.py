"""The page in a real browser: Chromium and its driver, of the Debian packages chromium and chromium-driver."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import report_cases as cases
from browsing import clipboard, opened, started_chrome
from page_cases import IMAGE, QUOTES, SCRIPT, hostile_grid, right_N, small_grid
from prediction_cases import finished
from report_cases import write_report
from selenium.common.exceptions import NoAlertPresentException
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

from transfergrid.paths import StorePaths
from transfergrid.report import figures
from transfergrid.report.analysis.rows import COLUMNS
from transfergrid.report.figures import accuracy

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
    started = started_chrome(request)
    yield started
    started.quit()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a small grid, with all its figures."""
    store = StorePaths(tmp_path_factory.mktemp("small"))
    small_grid(store)
    for run in store.runs.iterdir():
        (run / "weights.pt").write_bytes(b"weights")
    return write_report("small", store).with_name("index.html")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page, with figures, of a grid whose names would like to be HTML, in a folder with quotes in its name."""
    store = StorePaths(tmp_path_factory.mktemp("hostile") / 'it\'s a "store" <b>')
    hostile_grid(store)
    return write_report("hostile", store).with_name("index.html")


def unfolded(browser: Chrome) -> None:
    browser.execute_script("document.querySelectorAll('details').forEach((d) => { d.open = true; })")


def column(browser: Chrome, name: str) -> list[str]:
    """A column's raw values, of the rows that show, from top to bottom."""
    position = COLUMNS.index(name) + 2  # the first column is where the row stands
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
    assert column(browser, "model") == ["resnet18+googlenet", "resnet18", "googlenet", "resnet18", "googlenet"]
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
    assert len(headers) == len(COLUMNS) + 2 and sum(th.is_displayed() for th in headers) == 9 + 2
    browser.find_element(By.ID, "all-columns").send_keys(Keys.SPACE)
    assert all(th.is_displayed() for th in headers)


def test_text_and_choices_filter_the_rows_together(browser: Chrome, small: Path) -> None:
    opened(browser, small)
    box, shown = browser.find_element(By.ID, "filter-text"), browser.find_element(By.ID, "shown")
    box.send_keys("GOOGLE")
    assert column(browser, "model") == ["resnet18+googlenet", "googlenet", "googlenet"]
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
    unfolded(opened(browser, page, width_px=1280))
    boxes = browser.find_elements(By.CSS_SELECTOR, "section.text .scroll")
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


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_all_text_can_be_read_against_its_background(browser: Chrome, small: Path, theme: str) -> None:
    unfolded(opened(browser, small, theme=theme))
    behind_page = rgb(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))
    assert (sum(behind_page) > 1.5) == (theme == "light")
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
    cells = browser.find_elements(By.CSS_SELECTOR, "#comparison tbody tr[data-index='0'] td")
    assert (cells[2].get_attribute("textContent"), cells[3].text) == (QUOTES, SCRIPT)
    assert logged(browser) == []


def test_hostile_names_sort_and_filter_like_any_other(browser: Chrome, hostile: Path) -> None:
    opened(browser, hostile)
    Select(browser.find_element(By.CSS_SELECTOR, "select[data-filter=dataset]")).select_by_visible_text(QUOTES)
    browser.find_element(By.ID, "filter-text").send_keys("onerror=alert(1)")
    assert sorted(column(browser, "model")) == sorted([SCRIPT, f"</script></style>{IMAGE}", IMAGE])
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


# --------------------------------------------------------------------------------------------------- the first screen
WORDS_JS = "return document.body.innerText.split(/\\s+/).filter((word) => /[\\p{L}\\p{N}]/u.test(word)).length"


def bottom_px(browser: Chrome, selector: str) -> float:
    script = "return document.querySelector(arguments[0]).getBoundingClientRect().bottom + scrollY"
    return float(browser.execute_script(script, selector))


def assert_first_screen(browser: Chrome, *, words: int | None = 600) -> None:
    """At 1280 x 900: the sentence, the data, the figure whole, and the table's first line, which is the best row."""
    assert bottom_px(browser, "#verdict") < bottom_px(browser, ".data") < bottom_px(browser, "figure img, .tall") < 800
    assert bottom_px(browser, "#comparison tbody tr.best") <= 900
    assert words is None or browser.execute_script(WORDS_JS) <= words
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 1280


def test_the_first_screen_says_who_won_on_which_data_and_shows_the_figure_and_the_best_row(
    browser: Chrome, small: Path
) -> None:
    opened(browser, small, width_px=1280)
    assert_first_screen(browser)
    said = browser.find_element(By.ID, "verdict").text
    assert "resnet18+googlenet (probe) reaches 95.2 [92.1, 98.4] %" in said and "better (+5.00 points [+1.99" in said
    data = browser.find_element(By.CSS_SELECTOR, ".data").text
    assert data.startswith("mnist: ") and data.endswith("200 test; 10 classes; networks see 224 px.")
    (link,) = browser.find_elements(By.CSS_SELECTOR, ".first-figure a")
    svg = small.parent / unquote((link.get_attribute("href") or "").rpartition("/figures/")[2])
    assert (small.parent / "figures" / svg.name).is_file()


def test_the_best_row_stands_first_and_the_reader_orders_by_val_or_test(browser: Chrome, small: Path) -> None:
    opened(browser, small)
    first = browser.find_element(By.CSS_SELECTOR, "#comparison tbody tr")
    assert "best" in (first.get_attribute("class") or "").split()
    assert first.find_element(By.CSS_SELECTOR, ".standing .sr").get_attribute("textContent") == "the best"
    weight = "return getComputedStyle(arguments[0].querySelector('td.model')).fontWeight"
    assert browser.execute_script(weight, first) == "700"
    order = Select(browser.find_element(By.ID, "order"))
    order.select_by_visible_text("as in the grid")
    assert column(browser, "model") == ["resnet18", "googlenet", "resnet18+googlenet", "resnet18", "googlenet"]
    for text, name in (("by val", "val_accuracy"), ("by test", "test_accuracy")):
        order.select_by_visible_text(text)
        assert header(browser, name).get_attribute("aria-sort") == "descending"
        assert column(browser, "model")[:3] == ["resnet18+googlenet", "resnet18", "googlenet"]
    order.select_by_visible_text("best first, its equals next")
    assert header(browser, "test_accuracy").get_attribute("aria-sort") == "none"
    assert column(browser, "model") == ["resnet18+googlenet", "resnet18", "googlenet", "resnet18", "googlenet"]


def test_a_rows_commands_are_copied_by_a_click_and_by_the_keyboard(browser: Chrome, small: Path) -> None:
    opened(browser, small)
    button, other = browser.find_elements(By.CSS_SELECTOR, "button.copy")[:2]
    button.click()
    copied = clipboard(browser)
    run_id = (button.get_attribute("aria-label") or "").rpartition(" ")[2]
    predict, export, again = copied.splitlines()
    assert run_id.startswith("mnist-resnet18+googlenet-probe-")
    assert predict.startswith(f"python jobs/predict.py run={run_id} images=IMAGES")
    assert export.startswith(f"python jobs/predict.py run={run_id} export=FOLDER") and f"again={run_id}" in again
    assert "copied" in browser.find_element(By.ID, "copied").text
    other.send_keys(Keys.ENTER)
    assert clipboard(browser) not in ("", copied) and logged(browser) == []


def test_at_400_pixels_the_model_and_its_accuracy_stay_in_view_and_a_cue_says_that_there_is_more(
    browser: Chrome, small: Path
) -> None:
    opened(browser, small, width_px=400)
    (cue,) = [cue for cue in browser.find_elements(By.CSS_SELECTOR, ".cue") if cue.is_displayed()]
    assert "scroll this table to the right" in cue.text
    places = (
        "const box = document.getElementById('comparison-box'); box.scrollLeft = arguments[0];"
        "return ['.model', '.accuracy'].map((c) => box.querySelector('tbody td' + c).getBoundingClientRect())"
        ".map((place) => [place.left, place.right]);"
    )
    for scroll_px in (0, 120, 300, 10_000):
        model, accuracy = browser.execute_script(places, scroll_px)
        assert 0 <= model[0] < model[1] <= accuracy[0] + 1 and accuracy[1] <= 400
    box = browser.find_element(By.ID, "comparison-box")  # the page hears of a scroll a moment later
    WebDriverWait(browser, 5).until(lambda _: "more" not in (box.get_attribute("class") or "").split())


def test_at_1280_pixels_the_interval_and_p_of_every_difference_are_in_view(browser: Chrome, small: Path) -> None:
    unfolded(opened(browser, small, width_px=1280))
    headers = browser.find_elements(By.CSS_SELECTOR, "section.text th")
    wanted = [th for th in headers if th.text.startswith(("p (Holm)", "difference"))]
    assert len(wanted) >= 4
    assert all(th.rect["x"] >= 0 and th.rect["x"] + th.rect["width"] <= 1280 for th in wanted)
    hidden = "Array.from(document.querySelectorAll('.scroll')).map((box) => box.scrollWidth - box.clientWidth)"
    assert set(browser.execute_script(f"return {hidden}")) == {0}


def test_the_page_of_the_quickstarts_rows_says_at_most_600_words_before_the_first_click(
    browser: Chrome, tmp_path: Path
) -> None:
    """Ten rows: two networks and their pair, as probe, fine-tuned and with random weights, and one from scratch."""
    store = StorePaths(tmp_path)
    models = ("tinynet_mnist", "tinynet_cifar", "tinynet_mnist+tinynet_cifar")
    rows = [(cases.spec(phase, model), "") for model in models for phase in ("probe", "finetune")]
    random = {"weights": "random", "identity": "random"}
    rows += [(cases.spec("probe", model, backbone_options=random), "random_weights") for model in models]
    rows.append((cases.spec("scratch", "baseline_cnn"), ""))
    for i, (run, _) in enumerate(rows):
        details = {"n_val": 9, "n_test": 200, "optimizer_steps": 5}
        finished(store, run, right_N(180 - i), val=0.9, details=details)
    cases.write_grid(store, "quickstart", rows)
    page = write_report("quickstart", store, figures=False).with_name("index.html")
    opened(browser, page, width_px=1280)
    words = browser.execute_script(WORDS_JS)
    assert 200 < words <= 600
    unfolded(browser)
    assert browser.execute_script(WORDS_JS) > 1_200  # what is folded is there


def test_fifty_models_on_three_data_sets_with_five_seeds_open_and_sort_in_a_second(
    browser: Chrome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = StorePaths(tmp_path)
    runs = []
    for dataset, hardness in (("mnist", 0), ("cifar10", 20), ("digits", 40)):
        for i in range(50):
            for seed in range(5):
                run = cases.spec("probe", f"network_{i:02}", dataset=dataset, seed=seed)
                correct_N = np.roll(right_N(190 - hardness - 2 * i + seed), 3 * i)
                details = {"n_val": 20, "n_test": 200, "optimizer_steps": 500}
                finished(store, run, correct_N, val=0.95 - i / 100, details=details)
                runs.append((run, ""))
    cases.write_grid(store, "large", runs)
    monkeypatch.setattr(figures, "_KINDS", (accuracy,))
    page = write_report("large", store).with_name("index.html")
    assert page.stat().st_size < 5_000_000
    opened(browser, page, width_px=1280)
    assert_first_screen(browser, words=None)
    assert browser.find_element(By.ID, "verdict").text.count("network_00 (probe) reaches") == 3
    assert len(browser.find_elements(By.CSS_SELECTOR, ".first-figure")) == 3
    beside = [line.text for line in browser.find_elements(By.CSS_SELECTOR, ".beside")]
    assert [text.partition(":")[0] for text in beside] == ["mnist", "cifar10", "digits"]
    assert all("not told apart from ★: " in text and text.endswith(" more.") for text in beside)
    opening = "const [page] = performance.getEntriesByType('navigation'); return page.loadEventEnd - page.startTime"
    assert 0 < browser.execute_script(opening) < 1_000
    sorting_ms = browser.execute_script(
        "const start = performance.now();"
        "document.querySelector('th[data-column=test_accuracy] button').click();"
        "document.getElementById('comparison').getBoundingClientRect(); return performance.now() - start"
    )
    assert sorting_ms < 1_000
    sorted_by_test = numbers(browser, "test_accuracy")
    assert len(sorted_by_test) == 150 and sorted_by_test == sorted(sorted_by_test, key=lambda value: -(value or 0))
