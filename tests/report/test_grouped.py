"""Rows whose test images come in groups: what every output shows, and what it leaves to be judged."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prediction_cases import predictions_of
from report_cases import as_markdown, attempts, completed, spec, write_grid

from transfergrid.paths import StorePaths
from transfergrid.report import model_card, several
from transfergrid.report.analysis import statistics
from transfergrid.report.analysis.answer import answer_of
from transfergrid.report.analysis.cells import accuracy_with_interval
from transfergrid.report.analysis.comparison import Comparison, read_comparison
from transfergrid.report.analysis.joins import join_baselines
from transfergrid.report.analysis.paired_rows import compare_rows
from transfergrid.report.analysis.power import images_needed, needed
from transfergrid.report.analysis.predictions import StoredPredictions
from transfergrid.report.analysis.rows import COLUMNS
from transfergrid.report.analysis.statistics import PairedComparison, wilson
from transfergrid.report.analysis.verdicts import against_best
from transfergrid.report.documents import as_csv
from transfergrid.report.latex import as_latex
from transfergrid.report.wording import in_words
from transfergrid.store import records
from transfergrid.training import by_group

Array = np.ndarray[Any, Any]
IMAGES = 10  # of each group


def all_but(wrong: int, groups: int) -> Array:
    """Every image of the first groups is wrong."""
    return np.repeat(np.arange(groups), IMAGES) >= wrong


def grid_of(
    folder: Path, groups: int | None, correct: dict[str, Array], *, seeds: int = 1, seconds: Sequence[float] = ()
) -> Comparison:
    """seconds: on a GPU, of the runs of each model."""
    store = StorePaths(folder / "results")
    runs = []
    for place, (model, right_N) in enumerate(correct.items()):
        more = {"attempts": attempts(wall_s=seconds[place], gpu_s=seconds[place])} if seconds else {}
        for seed in range(seeds):
            run = spec("finetune", model, seed=seed)
            group_N = None if groups is None else np.repeat(np.arange(groups), len(right_N) // groups)
            details: dict[str, Any] = {"n_test": len(right_N)} | ({} if groups is None else {"test_groups": groups})
            metrics = {"val_accuracy": 0.9 + 0.01 * float(right_N.mean())}
            completed(store, run, test_accuracy=float(right_N.mean()), details=details, metrics=metrics, **more)
            test = predictions_of(right_N)
            stored = records.Predictions(test.index_N, test.label_N, test.logits_NC, group_N=group_N)
            records.write_predictions(store.run(run.run_id), {"test": stored})
            runs.append((run, ""))
    write_grid(store, "g", runs)
    return read_comparison("g", store)


def test_groups_travel_with_the_predictions(tmp_path: Path) -> None:
    comparison = grid_of(tmp_path, 12, {"resnet18": all_but(1, 12)})
    (run,) = comparison.runs[0]
    read = records.read_predictions(comparison.store.run(run.run_id))["test"]
    assert read.group_N is not None and read.group_N.tolist() == np.repeat(np.arange(12), IMAGES).tolist()


def test_the_interval_of_a_row_is_by_group_and_wilsons_stands_beside(tmp_path: Path) -> None:
    comparison = grid_of(tmp_path, 20, {"resnet18": all_but(2, 20), "vgg16": all_but(3, 20)})
    row = comparison.rows[0]
    assert row.test_groups == 20
    assert (row.ci95_low, row.ci95_high) == pytest.approx(wilson(18, 20), abs=1e-9)  # whole groups count as one image
    assert (row.wilson95_low, row.wilson95_high) == pytest.approx(wilson(180, 200), abs=1e-12)
    (line, _) = csv.DictReader(io.StringIO(as_csv(comparison.rows)))
    assert list(line)[-3:] == ["test_groups", "wilson95_low", "wilson95_high"] and line["test_groups"] == "20"
    page = as_markdown(comparison)
    assert "| groups | Wilson [95 %] |" in page and "| 20 | [85.06, 93.43] |" in page
    assert "every interval and p is by group" in page
    assert "Wilson [95 \\%]" in as_latex("g", comparison.rows) or "Wilson" in as_latex("g", comparison.rows)


def test_without_groups_no_output_names_any(tmp_path: Path) -> None:
    comparison = grid_of(tmp_path, None, {"resnet18": all_but(2, 20), "vgg16": all_but(3, 20)})
    assert as_csv(comparison.rows).splitlines()[0] == ",".join(COLUMNS) and "test_groups" not in COLUMNS
    assert (comparison.rows[0].ci95_low, comparison.rows[0].ci95_high) == pytest.approx(wilson(180, 200))
    texts = (as_markdown(comparison), as_latex("g", comparison.rows))
    assert not any(re.search(r"\bgroups?\b", text) for text in texts)  # a path may hold the letters


def test_differences_p_and_what_it_would_take_are_by_group(tmp_path: Path) -> None:
    comparison = grid_of(tmp_path, 40, {"resnet18": all_but(2, 40), "vgg16": all_but(6, 40)})
    (group,) = against_best(comparison)
    (other,) = group.others
    result = other.answer.result
    assert isinstance(result, PairedComparison) and result.test == "by_group" and result.images == 40
    expected = by_group.compare(all_but(6, 40)[None], all_but(2, 40)[None], np.repeat(np.arange(40), IMAGES))
    assert (result.difference, result.low, result.high, result.p_value) == pytest.approx(
        (expected.value, expected.low, expected.high, expected.p_value)
    )
    assert other.answer.verdict == "no difference shown"  # McNemar's test of 40 images would have p < 1e-11
    assert other.needed.startswith("about ") and other.needed.endswith("groups of test images would be needed to tell")
    z = 1.959964 + 0.841621
    assert images_needed(result) == int(np.ceil((z / 0.1) ** 2 * result.variances.image))
    assert 40 < (images_needed(result) or 0) < 150


def test_several_seeds_by_group(tmp_path: Path) -> None:
    comparison = grid_of(tmp_path, 30, {"resnet18": all_but(2, 30), "vgg16": all_but(20, 30)}, seeds=3)
    (group,) = against_best(comparison)
    result = group.others[0].answer.result
    assert isinstance(result, PairedComparison) and result.seeds == 3 and result.p_value < 0.001
    assert comparison.rows[0].ci95_low == pytest.approx(wilson(28, 30)[0], abs=1e-9)
    assert "groups" in needed(
        PairedComparison(**{f: getattr(result, f) for f in result.__slots__} | {"difference": 0.02})
    )


def test_below_ten_groups_nothing_is_judged(tmp_path: Path) -> None:
    comparison = grid_of(tmp_path, 9, {"resnet18": all_but(1, 9), "vgg16": all_but(8, 9)})
    row = comparison.rows[0]
    assert (row.ci95_low, row.ci95_high) == (None, None) and row.wilson95_low is not None
    assert accuracy_with_interval(row) == "88.89 [not judged]"
    (group,) = against_best(comparison)
    answer = group.others[0].answer
    assert answer.verdict == "not judged" and answer.p_text == "not judged" and answer.p_adjusted is None
    assert answer.in_words == "not judged: the test images come from 9 groups, fewer than 10"
    page = as_markdown(comparison)
    assert "| not judged | the test images come from 9 groups, fewer than 10 | " in page
    assert "88.89 [not judged]" in page


def test_joins_and_their_baselines_are_by_group(tmp_path: Path) -> None:
    for groups, judged in ((12, True), (8, False)):
        parts = {"resnet18": all_but(2, groups), "vgg16": all_but(3, groups)}
        comparison = grid_of(tmp_path / str(groups), groups, parts | {"resnet18+vgg16": all_but(1, groups)})
        (join,) = join_baselines(comparison).baselines
        assert (join.joined.low is not None) is judged
        assert isinstance(join.joined_minus_averaged, PairedComparison) is judged
        assert comparison.rows[2].verdict == ("no difference shown" if judged else "not judged")
        assert ("[not judged]" in as_markdown(comparison)) is not judged


def test_a_row_without_readable_predictions_has_no_interval_by_group(tmp_path: Path) -> None:
    comparison = grid_of(tmp_path, 20, {"resnet18": all_but(2, 20)})
    run = comparison.runs[0][0]
    comparison.store.run(run.run_id).predictions.unlink()
    (row,) = read_comparison("g", comparison.store).rows
    assert row.test_groups == 20 and row.ci95_low is None and row.wilson95_low is None


def test_a_head_is_marked_as_better_by_group_alone(tmp_path: Path) -> None:
    """By McNemar's test of its images it would be."""
    counts = {"only_right": 10, "only_head_right": 0}
    for place, p_by_group, marked in (("images", {}, ("knn",)), ("groups", {"p_by_group": 0.3}, ())):
        store = StorePaths(tmp_path / place)
        run = spec("probe", "resnet18")
        completed(store, run, details={"n_test": 100, "references": {"knn": counts | p_by_group}})
        write_grid(store, "g", [(run, "")])
        (row,) = read_comparison("g", store).rows
        assert row.better_than_head == marked


def test_several_grids_and_the_model_card_show_the_interval_by_group(tmp_path: Path) -> None:
    comparison = grid_of(tmp_path, 20, {"resnet18": all_but(2, 20)})
    write_grid(comparison.store, "h", [(comparison.runs[0][0].spec, "")])
    first = several.sections([comparison, read_comparison("h", comparison.store)])[0]
    assert [column.name for column in first.tables[0].columns][-2:] == ["test_groups", "wilson95_low"]
    (run,) = comparison.runs[0]
    test = records.read_predictions(comparison.store.run(run.run_id))["test"]
    low, high = wilson(18, 20)
    assert f"90.00 % [{100 * low:.2f}, {100 * high:.2f}]" in model_card._results(run, test)
    assert "[not judged]" in model_card._results(run, None)


# ----------------------------------------------------------------------------------------------------------- the answer
def test_the_answer_asks_for_groups_in_place_of_images(tmp_path: Path) -> None:
    whole = answer_of(grid_of(tmp_path, 40, {"resnet18": all_but(2, 40), "vgg16": all_but(6, 40)}))
    (rival,) = whole.datasets[0].not_told_apart
    expected = by_group.compare(all_but(2, 40)[None], all_but(6, 40)[None], np.repeat(np.arange(40), IMAGES))
    assert (rival.difference, rival.p_value) == pytest.approx((0.1, expected.p_value))
    assert rival.images_needed is None and rival.groups_needed is not None and 40 < rival.groups_needed < 150
    assert f"takes about {rival.groups_needed} groups of test images." in " ".join(in_words(whole))
    (written,) = whole.as_json()["datasets"][0]["not_told_apart"]
    assert written["groups_needed"] == rival.groups_needed and written["images_needed"] is None


def test_without_groups_the_answer_names_none(tmp_path: Path) -> None:
    whole = answer_of(grid_of(tmp_path, None, {"resnet18": all_but(2, 40), "vgg16": all_but(2, 40)}))
    (written,) = whole.as_json()["datasets"][0]["not_told_apart"]
    assert written["images_needed"] > 0 and "groups_needed" not in written


def test_the_answer_keeps_a_difference_that_too_few_groups_cannot_judge(tmp_path: Path) -> None:
    comparison = grid_of(tmp_path, 9, {"resnet18": all_but(1, 9), "vgg16": all_but(8, 9)})
    whole = answer_of(comparison)
    (rival,) = whole.datasets[0].not_told_apart
    assert rival.difference == pytest.approx(7 / 9) and rival.reason.startswith("not judged: the test images come from")
    assert (rival.low, rival.high, rival.p_value, rival.groups_needed) == (None, None, None, None)
    assert not whole.decided and whole.datasets[0].cheapest is None
    text = "vgg16 (finetune) (+77.78 points, not judged: the test images come from 9 groups, fewer than 10)"
    assert text in " ".join(in_words(whole))


def test_the_cheapest_row_is_by_group(tmp_path: Path) -> None:
    """The other fails in one of 60 groups more. By image, one point or five, it would be judged otherwise."""
    group_N = np.repeat(np.arange(60), IMAGES)
    best_N, other_N = all_but(1, 60), all_but(1, 60) & (group_N != 30)
    for within, named in ((0.05, False), (0.2, True)):
        comparison = grid_of(tmp_path / str(named), 60, {"vgg16": best_N, "resnet18": other_N}, seconds=(100.0, 1.0))
        cheapest = answer_of(replace(comparison, within_points=100 * within)).datasets[0].cheapest
        p_value = by_group.non_inferiority(best_N[None], other_N[None], group_N, margin=within)
        assert p_value is not None and (p_value < 0.05) is named
        assert (cheapest is not None) is named
        if cheapest is not None:
            assert cheapest.row.model == "resnet18" and cheapest.p_value == pytest.approx(p_value)
    by_image = statistics.non_inferiority(best_N[None], other_N[None], margin=0.05)
    assert by_image < 0.05


def test_where_one_of_two_rows_names_the_groups_they_are_compared_by_group_whoever_asks(tmp_path: Path) -> None:
    """Else the images would count as independent, in one of the two directions."""
    comparison = grid_of(tmp_path, 40, {"resnet18": all_but(2, 40), "vgg16": all_but(6, 40)})
    (run,), stored = comparison.runs[1], comparison.stored
    test = records.read_predictions(comparison.store.run(run.run_id))["test"]
    records.write_predictions(comparison.store.run(run.run_id), {"test": replace(test, group_N=None)})
    for a, b in ((0, 1), (1, 0)):
        result = compare_rows(comparison.runs[a], comparison.runs[b], StoredPredictions(stored.store))
        assert isinstance(result, PairedComparison) and (result.test, result.images) == ("by_group", 40)
    assert test.group_N is not None
    other = replace(test, group_N=test.group_N[::-1].copy())
    records.write_predictions(comparison.store.run(run.run_id), {"test": other})
    reason = compare_rows(comparison.runs[0], comparison.runs[1], StoredPredictions(stored.store))
    assert isinstance(reason, str) and reason.endswith("have their test images in different groups")
