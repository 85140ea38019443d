from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest
import report_cases as cases
from html_tree import Element, parse
from page_cases import IMAGE, N_TEST, QUOTES, SCRIPT, figure, hostile_grid, right_N, small_grid
from prediction_cases import finished, predictions_of
from printed_commands import Collector
from report_cases import write_report

from transfergrid.paths import StorePaths
from transfergrid.report.analysis.comparison import read_comparison
from transfergrid.report.analysis.predictions import EDITED
from transfergrid.report.analysis.rows import COLUMNS
from transfergrid.report.page.embedding import embed
from transfergrid.report.page.models import row_details
from transfergrid.report.page.provenance import provenance_lines
from transfergrid.report.page.render import render_page
from transfergrid.store import records


@pytest.fixture
def store(tmp_path: Path) -> StorePaths:
    return StorePaths(tmp_path / "results")


def page_of(store: StorePaths, grid: str = "small") -> Element:
    path = write_report(grid, store, figures=False)
    return parse(path.with_name("index.html").read_text(encoding="utf-8"))


def table_rows(page: Element) -> list[dict[str, Element]]:
    """In the grid's order; without what the page shows beside the columns of comparison.csv."""
    names = [th.attributes["data-column"] for th in sortable(page)]
    rows = sorted(lines_of(page), key=lambda row: int(row.attributes["data-index"]))
    return [
        dict(zip(names, [td for td in row.all("td") if "data-value" in td.attributes], strict=True)) for row in rows
    ]


def lines_of(page: Element) -> list[Element]:
    return page.one("table", id="comparison").one("tbody").all("tr")


def sortable(page: Element) -> list[Element]:
    headers = page.one("table", id="comparison").one("thead").all("th")
    return [th for th in headers if "data-column" in th.attributes]


def test_the_table_holds_every_column_of_the_csv_with_its_raw_values(store: StorePaths) -> None:
    small_grid(store)
    rows = table_rows(page_of(store))
    with open(store.report("small") / "comparison.csv", encoding="utf-8", newline="") as file:
        expected = list(csv.DictReader(file))
    assert [{name: cell.attributes["data-value"] for name, cell in row.items()} for row in rows] == expected
    assert tuple(rows[0]) == COLUMNS and len(rows) == 5


def test_few_columns_show_at_first_and_each_header_is_a_button_that_says_how_it_sorts(store: StorePaths) -> None:
    small_grid(store)
    headers = sortable(page_of(store))
    shown = [th.attributes["data-column"] for th in headers if "extra" not in th.classes]
    assert shown == (
        ["model", "phase", "test_accuracy", "val_accuracy", "delta_to_best_single", "verdict"]
        + ["parameters", "gpu_s", "status"]
    )
    assert all(th.attributes["aria-sort"] == "none" and th.one("button").text for th in headers)


def test_the_sections_stand_in_the_order_a_reader_needs_them(store: StorePaths) -> None:
    small_grid(store)
    page = page_of(store)
    headings = [h.text for h in page.all("h2")]
    first = ["Comparison", "The answer", "How to read this"]
    last = ["Models", "What failed or is missing, and why", "Provenance"]
    assert headings[:3] == first and headings[-3:] == last
    assert "Joined models beside their best part" in headings
    assert page.one("h1").text == "Comparison: small"
    assert page.one("p", id="verdict").text == (
        "On mnist, resnet18+googlenet (probe) reaches 95.2 [92.1, 98.4] % on the test images (best on val of 3 rows). "
        "Against the runner-up on val, resnet18 (probe): better "
        "(+5.00 points [+1.99, +8.69], p < 0.001 after Holm over 2). "
        "The winner cost at least 4.0 GPU seconds per seed. "
        "2 of 5 rows have not completed."
    )


def test_claims_stand_above_the_table(store: StorePaths) -> None:
    small_grid(store, "individual_vs_parallel")
    headings = [h.text for h in page_of(store, "individual_vs_parallel").all("h2")]
    assert headings[:2] == ["Published claims", "Comparison"]


def test_what_failed_and_what_is_missing_is_told_with_the_reason(store: StorePaths) -> None:
    runs = small_grid(store)
    page = page_of(store)
    told = [item.text for item in page.one("section", id="missing").all("li")]
    assert told == [
        "small · mnist · resnet18 · finetune · IMAGENET1K_V1: failed: cuda_oom.",
        "small · mnist · googlenet · finetune · IMAGENET1K_V1: missing; no run has a record yet: not started, "
        "or still running.",
        f"{runs['failed'].run_id}: cuda_oom: out of memory: <8 GB> & more second line. Next: use a smaller "
        "data.resident_gb (no number changes), phase.<name>.micro_batch or batch_size, or a larger GPU, and launch "
        "again; evaluation takes 256 images at once.",
    ]
    kinds = [row.attributes["class"] for row in lines_of(page)]
    assert kinds == ["completed best", "completed other", "completed other", "failed other", "missing other"]


def test_a_grid_in_which_all_has_completed_has_no_section_about_failures(store: StorePaths) -> None:
    runs = small_grid(store)
    cases.write_grid(store, "small", [(run, "") for name, run in runs.items() if name not in ("failed", "missing")])
    page = page_of(store)
    assert [a.text for a in page.one("nav").all("a")] == ["table", "models", "provenance"]
    assert "What failed or is missing, and why" not in [h.text for h in page.all("h2")]
    edit(store, runs["googlenet 1"].run_id, test_accuracy=0.995)
    assert [a.text for a in page_of(store).one("nav").all("a")][-2:] == ["failed or missing", "provenance"]


def test_a_row_without_a_result_does_not_say_that_nothing_differs_from_the_published_protocol(
    store: StorePaths,
) -> None:
    small_grid(store, "individual_vs_parallel")
    page = page_of(store, "individual_vs_parallel")
    told = [[p.text for p in page.one("article", id=f"row-{i}").all("p") if "Published:" in p.text] for i in (0, 3, 4)]
    assert "Remaining differences from the published protocol: protocol, batch_size" in told[0][0]
    later = "The differences from the published protocol appear once a run has completed."
    assert [text.endswith(later) for text in (*told[1], *told[2])] == [True, True]


def test_a_reason_that_names_its_next_step_is_given_no_other_one(store: StorePaths) -> None:
    run = cases.spec("probe", "resnet18")
    error, remedy = "record.json is damaged", "delete it and launch again"
    cases.failed(store, run, failure_class="data", error=error, remedy=remedy)
    cases.write_grid(store, "small", [(run, "")])
    text = page_of(store).one("section", id="missing").text
    assert "data: record.json is damaged. Next: delete it and launch again." in text and text.count("Next:") == 1


def test_seeds_that_failed_alike_are_told_in_one_line_and_the_class_stands_beside_the_status(store: StorePaths) -> None:
    runs = [cases.spec("probe", "resnet18", seed=seed) for seed in (0, 1, 2)]
    for run, error in zip(runs, ("time limit", "time  limit\n", "time limit of the node"), strict=True):
        cases.failed(store, run, failure_class="timeout", error=error)
    cases.write_grid(store, "small", [(run, "") for run in runs])
    page = page_of(store)
    _, alike, other = [item.text for item in page.one("section", id="missing").all("li")]
    assert alike.startswith(f"{runs[0].run_id}, {runs[1].run_id}: timeout: time limit. Next: ")
    assert other.startswith(f"{runs[2].run_id}: timeout: time limit of the node. Next: ")
    assert table_rows(page)[0]["status"].text == "failed (timeout)"
    assert (
        f"- `{runs[0].run_id}`, `{runs[1].run_id}`: timeout: " in (store.report("small") / "comparison.md").read_text()
    )


def test_the_verdict_passes_over_a_row_with_an_edited_record_and_names_one_in_part(store: StorePaths) -> None:
    runs = small_grid(store)
    edit(store, runs["resnet18+googlenet 0"].run_id, test_accuracy=0.999)
    cases.failed(store, runs["resnet18 1"], failure_class="timeout", error="time limit")
    assert page_of(store).one("p", id="verdict").text == (
        "On mnist, resnet18 (probe, 1/2 completed) reaches 90.0 [85.1, 93.4] % on the test images (best on val of 2 "
        "rows). Against the runner-up on val, googlenet (probe): better "
        "(+5.00 points [+1.55, +8.45], p = 0.002, from 1 of 2 seeds). "
        "The winner cost at least 4.0 GPU seconds. Passed over: 1 row whose records do not agree "
        "with their predictions. 3 of 5 rows have not completed."
    )


# ------------------------------------------------------------------------------------------ records and predictions
def edit(store: StorePaths, run_id: str, **metrics: object) -> None:
    path = store.run(run_id).record
    content = json.loads(path.read_bytes())
    content["metrics"] |= metrics
    path.write_text(json.dumps(content))


def flags(page: Element) -> list[list[str]]:
    return [[f.text for f in row["status"].all("span", _class="flag")] for row in table_rows(page)]


def test_a_record_edited_by_hand_is_marked_in_its_row_on_the_page_and_in_the_markdown(store: StorePaths) -> None:
    runs = small_grid(store)
    run_id = runs["googlenet 1"].run_id
    edit(store, run_id, test_accuracy=0.995)
    page = page_of(store)
    assert flags(page) == [[], [EDITED], [], [], []]
    sentence = (
        f"{run_id}: {EDITED}: it states a test accuracy of 99.50 %, 171 of 200 stored predictions are right (85.50 %)."
    )
    assert sentence in [item.text for item in page.one("section", id="missing").all("li")]
    assert sentence in (store.report("small") / "comparison.md").read_text()


@pytest.mark.parametrize(("images", "marked"), [(0, False), (1, False), (4, False), (5, True), (-1, True)])
def test_only_images_whose_class_ties_with_another_in_float16_are_left_open(
    store: StorePaths, images: int, marked: bool
) -> None:
    run = cases.spec("probe", "resnet18")
    stored = predictions_of(right_N(150))
    logits_NC = stored.logits_NC.copy()
    logits_NC[151:155] = 4.0  # all classes are equal, and the first one is not the right one
    assert not (logits_NC.argmax(axis=1) == stored.label_N)[151:155].any()
    records.write_predictions(store.run(run.run_id), {"test": replace(stored, logits_NC=logits_NC)})
    cases.completed(store, run, test_accuracy=(150 + images) / N_TEST)
    cases.write_grid(store, "small", [(run, "")])
    assert flags(page_of(store)) == [[EDITED] if marked else []]


@pytest.mark.parametrize("nonsense", [7.5, -1, "0.9", None, True, [1]])
def test_a_record_edited_into_nonsense_is_a_failure_of_its_own_row_alone(store: StorePaths, nonsense: object) -> None:
    runs = small_grid(store)
    for seed in (0, 1):
        edit(store, runs[f"resnet18 {seed}"].run_id, test_accuracy=nonsense)
    rows = table_rows(page_of(store))
    assert [row["status"].attributes["data-value"] for row in rows] == [
        "failed",
        *["completed"] * 2,
        "failed",
        "missing",
    ]
    assert "is not a record" in (store.report("small") / "comparison.md").read_text()


def test_missing_and_damaged_predictions_and_records_are_told_and_break_nothing(store: StorePaths) -> None:
    runs = small_grid(store)
    store.run(runs["resnet18 0"].run_id).predictions.unlink()
    store.run(runs["googlenet 0"].run_id).predictions.write_bytes(b"PK no archive")
    store.run(runs["resnet18+googlenet 1"].run_id).record.write_text('{"format": 1')
    page = page_of(store)
    assert flags(page)[:2] == [["no predictions.npz"], ["its predictions cannot be read"]]
    rows = table_rows(page)
    assert rows[2]["status"].attributes["data-value"] == "1/2 completed"
    assert "is damaged" in page.one("section", id="missing").text


# --------------------------------------------------------------------------------------------- nothing gets in or out
def test_no_name_becomes_an_element_and_every_name_is_shown_as_it_is(store: StorePaths, collector: Collector) -> None:
    hostile_grid(store)
    page = page_of(store, "hostile")
    collector.texts.clear()  # no command line takes these for the name of a data set
    assert len(page.all("script")) == 1 and page.all("img") == [] and page.all("b") != []
    assert [e for e in page.all("b") if not e.text] == []
    rows = table_rows(page)
    assert rows[0]["model"].text == SCRIPT and rows[0]["dataset"].text == QUOTES
    assert rows[1]["model"].text == "</script></style>" + IMAGE and rows[1]["variant"].text == f"{IMAGE}1"
    assert page.all("option", value=QUOTES)[0].text == QUOTES
    assert f"no class {IMAGE} in {QUOTES.replace('`', '')}" in page.one("section", id="missing").text
    handlers = [
        name for tag in ("a", "td", "tr", "span", "div", "option") for e in page.all(tag) for name in e.attributes
    ]
    assert not [name for name in handlers if name.startswith("on")]


def test_the_policy_allows_this_pages_script_and_style_and_nothing_else(
    store: StorePaths, collector: Collector
) -> None:
    hostile_grid(store)
    page = page_of(store, "hostile")
    collector.texts.clear()

    def source(tag: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(page.one(tag).text.encode()).digest()).decode()}'"

    (policy,) = page.all("meta", http_equiv="Content-Security-Policy")
    assert policy.attributes["content"] == (
        f"default-src 'none'; img-src data:; style-src {source('style')}; script-src {source('script')}; "
        "base-uri 'none'; form-action 'none'"
    )


def test_the_page_refers_to_nothing_outside_itself(store: StorePaths, tmp_path: Path) -> None:
    small_grid(store)
    comparison = read_comparison("small", store)
    page = parse(render_page(comparison, [], figures=[figure(tmp_path, "one")]))
    found = [
        e.attributes.get(name, "")
        for tag in ("a", "img", "link", "script")
        for e in page.all(tag)
        for name in ("href", "src")
    ]
    outside = [target for target in found if target and not target.startswith(("#", "data:"))]
    assert outside == ["figures/one.svg"]  # beside the page; opened only by a click
    ids = [
        e.attributes["id"]
        for tag in ("article", "section", "details", "div")
        for e in page.all(tag)
        if "id" in e.attributes
    ]
    inside = {a.attributes["href"].removeprefix("#") for a in page.all("a")} - set(outside)
    assert inside and inside <= set(ids)


# ------------------------------------------------------------------------------------------------------------ figures
def test_figures_that_do_not_fit_are_left_out_by_name_and_the_first_are_kept(tmp_path: Path) -> None:
    figures = [figure(tmp_path, f"noise{i}", noise=True) for i in range(4)]
    (alone,) = embed(figures[:1], budget_bytes=10_000_000)[0].values()
    assert (alone.width_px, alone.height_px) == (900, 450)
    smaller = embed(figures, budget_bytes=len(alone.uri) * 3)[0]
    assert {e.width_px for e in smaller.values()} == {760} and len(smaller) == 4
    budget_bytes = len(smaller["noise0"].uri) * 5 // 2
    kept, left_out = embed(figures, budget_bytes=budget_bytes)
    assert list(kept) == ["noise0", "noise1"] and [f.name for f in left_out] == ["noise2", "noise3"]
    assert sum(len(e.uri) for e in kept.values()) <= budget_bytes


def test_the_page_stays_below_five_megabytes_and_names_what_it_leaves_out(store: StorePaths, tmp_path: Path) -> None:
    small_grid(store)
    figures = [figure(tmp_path, f"noise{i}", width_px=760, noise=True) for i in range(20)]
    html = render_page(read_comparison("small", store), [], figures=figures, figure_notes=["no `images` here"])
    page = parse(html)
    shown = [f.attributes["id"].removeprefix("figure-") for f in page.all("figure")]
    named = [c.text for c in page.one("section", id="figure-notes").all("code")]
    assert len(html.encode()) < 5_000_000 and 5 < len(shown) < 20
    assert named == ["figures/", *(f"noise{i}.png" for i in range(len(shown), 20)), "images"]


def test_a_small_svg_is_embedded_as_it_is_and_figures_of_one_model_stand_in_its_section(
    store: StorePaths, tmp_path: Path
) -> None:
    small_grid(store)
    drawn = figure(tmp_path, "curves", section="curves", models=("googlenet",), title="Curves")
    drawn.svg.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    others = [figure(tmp_path, "best"), figure(tmp_path, "all", section="cost")]
    page = parse(render_page(read_comparison("small", store), [], figures=[drawn, *others]))
    (first,) = page.all("details", _class="first-figure")
    assert [f.attributes["id"] for f in first.all("figure")] == ["figure-best"]
    assert [f.attributes["id"] for f in page.one("section", id="figures").all("figure")] == ["figure-all"]
    model = page.one("details", id="model-1")
    assert model.all("summary")[0].one("b").text == "googlenet"
    image = model.one("img")
    assert (
        base64.b64decode(image.attributes["src"].removeprefix("data:image/svg+xml;base64,")) == drawn.svg.read_bytes()
    )
    assert image.attributes["alt"] == "Curves"


# ------------------------------------------------------------------------------------------------------------- models
def test_a_models_section_tells_command_settings_choice_and_runs_of_each_row(store: StorePaths) -> None:
    runs = small_grid(store)
    article = page_of(store).one("article", id="row-0")
    assert article.one("h3").text == "small · mnist · probe · weights IMAGENET1K_V1 · protocol fair"
    lines = [pre.text for pre in article.all("pre", _class="command")]
    ids = [runs["resnet18 0"].run_id, runs["resnet18 1"].run_id]
    assert lines == [f"python jobs/run_phase.py again={run_id} store.dir={store.root}" for run_id in ids]
    offered = [[td.text for td in tr.all("td")] for tr in article.one("tbody").all("tr")]
    assert offered == [["0.001", "0", ""], ["0.01", "0", "0, 1"]]
    settings = {d.one("dt").text: d.one("dd").text for d in article.one("dl").all("div")}
    assert settings["probe.label_smoothing"] == "0.1" and settings["dataset.name"] == "mnist"
    assert [c.text for c in article.all("code")[2:]] == ids


def test_what_differs_from_the_published_protocol_stands_with_its_row(store: StorePaths) -> None:
    run = cases.spec("probe", "resnet18")
    finished(store, run, right_N(150))
    cases.write_grid(store, "individual_vs_parallel", [(run, "")])
    text = page_of(store, "individual_vs_parallel").one("article", id="row-0").text
    assert "Published: 96.75 % (last)" in text and "Remaining differences from the published protocol: " in text
    assert "protocol" in text.partition("Remaining differences from the published protocol: ")[2]


def test_provenance_tells_code_and_machines_and_marks_rows_of_other_code(store: StorePaths) -> None:
    runs = small_grid(store)
    page = page_of(store)
    cells = [td.text for td in page.one("section", id="provenance").one("tbody").all("td")]
    assert cells == ["f" * 12, "no", "c0de", "2.13.0", "", "cpu", "node0, node1", "6"]
    assert "same code" in page.one("section", id="provenance").text
    for name in ("googlenet 1", "resnet18+googlenet 0", "resnet18+googlenet 1"):
        path = store.run(runs[name].run_id).record
        path.write_text(path.read_text().replace("c0de", "0ther"))
    for name in ("googlenet 0",):
        path = store.run(runs[name].run_id).record
        path.write_text(path.read_text().replace("c0de", "third"))
    page = page_of(store)
    assert flags(page)[:3] == [["other code than most rows"], ["seeds of different code"], []]
    assert "3 versions of the code" in page.one("section", id="provenance").text


def test_a_grid_without_any_result_has_its_page(store: StorePaths) -> None:
    run = cases.spec("probe", "resnet18")
    cases.write_grid(store, "small", [(run, "")])
    page = page_of(store)
    assert page.one("p", id="verdict").text == "No answer yet: no row has a test accuracy."
    assert "a launch as it was made before, with grid_name=small" in page.one("article", id="row-0").text
    assert page.one("section", id="provenance").one("p").text == "No run has completed yet."


def test_the_page_of_the_same_records_is_the_same_to_the_byte(store: StorePaths) -> None:
    small_grid(store)
    pages = [write_report("small", store, figures=False).with_name("index.html").read_bytes() for _ in range(2)]
    assert pages[0] == pages[1]


def test_the_share_of_the_training_images_stands_among_a_rows_settings(store: StorePaths) -> None:
    run = replace(cases.spec("probe", "resnet18"), shots=5)
    finished(store, run, right_N(150))
    cases.write_grid(store, "small", [(run, "shots_5")])
    settings = row_details(read_comparison("small", store), [()])[0].settings
    assert ("dataset.shots", "5") in settings and "dataset.train_fraction" not in dict(settings)


def test_provenance_edited_into_lists_is_shown_as_it_is(store: StorePaths) -> None:
    run = cases.spec("probe", "resnet18")
    finished(store, run, right_N(150), provenance={"git_dirty": [1], "code_hash": ["c"], "host": {}, "git_commit": [2]})
    cases.write_grid(store, "small", [(run, "")])
    assert provenance_lines(read_comparison("small", store)) == [
        ("[2]", "unknown", "['c']", "", "", "", "unknown", "1")
    ]


# ------------------------------------------------------------------------------------------------------------- colours
def luminance(colour: str) -> float:
    """Relative, by WCAG 2.1, of `#rrggbb`."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    darker, lighter = sorted((luminance(a), luminance(b)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("theme", [0, 1, 2], ids=["light", "dark", "print"])
def test_every_text_colour_can_be_read_on_every_background_of_its_theme(theme: int) -> None:
    """AA: 4.5 for text, 3 for the border of a field."""
    css = resources.files("transfergrid.report.page").joinpath("templates/page.css").read_text(encoding="utf-8")
    themes = [dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6})", block)) for block in re.findall(r":root {([^}]*)}", css)]
    assert len(themes) == 3 and contrast("#000000", "#ffffff") == pytest.approx(21)
    colours = themes[0] | themes[theme]
    texts, behind = ("ink", "quiet", "link", "flag", "bad"), ("paper", "faint", "hover", "best", "equal", "target")
    weak = {(a, b) for a in texts for b in behind if contrast(colours[a], colours[b]) < 4.5}
    assert weak == set()
    assert contrast(colours["arrow"], colours["faint"]) >= 4.5 and contrast(colours["field"], colours["paper"]) >= 3
