"""Three people, each with the page or the terminal alone: what won and is it real, predict with it, what did it cost.

What they read is compared with what the test computes from comparison.csv and the records.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from browsing import clipboard, opened, started_chrome
from launched import CHECKOUT
from PIL import Image
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait
from sklearn.datasets import load_digits
from terminal import typed

pytestmark = pytest.mark.slow

LAUNCH = (
    "python jobs/launch_grid.py cluster=local device=cpu 'grid.phases=[probe,scratch]' 'grid.variants={}'"
    " phase.scratch.epochs=4 report.figures=true"
)
NUMBER = r"[+-]?\d+\.\d+"

# The words that a reader sees before touching anything, one line of the page's text to a line.
SEEN_JS = """
const seen = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
for (let node = walker.nextNode(); node; node = walker.nextNode()) {
  const parent = node.parentElement, range = document.createRange();
  range.selectNodeContents(node);
  const box = range.getBoundingClientRect();
  if (node.textContent.trim() && parent.checkVisibility() && !parent.closest('.sr') && box.width > 2
      && box.top >= 0 && box.bottom <= innerHeight && box.left >= 0 && box.right <= innerWidth)
    seen.push(node.textContent.trim());
}
return seen.join('\\n');
"""


@dataclass(frozen=True)
class Finished:
    """A finished grid in `folder`, where a user stands: jobs/ beside results/."""

    folder: Path

    @property
    def report(self) -> Path:
        return self.folder / "results" / "reports" / "quickstart"

    @property
    def rows(self) -> list[dict[str, str]]:
        with open(self.report / "comparison.csv", newline="") as file:
            return list(csv.DictReader(file))

    @property
    def answer(self) -> dict[str, Any]:
        (answer,) = json.loads((self.report / "answer.json").read_text())["datasets"]
        assert isinstance(answer, dict)
        return answer

    @property
    def wall_s(self) -> list[float]:
        """Seconds of every run, each once, extractions too."""
        records = [json.loads(p.read_text()) for p in (self.folder / "results" / "runs").glob("*/record.json")]
        return [sum(attempt["wall_s"] for attempt in record["attempts"]) for record in records]


def name(row: dict[str, str]) -> str:
    return f"{row['model']} ({row['phase']})"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The quickstart without fine-tuning: two networks and their pair on shared features, and one from scratch."""
    folder = tmp_path_factory.mktemp("people")
    (folder / "jobs").symlink_to(CHECKOUT / "jobs")
    code, shown = typed(LAUNCH, folder)
    assert code == 0, shown[-3000:]
    return Finished(folder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 digits, named by what they are, in sub-folders, and a file that is no picture."""
    folder = tmp_path_factory.mktemp("new pictures")
    digits = load_digits()
    for i in range(120):
        place = folder / f"box {i % 3}" / f"{digits.target[i]}-{i}.png"
        place.parent.mkdir(exist_ok=True)
        Image.fromarray((digits.images[i] * 255 / 16).astype("uint8")).save(place)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return folder


@pytest.fixture(scope="module")
def status(finished: Finished) -> str:
    code, shown = typed("python jobs/status.py", finished.folder)
    assert code == 0
    return shown


@pytest.fixture(scope="module")
def browser(request: pytest.FixtureRequest) -> Iterator[Chrome]:
    started = started_chrome(request)
    yield started
    started.quit()


@pytest.fixture
def page(browser: Chrome, finished: Finished) -> Chrome:
    return opened(browser, finished.report / "index.html", width_px=1280, height_px=900)


def by_keyboard(browser: Chrome, selector: str) -> Any:
    """Tab until this element has the focus, and press Enter."""
    wanted = browser.find_element(By.CSS_SELECTOR, selector)
    for _ in range(120):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        if browser.switch_to.active_element == wanted:
            browser.switch_to.active_element.send_keys(Keys.ENTER)
            return wanted
    raise AssertionError(f"the keyboard does not reach {selector}")


# ------------------------------------------------------------------------------------ what won, by how much, is it real
def assert_says_who_won(text: str, finished: Finished) -> None:
    """The sentence of the answer, against the table."""
    text = " ".join(text.split())
    found = re.search(rf"On digits, (.+?) reaches ({NUMBER}) \[({NUMBER}), ({NUMBER})\] % on the test images", text)
    assert found is not None, text[:2000]
    by_name = {name(row): row for row in finished.rows}
    winner = by_name[found[1]]
    highest = max(float(row["val_accuracy"]) for row in finished.rows)
    assert float(winner["val_accuracy"]) == pytest.approx(highest, abs=1e-9)
    table = [100 * float(winner[column]) for column in ("test_accuracy", "ci95_low", "ci95_high")]
    assert [float(text) for text in found.groups()[1:]] == pytest.approx(table, abs=0.051)
    rival = re.search(
        rf"Against (?:the runner-up on val, )?(.+?): (better|worse|no difference shown) "
        rf"\(({NUMBER}) points \[({NUMBER}), ({NUMBER})\], p (?:= |< )({NUMBER})",
        text,
    )
    assert rival is not None, text[:2000]
    ahead = 100 * (float(winner["test_accuracy"]) - float(by_name[rival[1]]["test_accuracy"]))
    low, high, p = (float(rival[i]) for i in (4, 5, 6))
    assert float(rival[3]) == pytest.approx(ahead, abs=0.0051) and low <= float(rival[3]) <= high
    is_real = "no difference shown" if p >= 0.05 else "better" if ahead > 0 else "worse"
    assert rival[2] == is_real


def test_the_first_screen_says_who_won_over_whom_whether_that_is_real_and_which_rows_are_as_good(
    page: Chrome, finished: Finished
) -> None:
    seen = page.execute_script(SEEN_JS)
    assert_says_who_won(seen, finished)
    answer = finished.answer
    for sign, key in (("≈", "not_told_apart"), ("!", "better_on_test")):
        told = re.search(rf"{re.escape(sign)} (?:not told apart from|better than) ★.*?: ([^:]+ \(\w+\))\.", seen)
        assert (told[1].split(", ") if told else []) == [rival["row"]["name"] for rival in answer[key]]
    assert ("★ is better than each of the 3 other rows" in seen) == answer["decided"]
    assert "1,293 images trained on, 144 val, 360 test; 10 classes" in seen
    first = page.find_element(By.CSS_SELECTOR, "#comparison tbody tr").text
    assert first.startswith("★") and answer["winner"]["model"] in " ".join(first.split())
    image = page.find_element(By.CSS_SELECTOR, ".first-figure img").rect
    assert image["y"] + image["height"] < 800 and image["x"] + image["width"] < 1280


def test_the_keyboard_sorts_by_val_and_opens_whether_the_difference_is_real(page: Chrome, finished: Finished) -> None:
    by_keyboard(page, "th[data-column=val_accuracy] button")
    assert page.find_element(By.CSS_SELECTOR, "th[data-column=val_accuracy]").get_attribute("aria-sort") == "descending"
    cells = page.find_elements(By.CSS_SELECTOR, "#comparison tbody td:nth-child(2) ~ td.model, #comparison td.model")
    models = ["".join(cell.text.split()) for cell in cells]
    by_val = sorted(finished.rows, key=lambda row: -float(row["val_accuracy"]))
    assert models == [row["model"] for row in by_val]
    (fold,) = [s for s in page.find_elements(By.CSS_SELECTOR, "summary") if s.text == "Is the difference real?"]
    page.execute_script("arguments[0].id = 'real'", fold)
    by_keyboard(page, "#real")
    table = page.find_element(By.CSS_SELECTOR, "details:has(> #real) table")
    assert table.is_displayed()
    _, winner, rival, verdict, *_ = (cell.text for cell in table.find_elements(By.CSS_SELECTOR, "tbody tr td"))
    runner_up = finished.answer["runner_up"]
    assert (winner, rival) == (finished.answer["winner"]["name"], runner_up["row"]["name"])
    assert verdict == runner_up["verdict"]


def test_status_alone_says_who_won_and_whether_that_is_real(status: str, finished: Finished) -> None:
    assert_says_who_won(status, finished)
    for rival in finished.answer["better_on_test"]:
        assert f"Val missed {rival['row']['name']}" in " ".join(status.split())


# --------------------------------------------------------------------------------------------- use it on new pictures
def assert_predicts(command: str, finished: Finished, pictures: Path) -> None:
    """A printed command, with IMAGES replaced, and its output sent to a file."""
    assert command.startswith("python jobs/predict.py ") and command.count("IMAGES") == 1
    filled_in = command.replace("IMAGES", f"'{pictures}'")
    code, shown = typed(f"{filled_in} > new.csv", finished.folder)
    assert code == 1, shown
    assert "broken.png" in shown and "1 image of 121 could not be read" in shown
    with open(finished.folder / "new.csv", newline="") as file:
        header, *lines = csv.reader(file)
    assert header[:3] == ["file", "predicted", "probability"] and header[-3:] == ["class_5", "probability_5", "error"]
    assert len(header) == 3 + 2 * sum(column.startswith("class_") for column in header) + 1
    assert len(lines) == 121 and all(len(line) == len(header) for line in lines)
    assert [line[0] for line in lines if line[-1]] == ["broken.png"]
    read = [line for line in lines if not line[-1]]
    assert sorted(line[0] for line in read) == sorted(str(p.relative_to(pictures)) for p in pictures.rglob("*-*.png"))
    right = sum(Path(line[0]).name.partition("-")[0] == line[1] for line in read) / len(read)
    assert right == pytest.approx(finished.answer["winner"]["test_accuracy"], abs=0.06)


def test_the_command_that_the_best_row_copies_predicts_new_pictures(
    page: Chrome, finished: Finished, pictures: Path
) -> None:
    button = page.find_element(By.CSS_SELECTOR, "#comparison tr.best button.copy")
    button.click()
    WebDriverWait(page, 5).until(lambda _: button.text == "copied")
    command, *others = clipboard(page).splitlines()
    assert [other.split()[1] for other in others] == ["jobs/predict.py", "jobs/run_phase.py"]
    assert_predicts(command, finished, pictures)


def test_the_command_that_status_prints_predicts_new_pictures(status: str, finished: Finished, pictures: Path) -> None:
    (command,) = re.findall(r"^Use it:\s+(python .+)$", status, flags=re.MULTILINE)
    assert_predicts(command, finished, pictures)


# ------------------------------------------------------------------------------------ what it cost, and what is missing
def assert_says_the_cost(text: str, finished: Finished) -> None:
    text = " ".join(text.split())
    found = re.search(rf"All of digits cost ({NUMBER}|\d+) (seconds|minutes|hours)\.", text)
    assert found is not None, text[-2000:]
    unit_s = {"seconds": 1.0, "minutes": 60.0, "hours": 3600.0}[found[2]]
    exact_to = 0.051 if "." in found[1] else 0.51
    assert float(found[1]) == pytest.approx(sum(finished.wall_s) / unit_s, abs=exact_to)


def assert_says_what_deciding_would_cost(text: str, finished: Finished) -> None:
    rivals = finished.answer["not_told_apart"]
    if not rivals:
        assert "To tell it from" not in text
        return
    needed = [
        f"about {rivals[0][key]:,} {noun}"
        for key, noun in (("seeds_needed", "seeds"), ("images_needed", "test images"))
        if rivals[0][key] is not None
    ]
    sentence = f"To tell it from {rivals[0]['row']['name']}"
    alone = f"The difference from {rivals[0]['row']['name']} would be shown if it were the only comparison"
    assert (sentence in text and f"takes {' or '.join(needed)}." in text) or alone in text, text[-2000:]


def test_the_page_says_what_the_grid_cost_with_shared_features_once_and_what_deciding_would_cost(
    page: Chrome, finished: Finished
) -> None:
    texts = {}
    for summary in page.find_elements(By.CSS_SELECTOR, "section.text summary"):
        if summary.text in ("The answer", "Cost"):
            summary.click()
            texts[summary.text] = summary.find_element(By.XPATH, "..").text
    assert_says_the_cost(texts["The answer"], finished)
    assert_says_what_deciding_would_cost(" ".join(texts["The answer"].split()), finished)
    runs = len(finished.wall_s)
    assert runs == 2 + 3 + 3  # extractions, though the pair needs both again; probes; seeds from scratch
    found = re.search(rf"counted once: {runs} runs, ([\d,]+\.\d) s wall, 0\.0 s GPU", texts["Cost"])
    assert found is not None, texts["Cost"]
    assert float(found[1].replace(",", "")) == pytest.approx(sum(finished.wall_s), abs=0.051)


def test_status_alone_says_what_the_grid_cost_and_what_deciding_would_cost(status: str, finished: Finished) -> None:
    assert_says_the_cost(status, finished)
    assert_says_what_deciding_would_cost(" ".join(status.split()), finished)
