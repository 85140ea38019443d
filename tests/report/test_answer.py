"""The answer of a grid: the winner, what it is not told apart from, the cheapest row that will do, cost and use."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report_cases as cases
from prediction_cases import finished

from transfergrid.cli.console import FAILED, OK, UNDECIDED
from transfergrid.cli.report import report
from transfergrid.paths import StorePaths
from transfergrid.report.analysis.answer import Cost, DatasetAnswer, GridAnswer, answer_of
from transfergrid.report.analysis.comparison import read_comparison
from transfergrid.report.analysis.statistics import compare, holm, non_inferiority, wilson
from transfergrid.report.wording import in_words, seconds_in_words, verdict
from transfergrid.specs import EvaluateSettings, RunSpec, to_dict
from transfergrid.store import durable, records
from transfergrid.store.attempts import AttemptTime
from transfergrid.training.evaluation import mcnemar_exact

IMAGES = 2_000
Bools = np.ndarray[Any, Any]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StorePaths:
    monkeypatch.chdir(tmp_path)
    return StorePaths(Path("results"))


def but(start: int, stop: int) -> Bools:
    """(IMAGES,) bool: wrong on images start to stop - 1."""
    index_N = np.arange(IMAGES)
    return (index_N < start) | (index_N >= stop)


def attempts(wall_s: float, gpu_s: float = 0.0) -> tuple[AttemptTime, ...]:
    return cases.attempts(wall_s=wall_s, gpu_s=gpu_s)


def answered(store: StorePaths, rows: list[tuple[RunSpec, Bools, float, float]], **more: Any) -> GridAnswer:
    """Of rows (run, which test images it gets right, val accuracy, GPU seconds)."""
    for run, right_N, val, gpu_s in rows:
        finished(store, run, right_N, val=val, attempts=attempts(2 * gpu_s, gpu_s))
        for extraction in run.extractions:
            cases.completed(store, extraction, attempts=attempts(0.0))
    cases.write_grid(store, "g", [(run, "") for run, *_ in rows])
    return answer_of(read_comparison("g", store, **more))


def evaluation_of(trained: RunSpec) -> RunSpec:
    settings = EvaluateSettings(
        source=f"run:{trained.run_id}", split="test", precision="fp32", preprocess=trained.backbones[0].preprocess
    )
    return replace(trained, phase="evaluate", settings=settings, seed=None, needs=(trained.run_id,))


def only(answer: GridAnswer) -> DatasetAnswer:
    (of_dataset,) = answer.datasets
    return of_dataset


def test_the_winner_and_what_it_is_not_told_apart_from_with_interval_p_and_what_would_decide(store: StorePaths) -> None:
    rows = [
        (cases.spec("probe", "resnet18"), but(0, 100), 0.96, 10.0),
        (cases.spec("probe", "googlenet"), but(0, 104), 0.95, 10.0),
        (cases.spec("probe", "resnet34"), but(0, 400), 0.90, 10.0),
    ]
    whole = answered(store, rows)
    answer = only(whole)
    assert (answer.winner.name, answer.winner.test_accuracy) == ("resnet18 (probe)", 0.95)
    assert (answer.winner.ci95_low, answer.winner.ci95_high) == wilson(1900, 2000)
    assert (answer.candidates, answer.n_test, answer.chosen_on) == (3, 2000, "val")
    assert not answer.decided and not whole.decided
    (rival,) = answer.not_told_apart
    alone = compare(but(0, 100)[None], but(0, 104)[None])
    assert rival.row.name == "googlenet (probe)" and rival.difference == pytest.approx(0.002)
    assert (rival.low, rival.high) == pytest.approx((alone.low, alone.high))
    assert rival.p_value == pytest.approx(mcnemar_exact(4, 0)) and rival.family_size == 2  # the larger p of two
    # Connor 1987: 4 of 2,000 images differ, all one way: z sqrt(d) + z' sqrt(d - d^2), over d, squared.
    d = 4 / 2000
    expected = ((1.959964 * d**0.5 + 0.841621 * (d - d**2) ** 0.5) / d) ** 2
    assert rival.images_needed == pytest.approx(expected, abs=5) and rival.seeds_needed is None
    assert answer.runner_up == rival and rival.verdict == "no difference shown"
    text = " ".join(in_words(whole))
    assert "1 of 2 other rows is not told apart from it: googlenet (probe) (+0.20 points [" in text
    assert f"To tell it from googlenet (probe) takes about {rival.images_needed:,} test images." in text


def test_a_winner_that_beats_all_is_decided_and_one_that_val_chose_wrongly_is_not(store: StorePaths) -> None:
    best = (cases.spec("probe", "resnet18"), but(0, 100), 0.96, 10.0)
    decided = only(answered(store, [best, (cases.spec("probe", "resnet34"), but(0, 400), 0.90, 10.0)]))
    assert decided.decided and decided.runner_up is not None and decided.runner_up.difference == pytest.approx(0.15)
    assert decided.runner_up.verdict == "better" and decided.not_told_apart == ()
    answer = answered(store, [best, (cases.spec("probe", "resnet34"), but(0, 20), 0.90, 10.0)])
    (rival,) = only(answer).better_on_test
    assert rival.difference == pytest.approx(-0.04) and only(answer).not_told_apart == () and not answer.decided
    assert any(line.startswith("Val missed resnet34 (probe) (-4.00 points [") for line in in_words(answer))


def test_of_several_datasets_each_sentence_says_its_own_and_the_last_what_the_whole_grid_cost(
    store: StorePaths,
) -> None:
    rows = [
        (cases.spec("probe", model, dataset=dataset), but(0, wrong), 0.96 - wrong / IMAGES, 10.0)
        for dataset in ("mnist", "cifar10")
        for model, wrong in (("resnet18", 100), ("googlenet", 104))
    ]
    *lines, last = in_words(answered(store, rows))
    assert {line.partition(": ")[0] for line in lines} == {"mnist", "cifar10"}
    assert [line for line in lines if "All of" in line] == [
        "mnist: All of mnist cost 20 GPU seconds.",
        "cifar10: All of cifar10 cost 20 GPU seconds.",
    ]
    assert last == "The whole grid cost 40 GPU seconds."


def test_the_cheapest_row_that_is_not_worse_by_more_than_the_margin(store: StorePaths) -> None:
    """Three cheaper rows, 2, 6 and 30 images behind: one-sided p by Holm over three."""
    rows = [
        (cases.spec("finetune", "vgg16"), but(0, 100), 0.96, 500.0),
        (cases.spec("probe", "lenet5"), but(0, 160), 0.90, 1.0),
        (cases.spec("probe", "resnet18"), but(0, 112), 0.95, 20.0),
        (cases.spec("probe", "resnet34"), but(0, 104), 0.95, 40.0),
    ]
    p_values = [non_inferiority(but(0, 100)[None], but(0, n)[None], margin=0.01) for n in (160, 112, 104)]
    adjusted = holm(p_values)
    assert p_values[0] > 0.5 and adjusted[1] is not None and adjusted[1] < 0.05
    cheapest = only(answered(store, rows)).cheapest
    assert cheapest is not None and cheapest.row.model == "resnet18" and cheapest.family_size == 3
    assert cheapest.p_value == pytest.approx(adjusted[1]) and cheapest.row.cost == Cost(wall_s=40.0, gpu_s=20.0)
    line = next(line for line in in_words(answered(store, rows)) if "in place of" in line)
    assert line.startswith(
        "resnet18 (probe) costs 20 GPU seconds in place of 8.3 GPU minutes, and is not worse by more"
    )
    assert line.endswith(f"(p = {adjusted[1]:.3f} after Holm over 3).") or adjusted[1] < 0.001
    stricter = only(answered(store, rows, within_points=0.6)).cheapest
    assert stricter is not None and stricter.row.model == "resnet34"
    assert only(answered(store, rows, within_points=0.2)).cheapest is None


def test_a_row_of_unknown_cost_is_not_the_cheapest_and_a_tiny_p_is_told_as_such(store: StorePaths) -> None:
    cheap = cases.spec("probe", "resnet18")
    rows = [(cases.spec("finetune", "vgg16"), but(0, 100), 0.96, 500.0), (cheap, but(0, 100), 0.95, 20.0)]
    lines = list(in_words(answered(store, rows)))
    assert any("is not worse by more than 1 point" in line and line.endswith("(p < 0.001).") for line in lines)
    store.run(cheap.extractions[0].run_id).record.unlink()
    assert only(answer_of(read_comparison("g", store))).cheapest is None


def test_seconds_of_a_cpu_and_of_a_gpu_are_not_compared(store: StorePaths) -> None:
    """100 minutes on a CPU are no GPU seconds, and no less than two minutes on a GPU."""
    cheap, best = cases.spec("probe", "resnet18"), cases.spec("finetune", "vgg16")
    answered(store, [(best, but(0, 100), 0.96, 120.0), (cheap, but(0, 100), 0.95, 20.0)])
    finished(store, cheap, but(0, 100), val=0.95, attempts=attempts(6_000.0))
    assert only(answer_of(read_comparison("g", store))).cheapest is None


def test_a_cost_of_which_a_part_is_not_known_is_told_as_the_least(store: StorePaths) -> None:
    run = cases.spec("probe", "resnet18")
    winner = only(answered(store, [(run, but(0, 100), 0.95, 20.0)])).winner
    (row,) = read_comparison("g", store).rows
    assert (row.full_wall_s, row.full_gpu_s) == (winner.cost.wall_s, winner.cost.gpu_s) == (40.0, 20.0)
    store.run(run.extractions[0].run_id).record.unlink()
    answer = answer_of(read_comparison("g", store))
    assert only(answer).winner.cost == only(answer).cost == answer.cost == Cost(wall_s=40, gpu_s=20, is_whole=False)
    assert seconds_in_words(answer.cost) == "at least 20 GPU seconds"


def test_a_difference_that_only_holm_hides_needs_no_more_images(store: StorePaths) -> None:
    """8 of 2,000 images, all one way: p is 0.008 alone, and 0.055 among seven."""
    best, *others = (cases.spec("finetune", f"vgg{number}") for number in range(8))
    rows = [(best, but(0, 100), 0.96, 1.0), *((run, but(0, 108), 0.90, 1.0) for run in others)]
    rival = only(answered(store, rows)).not_told_apart[0]
    assert rival.family_size == 7 and rival.images_needed is not None and rival.images_needed <= IMAGES
    name = "vgg1 (finetune)"
    text = f"The difference from {name} would be shown if it were the only comparison."
    assert text in list(in_words(answered(store, rows)))
    rows = [rows[0], (others[0], but(50, 150), 0.90, 1.0)]  # as many right, of other images
    assert any(
        line.startswith(f"To tell it from {name} by 0.5 points takes ") for line in in_words(answered(store, rows))
    )


def test_an_answer_is_found_once_and_anew_for_another_margin(store: StorePaths) -> None:
    rows = [(cases.spec("finetune", "vgg16"), but(0, 100), 0.96, 500.0)]
    answered(store, [*rows, (cases.spec("probe", "resnet18"), but(0, 102), 0.95, 20.0)])
    comparison = read_comparison("g", store)
    assert answer_of(comparison) is answer_of(comparison) and only(answer_of(comparison)).cheapest is not None
    stricter = replace(comparison, within_points=0.1)
    assert answer_of(stricter).within == 0.001 and only(answer_of(stricter)).cheapest is None


def test_a_difference_from_fewer_seeds_than_a_row_has_says_so(store: StorePaths) -> None:
    rows = [(cases.spec("probe", "resnet18", seed=seed), but(seed, 200), 0.90, 1.0) for seed in range(3)]
    answer = answered(store, [*rows, (cases.spec("probe", "vgg16", seed=1), but(0, 100), 0.95, 1.0)])
    rival = only(answer).runner_up
    assert rival is not None and (rival.seeds, rival.of_seeds) == (1, 3)
    assert rival.difference == pytest.approx(0.0495)
    (line,) = verdict(read_comparison("g", store)).splitlines()
    assert "resnet18 (probe): better (+4.95 points [" in line and "p < 0.001, from 1 of 3 seeds)" in line


def test_an_evaluation_of_a_row_is_not_its_rival(store: StorePaths) -> None:
    """Nothing is chosen on val, and both have the same test accuracy: they are one network."""
    trained = cases.spec("finetune", "resnet18", protocol="published")
    run = evaluation_of(trained)
    for one in (trained, run):
        finished(store, one, but(0, 100))
    cases.write_grid(store, "g", [(run, ""), (trained, "")])
    answer = only(answer_of(read_comparison("g", store)))
    assert (answer.winner.phase, answer.candidates, answer.tied, answer.decided) == ("finetune", 1, (), True)


def test_what_failed_on_a_data_set_is_in_its_cost(store: StorePaths) -> None:
    right, failed = (cases.spec("finetune", "resnet18", seed=seed) for seed in (0, 1))
    finished(store, right, but(0, 100), attempts=attempts(10.0, 4.0))
    record = cases.completed(store, failed, attempts=attempts(7.0, 3.0))
    records.write_record(store.run(failed.run_id), replace(record, status="failed", failure_class="code", error="e"))
    cases.write_grid(store, "g", [(right, ""), (failed, "")])
    answer = answer_of(read_comparison("g", store))
    assert only(answer).cost == answer.cost == Cost(wall_s=17.0, gpu_s=7.0)


def test_seconds_are_of_one_seed_with_what_it_is_made_from_and_of_all_runs_once(store: StorePaths) -> None:
    probes = [cases.spec("probe", "resnet18", seed=seed) for seed in (0, 1)]
    for probe in probes:
        finished(store, probe, but(0, 100), val=0.9, attempts=attempts(5.0, 3.0))
    (extraction,) = probes[0].extractions
    cases.completed(store, extraction, attempts=attempts(100.0, 60.0))
    cases.write_grid(store, "g", [(probe, "") for probe in probes])
    answer = answer_of(read_comparison("g", store))
    assert only(answer).winner.cost == Cost(wall_s=105.0, gpu_s=63.0)
    assert only(answer).cost == answer.cost == Cost(wall_s=110.0, gpu_s=66.0)


def test_the_run_to_use_is_the_best_on_val_and_its_commands_can_be_typed(store: StorePaths) -> None:
    runs = [cases.spec("finetune", "resnet18", seed=seed) for seed in (0, 1, 2)]
    for run, val in zip(runs, (0.90, 0.94, 0.94), strict=True):
        finished(store, run, but(0, 100), val=val)
    store.run(runs[1].run_id).weights.write_bytes(b"weights")
    cases.write_grid(store, "g", [(run, "") for run in runs])
    use = only(answer_of(read_comparison("g", store))).use
    assert use.run_id == runs[1].run_id and use.weights == f"results/runs/{runs[1].run_id}/weights.pt"
    assert use.predict == f"python jobs/predict.py run={runs[1].run_id} images=IMAGES"
    assert use.export == f"python jobs/predict.py run={runs[1].run_id} export=FOLDER"
    assert use.again == f"python jobs/run_phase.py again={runs[1].run_id}"
    (store.run(runs[1].run_id).weights).unlink()
    assert only(answer_of(read_comparison("g", store))).use.weights is None


def test_of_an_evaluation_the_evaluated_run_is_used_and_without_weights_it_is_run_again(store: StorePaths) -> None:
    """Nothing is chosen on val, and one row leaves nothing open."""
    trained = cases.spec("finetune", "resnet18")
    run = evaluation_of(trained)
    finished(store, run, but(0, 100))
    record = cases.completed(store, run, test_accuracy=0.95, details={"n_test": IMAGES})
    records.write_record(store.run(run.run_id), replace(record, metrics={"test_accuracy": 0.95}))
    durable.write_json(store.run(trained.run_id).spec, to_dict(trained))
    cases.write_grid(store, "g", [(run, "")])
    answer = answer_of(read_comparison("g", store))
    use = only(answer).use
    assert (only(answer).chosen_on, answer.decided, use.run_id) == ("test", True, trained.run_id)
    assert (use.weights, use.predict, use.export) == (None, None, None)
    assert use.again == f"python jobs/run_phase.py again={trained.run_id}"
    assert any(line.startswith("No weights of it are here.") and use.again in line for line in in_words(answer))
    store.run(trained.run_id).weights.write_bytes(b"weights")
    use = only(answer_of(read_comparison("g", store))).use
    assert use.predict == f"python jobs/predict.py run={trained.run_id} images=IMAGES"
    assert isinstance(run.settings, EvaluateSettings)
    own_head = replace(run, settings=replace(run.settings, source="own_head"), needs=())
    finished(store, own_head, but(0, 100))
    cases.write_grid(store, "h", [(own_head, "")])
    lines = list(in_words(answer_of(read_comparison("h", store))))
    assert lines[-1] == f"Run it again: python jobs/run_phase.py again={own_head.run_id}"


def test_the_run_to_use_is_the_best_by_the_score_that_chooses_and_a_probe_needs_its_weights_file(
    store: StorePaths,
) -> None:
    options = {"weights": "file-1", "identity": "file:1"}
    runs = [cases.spec("probe", "resnet18", seed=seed, backbone_options=options) for seed in (0, 1)]
    for run, val, recall in zip(runs, (0.94, 0.90), (0.80, 0.90), strict=True):
        finished(store, run, but(0, 100), val=val, metrics={"val_macro_recall": recall})
        store.run(run.run_id).weights.write_bytes(b"head")
    cases.write_grid(store, "g", [(run, "") for run in runs])
    assert only(answer_of(read_comparison("g", store))).use.run_id == runs[0].run_id
    use = only(answer_of(read_comparison("g", store, select_by="balanced_accuracy"))).use
    file = "weights_files.resnet18=FILE"
    assert use.predict == f"python jobs/predict.py run={runs[1].run_id} images=IMAGES {file}"


def test_a_data_set_without_a_result_and_an_unfinished_row_leave_the_grid_undecided(store: StorePaths) -> None:
    run = cases.spec("probe", "resnet18")
    finished(store, run, but(0, 100), val=0.9)
    other = cases.spec("probe", "resnet18", dataset="cifar10")
    cases.write_grid(store, "g", [(run, ""), (other, "")])
    answer = answer_of(read_comparison("g", store))
    assert (answer.unanswered, answer.open_rows, answer.decided) == (("cifar10",), 1, False)
    assert only(answer).decided  # of one row


@pytest.mark.parametrize(
    ("cost", "text"),
    [
        (Cost(wall_s=10_000.0, gpu_s=7200.0), "2.0 GPU hours"),
        (Cost(wall_s=130.0, gpu_s=0.0), "2.2 minutes"),
        (Cost(wall_s=10_000.0, gpu_s=4.31), "4.3 GPU seconds"),
        (Cost(wall_s=11.6, gpu_s=0.0), "12 seconds"),
    ],
)
def test_a_cost_is_told_in_one_unit(cost: Cost, text: str) -> None:
    assert seconds_in_words(cost) == text


# ------------------------------------------------------------------------------------------------------ for programs
def test_json_is_the_file_and_the_exit_code_says_whether_it_is_decided(
    store: StorePaths, capsys: pytest.CaptureFixture[str]
) -> None:
    best = (cases.spec("probe", "resnet18"), but(0, 100), 0.96, 10.0)
    answered(store, [best, (cases.spec("probe", "resnet34"), but(0, 101), 0.90, 10.0)])
    asked = ["grid=g", "figures=false", "--json"]
    assert report(asked) == UNDECIDED
    printed = capsys.readouterr()
    content = json.loads(printed.out)
    assert content == json.loads((store.report("g") / "answer.json").read_text()) and "resnet18" in printed.err
    assert (content["format"], content["decided"], content["datasets"][0]["winner"]["model"]) == (1, False, "resnet18")
    answered(store, [best, (cases.spec("probe", "resnet34"), but(0, 900), 0.90, 10.0)])
    assert report(asked) == OK and json.loads(capsys.readouterr().out)["decided"]
    store.run(best[0].run_id).record.unlink()
    assert report(asked) == FAILED and json.loads(capsys.readouterr().out)["open_rows"] == 1


def test_a_report_of_a_store_that_cannot_be_written_goes_where_output_says(store: StorePaths, tmp_path: Path) -> None:
    answered(store, [(cases.spec("probe", "resnet18"), but(0, 100), 0.96, 10.0)])
    before = {path: path.stat().st_mtime_ns for path in store.root.rglob("*")}
    place = tmp_path / "elsewhere"
    assert report(["grid=g", "figures=false", f"output={place}", "report.within=0.5"]) == OK
    assert json.loads((place / "answer.json").read_text())["within"] == 0.005
    assert {path.name for path in place.iterdir()} == {
        *("answer.json", "comparison.csv", "comparison.md", "comparison.tex", "index.html")
    }
    assert {path: path.stat().st_mtime_ns for path in store.root.rglob("*")} == before
