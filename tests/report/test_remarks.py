"""What is said of a single row: a choice at an end of a search, few val images, few optimizer steps."""

from __future__ import annotations

import html
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report_cases as cases
from prediction_cases import finished, predictions_of
from report_cases import row, write_report
from test_comparison import shown

from transfergrid.paths import StorePaths
from transfergrid.report.analysis import choices, lengths
from transfergrid.report.analysis.comparison import read_comparison
from transfergrid.report.analysis.remarks import edges, footnotes
from transfergrid.report.latex import as_latex
from transfergrid.report.markdown import section_text
from transfergrid.report.wandb_report import short_table
from transfergrid.specs import RunSpec
from transfergrid.store import records
from transfergrid.store.records import RunRecord

LRS = [{"lr": lr, "weight_decay": decay} for lr in (0.001, 0.003, 0.01) for decay in (0.0, 1e-4)]


@pytest.fixture
def store(tmp_path: Path) -> StorePaths:
    return StorePaths(tmp_path / "results")


def record(**details: Any) -> RunRecord:
    run = cases.spec("probe", "resnet18")
    return RunRecord(run_id=run.run_id, spec=run, status="completed", details=details)


# ------------------------------------------------------------------------------------------------------ of one search
@pytest.mark.parametrize(
    ("lr", "decay", "told"),
    [
        (0.01, 0.0, ("lr 0.01 is the largest of the search",)),
        (0.001, 1e-4, ("lr 0.001 is the smallest of the search", "weight_decay 0.0001 is the largest of the search")),
        (0.003, 0.0, ()),  # no decay is less than none
    ],
)
def test_a_chosen_value_at_an_end_of_what_was_offered_is_told(lr: float, decay: float, told: tuple[str, ...]) -> None:
    assert edges(record(choices=LRS, chosen={"head": 3, "lr": lr, "weight_decay": decay})) == told


def test_of_one_value_nothing_was_searched_and_records_edited_into_nonsense_say_nothing() -> None:
    assert edges(record(choices=[{"lr": 0.01, "weight_decay": 0.5}], chosen={"lr": 0.01, "weight_decay": 0.5})) == ()
    for chosen in ("0.01", None, {}, {"lr": "<b>"}, {"lr": True}):
        assert edges(record(choices=LRS, chosen=chosen)) == ()
    for offered in ("x", [1, "2"], [{"lr": "<b>"}, {"lr": None}], None):
        assert edges(record(choices=offered, chosen={"lr": 0.01})) == ()
    searches: list[Any] = ["x", [1], {}, 5]
    for search in (*searches, [{"chosen": 1.0, "not_converged": 7}], [{"at_edge": False, "chosen": [1]}]):
        assert edges(record(search=search)) == ()


def test_a_search_that_says_where_it_ended_is_believed_over_the_values_first_offered() -> None:
    """A path of penalties that was extended: the value chosen lies outside what was offered, and inside the search."""
    inside = {"name": "C", "chosen": 30.0, "at_edge": False, "edge": None, "not_converged": [100.0]}
    at_end = inside | {"chosen": 100.0, "at_edge": True, "edge": "weakest"}
    offered: dict[str, Any] = {"choices": [{"C": 1.0}, {"C": 10.0}], "chosen": {"C": 30.0}}
    assert edges(record(search=[inside], **offered)) == ()
    assert edges(record(search=[at_end], **offered)) == (
        "C 100 is the weakest of the search",
        "C 100 has not converged",
    )
    assert edges(record(search={"at_edge": True, "edge": "strongest"})) == (
        "the chosen value is the strongest of the search",
    )
    lr = {"name": "lr", "chosen": 0.01, "at_edge": True, "edge": "highest", "not_converged": []}
    assert edges(record(search=[lr])) == ("lr 0.01 is the largest of the search",)


def test_of_several_seeds_it_is_told_how_many(store: StorePaths) -> None:
    runs = [cases.spec("probe", "resnet18", seed=seed) for seed in (0, 1, 2)]
    for run, lr in zip(runs, (0.01, 0.003, 0.01), strict=True):
        cases.completed(store, run, details={"choices": LRS, "chosen": {"lr": lr, "weight_decay": 0.0}})
    cases.write_grid(store, "g", [(run, "") for run in runs])
    (found,) = read_comparison("g", store).rows
    assert found.cell("remarks") == "lr 0.01 is the largest of the search (2 of 3 seeds)"


# ---------------------------------------------------------------------------------------------- a search by variants
def remarks_of(store: StorePaths, rows: list[tuple[RunSpec, str, float]]) -> dict[str, str | None]:
    for run, _, val in rows:
        cases.completed(store, run, metrics={"val_accuracy": val})
    cases.write_grid(store, "g", [(run, variant) for run, variant, _ in rows])
    return {found.variant: "; ".join(found.remarks) or None for found in read_comparison("g", store).rows}


def scratch(**changes: Any) -> RunSpec:
    return cases.spec("scratch", "lenet5", image_size_px=32, **changes)


def test_the_best_of_numbered_variants_is_marked_only_at_an_end(store: StorePaths) -> None:
    """The rate rises with the batch, so both are one search."""
    sizes = {64: 0.7, 128: 0.8, 256: 0.9}
    rows = [(scratch(batch_size=n, lr=n / 1280), f"batch_{n}", val) for n, val in sizes.items()]
    end = "best on val at an end of the search: batch_size 256 is the largest of 3 tried"
    assert remarks_of(store, rows) == {"batch_64": None, "batch_128": None, "batch_256": end}
    more = [*rows, (scratch(batch_size=512, lr=0.4), "batch_512", 0.85)]
    assert set(remarks_of(store, more).values()) == {None}


def test_two_settings_searched_crosswise_are_judged_each_on_its_own_line(store: StorePaths) -> None:
    rows = [
        (scratch(lr=lr, label_smoothing=smoothing), f"v{lr}{smoothing}", 0.9 - abs(lr - 0.2) - abs(smoothing - 0.3))
        for lr in (0.1, 0.2, 0.3)
        for smoothing in (0.1, 0.2, 0.3)
    ]
    told = {name: text for name, text in remarks_of(store, rows).items() if text}
    assert told == {
        "v0.20.3": "best on val at an end of the search: label_smoothing 0.3 is the largest of 3 tried",
    }


def test_two_variants_are_a_comparison_unless_their_names_say_that_they_are_choices(store: StorePaths) -> None:
    rows = [(scratch(lr=0.1), "slow", 0.8), (scratch(lr=0.2), "fast", 0.9)]
    assert set(remarks_of(store, rows).values()) == {None}
    named = [(scratch(lr=0.1), "sgd--lr_0.1", 0.8), (scratch(lr=0.2), "sgd--lr_0.2", 0.9)]
    end = "best on val at an end of the search: lr 0.2 is the largest of 2 tried"
    assert remarks_of(store, named) == {"sgd--lr_0.1": None, "sgd--lr_0.2": end}
    assert f"- mnist lenet5 scratch sgd: {end}.\n" in section_text(choices.section(read_comparison("g", store)))


def test_other_kinds_of_settings_and_more_training_images_are_no_search(store: StorePaths) -> None:
    rows = [
        (scratch(optimizer="sgd"), "sgd", 0.8),
        (scratch(optimizer="adam", lr=0.2), "adam", 0.85),
        (scratch(optimizer="adamw", lr=0.3), "adamw", 0.9),
    ]
    rows += [(replace(scratch(), shots=shots), f"shots_{shots}", 0.6 + shots / 100) for shots in (1, 5, 20)]
    assert set(remarks_of(store, rows).values()) == {None}


def test_the_best_number_of_epochs_is_told_with_its_end(store: StorePaths) -> None:
    rows = [(scratch(epochs=n), f"epochs_{n}", 0.5 + n / 1000) for n in (5, 10, 95)]
    rows.append((scratch(epochs=95, schedule="constant"), "along_one_run", 0.99))
    end = "best on val at an end of the search: epochs 95 is the largest of 3 tried"
    assert remarks_of(store, rows)["epochs_95"] == end
    assert f"- mnist lenet5, best on val: 95 epochs; {end}.\n" in section_text(
        lengths.section(read_comparison("g", store))
    )


# --------------------------------------------------------------------------------------------------------- too little
@pytest.mark.parametrize(
    ("details", "told"),
    [
        ({"n_val": 9, "optimizer_steps": 10}, "only 9 val images (below 30); only 10 optimizer steps (below 50)"),
        ({"n_val": 1, "optimizer_steps": 1}, "only 1 val image (below 30); only 1 optimizer step (below 50)"),
        ({"n_val": 29, "optimizer_steps": 50}, "only 29 val images (below 30)"),
        ({"n_val": 30, "optimizer_steps": 49}, "only 49 optimizer steps (below 50)"),
        ({"n_val": 30, "optimizer_steps": 50}, None),
        ({"n_val": 30, "optimizer_steps": 0}, None),
        ({"n_val": "9", "optimizer_steps": True}, None),
    ],
)
def test_few_val_images_and_few_steps_are_told_with_their_numbers(
    store: StorePaths, details: dict[str, Any], told: str | None
) -> None:
    run = cases.spec("finetune", "resnet18")
    cases.completed(store, run, details=details)
    cases.write_grid(store, "g", [(run, "")])
    assert read_comparison("g", store).rows[0].cell("remarks") == told


def test_val_images_that_no_record_counts_are_counted_in_the_predictions(store: StorePaths) -> None:
    run = cases.spec("finetune", "resnet18")
    finished(store, run, np.ones(100, dtype=bool))
    sets = {"test": predictions_of(np.ones(100, dtype=bool)), "val": predictions_of(np.ones(9, dtype=bool))}
    records.write_predictions(store.run(run.run_id), sets)
    cases.write_grid(store, "g", [(run, "")])
    (found,) = read_comparison("g", store).rows
    assert (found.n_val, found.cell("remarks")) == (9, "only 9 val images (below 30)")
    published = cases.spec("finetune", "resnet18", protocol="published")
    cases.completed(store, published, details={"n_val": 9})
    cases.write_grid(store, "g", [(published, "")])
    assert read_comparison("g", store).rows[0].n_val is None  # nothing is held out there


# ------------------------------------------------------------------------------------------------------ how it was made
def test_a_probe_of_the_first_release_is_told_as_that_and_its_scratch_run_is_not(store: StorePaths) -> None:
    runs = [
        replace(cases.spec("probe", "resnet18"), rules=1),
        cases.spec("probe", "vgg16"),
        cases.spec("scratch", "lenet5"),
    ]
    for run in runs:
        cases.completed(store, run)
    cases.write_grid(store, "g", [(run, "") for run in runs])
    told = [row.remarks for row in read_comparison("g", store).rows]
    (text,) = told[0]  # one remark, though a semicolon stands in it
    assert text.startswith("made by an older release, under other rules") and text.endswith("to make it anew")
    assert footnotes(read_comparison("g", store).rows) == (["a", "", ""], [("a", text)])
    assert told[1:] == [(), ()]


def test_uneven_classes_are_told_with_their_numbers(store: StorePaths) -> None:
    runs = [cases.spec("probe", model) for model in ("resnet18", "vgg16")]
    for run, smallest in zip(runs, (19, 20), strict=True):
        cases.completed(store, run, details={"class_counts": {"largest": 60, "smallest": smallest}})
    cases.write_grid(store, "g", [(run, "") for run in runs])
    told = [row.cell("remarks") for row in read_comparison("g", store).rows]
    assert told == ["uneven classes: 19 to 60 images trained on", None]


# ------------------------------------------------------------------------------------------------------- where it shows
def test_each_text_has_one_mark_and_stands_once_below_every_table(store: StorePaths) -> None:
    few = {"n_val": 9, "choices": LRS, "chosen": {"lr": 0.01, "weight_decay": 0.0}}
    runs = [cases.spec("probe", model) for model in ("resnet18", "googlenet", "resnet34")]
    for run, details in zip(runs, (few, {"n_val": 9}, {"n_val": 90}), strict=True):
        cases.completed(store, run, details=details)
    cases.write_grid(store, "g", [(run, "") for run in runs])
    rows = read_comparison("g", store).rows
    texts = ["lr 0.01 is the largest of the search", "only 9 val images (below 30)"]
    assert footnotes(rows) == (["a,b", "b", ""], [("a", texts[0]), ("b", texts[1])])
    path = write_report("g", store, figures=False)
    text, page = path.read_text(), html.unescape(path.with_name("index.html").read_text())
    assert all(f"| 95.00 [94.56, 95.41]{mark} |" in text for mark in (" a,b", " b", ""))
    assert all(f"- {mark}: {told}.\n" in text for mark, told in zip("ab", texts, strict=True))
    assert "".join(f'<span class="remark">{told}</span>' for told in texts) in page
    assert page.count(f'<span class="remark">{texts[1]}</span>') == 2  # in both rows
    assert page.count(f"<li>{texts[1]}.</li>") == 2  # in the details of both rows
    tex = as_latex("g", rows)
    assert "{]}$^{a,b}$ &" in tex and r"\footnotesize $^{b}$ only 9 val images (below 30).} \\" in tex
    assert short_table(rows).endswith(f"\n- a: {texts[0]}.\n- b: {texts[1]}.\n")


def test_the_terminal_has_the_marks_and_says_below_what_they_are(store: StorePaths) -> None:
    rows = [
        row(remarks=("only 9 val images (below 30)",)),
        row(published_accuracy=0.9955, published_differs=("protocol",)),
    ]
    for width in (80, 120):
        lines = [line.rstrip() for line in shown(rows, width=width).splitlines()]
        assert any("97.2 [95.0, 98.5] a" in line for line in lines)
        assert "a: only 9 val images (below 30)" in lines
        assert "* obtained with other settings: published_differs in comparison.csv names them" in " ".join(lines)
        assert max(map(len, lines)) <= width


def test_a_head_that_understates_its_features_is_marked_in_every_table_with_what_the_mark_says() -> None:
    rows = [row(better_than_head=("knn", "qda"), remarks=("only 9 val images (below 30)",)), row(model="resnet18")]
    for width in (80, 120):
        lines = [line.rstrip() for line in shown(rows, width=width).splitlines()]
        (marked,) = (line for line in lines if "▲" in line and "▲:" not in line)
        assert "97.2 [95.0, 98.5] a,▲" in marked and "tinynet_mnist" in marked
        told = " ".join(lines)
        assert "▲: another head on the same features has more test images right" in told and "better_than_head" in told
    _, below = footnotes(rows)
    assert below[-1][0] == "▲" and short_table(rows).endswith(f"\n- ▲: {below[-1][1]}.\n")
    latex = as_latex("g", rows)
    assert "$^{a,\\triangle}$ &" in latex and "$^{\\triangle}$ another head" in latex
    assert "▲" not in latex and "▲" not in shown(rows[1:]) and "triangle" not in as_latex("g", rows[1:])
