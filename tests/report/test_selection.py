"""A tie on val is told as a tie, the order of a grid's rows decides nothing, and `select_by` decides everywhere."""

from __future__ import annotations

import csv
import html
import json
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import report_cases as cases
from prediction_cases import finished

from transfergrid.cli.console import make_console
from transfergrid.cli.grid_file import write_grid_of
from transfergrid.cli.report import report
from transfergrid.config import load_grid, load_run
from transfergrid.config.report import parse_report
from transfergrid.errors import ConfigError, DataError
from transfergrid.paths import StorePaths
from transfergrid.report import wording
from transfergrid.report.analysis import choices, lengths
from transfergrid.report.analysis.comparison import Comparison, read_comparison
from transfergrid.report.analysis.families import best_parts, groups
from transfergrid.report.analysis.selection import best_first
from transfergrid.report.analysis.verdicts import against_best, section
from transfergrid.report.markdown import section_text
from transfergrid.report.several import joined
from transfergrid.report.wandb_report import wandb_report_of
from transfergrid.report.write import write
from transfergrid.specs import ProbeSettings, RunSpec
from transfergrid.store import records

N_TEST = 200


@pytest.fixture
def store(tmp_path: Path) -> StorePaths:
    return StorePaths(tmp_path / "results")


def on_val(accuracy: float, loss: float | None = None, *, recall: float = 0.5, f1: float = 0.5) -> dict[str, float]:
    told = {"val_accuracy": accuracy, "val_macro_recall": recall, "val_macro_f1": f1}
    return told if loss is None else told | {"val_loss": loss}


def three_rows(store: StorePaths, *, reverse: bool = False) -> Comparison:
    """A fine-tuning and a network from scratch that are tied on val, the second with the lower loss; and a probe."""
    tied, winner = cases.spec("finetune", "resnet18"), cases.spec("scratch", "baseline_cnn")
    probe = cases.spec("probe", "resnet18")
    finished(store, tied, np.arange(N_TEST) < 190, metrics=on_val(138 / 144, 0.3))
    finished(store, winner, np.arange(N_TEST) < 198, metrics=on_val(138 / 144, 0.2))
    finished(store, probe, np.arange(N_TEST) < 199, metrics=on_val(137 / 144, 0.1))
    runs = [(run, "") for run in (tied, winner, probe)]
    cases.write_grid(store, "g", runs[::-1] if reverse else runs)
    return read_comparison("g", store)


# --------------------------------------------------------------------------------------------------------------- ties
@pytest.mark.parametrize("reverse", [False, True])
def test_rows_tied_on_val_are_all_named_in_one_order_whatever_the_grids(store: StorePaths, reverse: bool) -> None:
    assert wording.verdict(three_rows(store, reverse=reverse)) == (
        "On mnist, baseline_cnn (scratch) reaches 99.0 [96.4, 99.7] % on the test images (best on val of 3 rows, tied "
        "with 1 more). Against resnet18 (finetune): better (+4.00 points [+1.06, +7.74], p = 0.008). "
        "The winner cost 4.0 GPU seconds."
    )


def test_page_terminal_markdown_latex_and_wandb_say_the_tie(
    store: StorePaths, capsys: pytest.CaptureFixture[str]
) -> None:
    comparison = three_rows(store)
    said = wording.verdict(comparison)
    tied = "Tied with it on val: resnet18 (finetune) (95.0 [91.0, 97.3] %)."
    assert report(["grid=g", f"store.dir={store.root}", "figures=false"]) == 0
    folder = store.report("g")
    printed = " ".join(capsys.readouterr().out.split())
    assert said in printed and tied in printed
    assert f"## The answer\n\n- {tied}\n" in (folder / "comparison.md").read_text()
    assert f"<li>{tied}</li>" in (folder / "index.html").read_text()
    assert said in (folder / "comparison.md").read_text()
    assert said in html.unescape((folder / "index.html").read_text())
    tex = (folder / "comparison.tex").read_text().replace("{(}", "(")
    assert "Tied on val on mnist: baseline\\_cnn (scratch) and resnet18 (finetune)." in tex
    assert "On mnist, baseline\\_cnn (scratch) reaches 99.0 " in tex
    published = wandb_report_of([comparison], folder, figures=False)
    assert published.headline == said
    assert [chosen.title for chosen in published.chosen] == [
        "mnist · baseline_cnn · scratch",
        "mnist · resnet18 · finetune",
    ]


def test_as_many_images_right_is_a_tie_though_the_means_differ_in_their_last_digit(store: StorePaths) -> None:
    rights = {"resnet18": (126, 126, 136), "googlenet": (128, 128, 132)}
    means = [fmean(right / 144 for right in of) for of in rights.values()]
    assert means[0] != means[1]
    runs = []
    for model, of in rights.items():
        for seed, right in enumerate(of):
            runs.append(cases.spec("probe", model, seed=seed))
            finished(store, runs[-1], np.arange(N_TEST) < 190 + seed, metrics=on_val(right / 144))
    one_less = cases.spec("probe", "resnet34", seed=0)
    finished(store, one_less, np.arange(N_TEST) < 199, metrics=on_val((sum(rights["resnet18"]) - 1) / (3 * 144)))
    cases.write_grid(store, "g", [(run, "") for run in (*runs, one_less)])
    rows = read_comparison("g", store).rows
    assert [[rows[i].model for i in tied] for tied in best_first(rows)] == [["googlenet", "resnet18"], ["resnet34"]]


def test_without_a_loss_the_cheaper_row_stands_first_and_names_end_every_tie(store: StorePaths) -> None:
    costs = {"resnet34": 7.0, "resnet18": 3.6, "googlenet": 3.6}
    for model, gflops in costs.items():
        finished(store, cases.spec("probe", model), np.arange(N_TEST) < 190, gflops_per_image=gflops)
    cases.write_grid(store, "g", [(cases.spec("probe", model), "") for model in costs])
    rows = read_comparison("g", store).rows
    assert [rows[i].model for i in best_first(rows)[0]] == ["googlenet", "resnet18", "resnet34"]


@pytest.mark.parametrize("reverse", [False, True])
def test_tied_parts_of_a_join_are_told_and_the_one_with_the_lower_loss_is_taken(
    store: StorePaths, reverse: bool
) -> None:
    losses = {"resnet18": 0.3, "googlenet": 0.2, "resnet18+googlenet": 0.1}
    runs = []
    for model, loss in losses.items():
        runs.append((cases.spec("probe", model), ""))
        finished(store, runs[-1][0], np.arange(N_TEST) < 190, metrics=on_val(0.9, loss))
    cases.write_grid(store, "g", runs[::-1] if reverse else runs)
    comparison = read_comparison("g", store)
    (row,) = [row for row in comparison.rows if "+" in row.model]
    assert row.best_single_model == "googlenet"
    assert comparison.notes == (
        "mnist resnet18+googlenet probe: its parts googlenet and resnet18 are tied on val: of rows tied on val the one "
        "with the lower val loss comes first, then the one with fewer FLOPs per image.",
    )
    text = section_text(section(against_best(comparison)))
    assert "| resnet18+googlenet, tied with " in text


@pytest.mark.parametrize("reverse", [False, True])
def test_tied_choices_and_lengths_are_told(store: StorePaths, reverse: bool) -> None:
    runs: list[tuple[RunSpec, str]] = []
    for variant, changes, loss in (
        ("sgd--lr_0.1", {"lr": 0.1}, 0.4),
        ("sgd--lr_0.3", {"lr": 0.3}, 0.3),
        ("epochs_5", {"epochs": 5}, 0.5),
        ("epochs_10", {"epochs": 10}, 0.6),
        ("along_one_run", {"epochs": 10, "schedule": "constant"}, 0.9),
    ):
        run = cases.spec("scratch", "lenet5", image_size_px=32, **changes)
        cases.completed(store, run, metrics=on_val(0.6 if variant == "along_one_run" else 0.7, loss))
        runs.append((run, variant))
    cases.write_grid(store, "g", runs[::-1] if reverse else runs)
    comparison = read_comparison("g", store)
    (choice,) = choices.choices(comparison)
    assert choice.chosen is not None and choice.chosen.variant == "sgd--lr_0.3"
    assert "mnist lenet5 scratch sgd: lr_0.3 and lr_0.1 are tied on val: of rows" in section_text(
        choices.section(comparison)
    )
    assert "mnist lenet5, best on val: tied: 5 and 10 epochs (of rows" in section_text(lengths.section(comparison))


# ----------------------------------------------------------------------------------------------------------- select_by
def of_two_minds(store: StorePaths, **launched: Any) -> list[tuple[RunSpec, str]]:
    """Parts and settings of which one is best by accuracy and the other by balanced accuracy and macro F1."""
    runs: list[tuple[RunSpec, str]] = []
    for name, variant, accuracy, other in (
        ("resnet18", "", 0.90, 0.60),
        ("googlenet", "", 0.80, 0.70),
        ("resnet18+googlenet", "", 0.70, 0.50),
        ("resnet34", "a--one", 0.50, 0.40),
        ("resnet34", "a--two", 0.40, 0.45),
    ):
        run = cases.spec("probe", name, batch_size=64 if variant == "a--two" else 128)
        metrics = on_val(accuracy, recall=other, f1=other + 0.01)
        finished(store, run, np.arange(N_TEST) < 150 + len(runs), metrics=metrics)
        runs.append((run, variant))
    entries = [cases.entry(run, variant=variant) for run, variant in runs]
    records.write_grid(store.grid("g"), grid="g", entries=entries, **launched)
    return runs


@pytest.mark.parametrize(
    ("select_by", "best", "chosen"),
    [
        ("accuracy", "resnet18", "a--one"),
        ("balanced_accuracy", "googlenet", "a--two"),
        ("macro_f1", "googlenet", "a--two"),
    ],
)
def test_every_choice_on_val_is_by_the_score_of_the_launch(
    store: StorePaths, select_by: str, best: str, chosen: str
) -> None:
    of_two_minds(store, select_by=select_by)
    comparison = read_comparison("g", store)
    rows = comparison.rows
    assert [rows[part].model for part, *_ in best_parts(rows).values()] == [best]
    assert rows[2].best_single_model == best
    assert {rows[i].model for key, (i, _) in groups(rows).items() if key[0] == "models" and key[3] == ""} == {best}
    assert [c.chosen.variant for c in choices.choices(comparison) if c.chosen] == [chosen]
    assert wording.verdict(comparison).startswith(f"On mnist, {best} (probe) reaches")
    assert {row.select_by for row in rows} == {select_by}


def test_the_page_says_by_what_where_it_is_not_accuracy_and_shows_the_score(store: StorePaths) -> None:
    of_two_minds(store, select_by="balanced_accuracy")
    path = write([read_comparison("g", store)], figures=False)
    text, page = path.read_text(), html.unescape(path.with_name("index.html").read_text())
    told = "- Every choice on val between rows is by balanced accuracy (`select_by`), not by accuracy."
    assert told in text and "is by balanced accuracy (<code>select_by</code>)" in page
    assert (
        "(best on val by balanced accuracy of 5 rows)" in page
        and "(best on val by balanced accuracy of 5 rows)" in text
    )
    assert "| val | val balanced accuracy | train |" in text and "| 80.00 | 70.00 |" in text
    assert '<th scope="col" data-column="val_balanced_accuracy" aria-sort="none" class="number">' in page
    assert '<th scope="col" data-column="val_accuracy" aria-sort="none" class="number extra">' in page
    assert "Val balanced accuracy \\%" in path.with_name("comparison.tex").read_text()
    write([read_comparison("g", store, select_by="accuracy")], figures=False)
    assert "select_by" not in path.read_text()


def test_report_takes_another_score_and_refuses_what_is_none(
    store: StorePaths, capsys: pytest.CaptureFixture[str]
) -> None:
    of_two_minds(store)
    assert report(["grid=g", f"store.dir={store.root}", "figures=false", "select_by=macro_f1"]) == 0
    assert "On mnist, googlenet (probe) reaches" in capsys.readouterr().out
    with open(store.report("g") / "comparison.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["select_by"] for row in rows] == ["macro_f1"] * 5
    assert [row["val_macro_f1"] for row in rows][:2] == ["0.61", "0.71"]
    with pytest.raises(ConfigError, match=r"^select_by='f1' is not one of accuracy, balanced_accuracy, macro_f1$"):
        parse_report(["grid=g", "select_by=f1"])


def test_grids_that_choose_by_different_scores_stand_in_one_report_only_by_one(store: StorePaths) -> None:
    runs = of_two_minds(store, select_by="macro_f1")
    cases.write_grid(store, "other", runs)
    with pytest.raises(ConfigError, match=r"g by macro_f1, other by accuracy\); give select_by=NAME"):
        joined([read_comparison(name, store) for name in ("g", "other")])
    assert report(["compare=[g,other]", f"store.dir={store.root}", "figures=false", "select_by=macro_f1"]) == 0


def test_a_launch_records_its_score_a_run_by_hand_leaves_it_and_a_damaged_one_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [f"store.dir={tmp_path}/results", f"cache.dir={tmp_path}/cache"]
    small = ["grid.models=[tinynet_mnist]", "grid.phases=[probe]", "grid.seeds=[0]", "grid_name=g", *folders]
    request = load_grid([*small, "select_by=balanced_accuracy"])
    assert {run.settings.select_by for run in request.runs.values() if isinstance(run.settings, ProbeSettings)} == {
        "balanced_accuracy"
    }
    write_grid_of(make_console(), request)
    path = request.store.grid("g")
    assert records.selected_by(path) == "balanced_accuracy"
    by_hand = ["model=tinynet_cifar", "dataset=digits", "phase=probe", "grid_name=g", *folders]
    write_grid_of(make_console(), load_run(by_hand))
    assert records.selected_by(path) == "balanced_accuracy" and len(records.read_grid(path)) > 1
    write_grid_of(make_console(), load_run([*by_hand, "select_by=macro_f1"]))
    assert records.selected_by(path) == "macro_f1"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in content.items() if name != "select_by"}))
    assert records.selected_by(path) == "accuracy"  # of an earlier release
    path.write_text(json.dumps(content | {"select_by": "f1"}))
    with pytest.raises(DataError, match="is damaged"):
        records.selected_by(path)


def test_the_command_line_refuses_another_score_and_a_probe_may_have_its_own(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^select_by='f1' is not one of accuracy, balanced_accuracy, macro_f1"):
        load_grid(["select_by=f1"])
    small = ["grid.models=[tinynet_mnist]", "grid.phases=[probe]", "grid.variants={}"]
    request = load_grid([*small, "select_by=macro_f1", "phase.probe.select_by=accuracy", f"cache.dir={tmp_path}"])
    (settings,) = {run.settings for run in request.runs.values()}
    assert isinstance(settings, ProbeSettings) and settings.select_by == "accuracy" and request.select_by == "macro_f1"
