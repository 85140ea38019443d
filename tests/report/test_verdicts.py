from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import report_cases as cases
from report_cases import as_markdown

from transfergrid.paths import StorePaths
from transfergrid.report.analysis.cells import points
from transfergrid.report.analysis.comparison import Comparison, read_comparison
from transfergrid.report.analysis.families import Answer, answers
from transfergrid.report.analysis.paired_rows import compare_rows, verdict
from transfergrid.report.analysis.predictions import StoredPredictions
from transfergrid.report.analysis.rows import ComparisonRow
from transfergrid.report.analysis.statistics import PairedComparison, p_text
from transfergrid.report.analysis.verdicts import Group, against_best
from transfergrid.specs import RunSpec
from transfergrid.store import records
from transfergrid.store.records import Predictions
from transfergrid.training.evaluation import mcnemar_exact

IMAGES = 1_000


@pytest.fixture
def store(tmp_path: Path) -> StorePaths:
    return StorePaths(tmp_path / "results")


def wrong_in(start: int, stop: int) -> list[int]:
    return list(range(start, stop))


def finished(store: StorePaths, run: RunSpec, wrong: list[int], *, val: float = 0.9, seed_of_labels: int = 0) -> None:
    """A completed record and its predictions, wrong on the listed ones of a thousand test images."""
    label_N = np.random.default_rng(seed_of_labels).integers(0, 10, IMAGES)
    predicted_N = label_N.copy()
    predicted_N[wrong] = (predicted_N[wrong] + 1) % 10
    accuracy = 1 - len(wrong) / IMAGES
    cases.completed(store, run, test_accuracy=accuracy, metrics={"val_accuracy": val}, details={"n_test": IMAGES})
    test = Predictions(np.arange(IMAGES), label_N, np.eye(10, dtype=np.float16)[predicted_N])
    records.write_predictions(store.run(run.run_id), {"test": test})


def write_join(store: StorePaths, *, join_wrong: list[int], seeds: int = 1, protocol: str = "fair") -> list[RunSpec]:
    """resnet18 (best on val) is wrong on images 0 to 99 and googlenet on 50 to 189; returns the join's runs."""
    runs: list[tuple[RunSpec, str]] = []
    for seed in range(seeds):
        for model, wrong, val in (
            ("resnet18", wrong_in(0, 100), 0.92),
            ("googlenet", wrong_in(50, 190), 0.91),
            ("resnet18+googlenet", join_wrong, 0.93),
        ):
            run = cases.spec("probe", model, seed=seed, protocol=protocol)
            finished(store, run, wrong, val=val)
            runs.append((run, ""))
    cases.write_grid(store, "mine", runs)
    return [run for run, _ in runs if "+" in run.model]


def join_row(comparison: Comparison) -> ComparisonRow:
    (row,) = [row for row in comparison.rows if "+" in row.model]
    return row


# ------------------------------------------------------------------------------------------------ beside its best part
@pytest.mark.parametrize(
    ("join_wrong", "only_join", "only_single", "times", "said"),
    [
        (wrong_in(0, 60), 40, 0, 2, "better"),
        (wrong_in(60, 200), 60, 100, 2, "worse"),
        (wrong_in(50, 145), 50, 45, 1, "no difference shown"),
    ],
)
def test_one_seed_of_a_join_is_judged_by_mcnemar_against_its_best_part(
    store: StorePaths, join_wrong: list[int], only_join: int, only_single: int, times: int, said: str
) -> None:
    """The join is best on val, so that it stands beside googlenet, too: of the two p the smaller counts twice."""
    write_join(store, join_wrong=join_wrong)
    row = join_row(read_comparison("mine", store))
    assert row.best_single_model == "resnet18"
    assert row.p_value_vs_best_single == pytest.approx(times * mcnemar_exact(only_join, only_single))
    assert row.verdict == said


def test_several_seeds_are_judged_by_the_bootstrap_over_seeds_and_images(store: StorePaths) -> None:
    write_join(store, join_wrong=wrong_in(0, 60), seeds=3)
    row = join_row(read_comparison("mine", store))
    assert row.verdict == "better"
    assert row.p_value_vs_best_single == pytest.approx(2 * 2 / 10_001)  # no draw on the other side, and two comparisons


def test_p_is_adjusted_over_all_models_of_a_dataset_and_phase_whatever_their_variant(store: StorePaths) -> None:
    """One join with p = 0.027 beside its best part: the larger of two stays, as the second of four it is tripled."""
    join_wrong = wrong_in(16, 105)  # 16 images only the join has right, 5 only the single
    (join,) = write_join(store, join_wrong=join_wrong)
    alone = join_row(read_comparison("mine", store))
    assert alone.p_value_vs_best_single == pytest.approx(mcnemar_exact(16, 5))
    assert alone.verdict == "better"
    again = [
        replace(run, val_seed=1) for run in (cases.spec("probe", "resnet18"), cases.spec("probe", "googlenet"), join)
    ]
    for run, wrong in zip(again, (wrong_in(0, 100), wrong_in(0, 100), wrong_in(0, 100)), strict=True):
        finished(store, run, wrong, val=0.95 if run.model == "resnet18" else 0.9)
    grid = [(e, "") for e in (cases.spec("probe", "resnet18"), cases.spec("probe", "googlenet"), join)]
    cases.write_grid(store, "mine", [*grid, *((run, "other") for run in again)])
    rows = {row.variant: row for row in read_comparison("mine", store).rows if "+" in row.model}
    assert rows[""].p_value_vs_best_single == pytest.approx(3 * mcnemar_exact(16, 5))
    assert (rows[""].verdict, rows["other"].verdict) == ("no difference shown", "no difference shown")


def test_two_rows_have_one_p_and_one_verdict_wherever_they_stand_beside_each_other(store: StorePaths) -> None:
    """The join is best on val, so its best part stands beside it both as its part and as one more model."""
    write_join(store, join_wrong=wrong_in(16, 105))
    comparison = read_comparison("mine", store)
    (group,) = against_best(comparison)
    (answer,) = comparison.joins.values()
    turned = group.others[0]
    assert (group.best.model, turned.row.model) == ("resnet18+googlenet", "resnet18")
    assert (answer.family_size, turned.answer.family_size) == (2, 2)
    assert answer.p_adjusted == turned.answer.p_adjusted == join_row(comparison).p_value_vs_best_single
    assert isinstance(answer.result, PairedComparison) and isinstance(turned.answer.result, PairedComparison)
    assert answer.result.difference == -turned.answer.result.difference
    assert (answer.result.low, answer.result.high) == (-turned.answer.result.high, -turned.answer.result.low)
    text = as_markdown(comparison)
    # Beside its best part, beside the best on val, and as the winner beside the runner-up.
    assert answer.p_text == "0.027 (of 2)" and text.count(f" | {answer.p_text} |\n") == 3
    assert "p = 0.027 after Holm over 2)" in text


def test_under_published_there_is_no_verdict(store: StorePaths) -> None:
    write_join(store, join_wrong=wrong_in(0, 60), protocol="published")
    comparison = read_comparison("mine", store)
    assert (join_row(comparison).verdict, comparison.notes, against_best(comparison)) == (None, (), ())


@pytest.mark.parametrize("damage", ["missing", "damaged", "without a test set"])
def test_predictions_that_cannot_be_used_empty_the_verdict_and_leave_a_note(store: StorePaths, damage: str) -> None:
    (join,) = write_join(store, join_wrong=wrong_in(0, 60))
    path = store.run(join.run_id).predictions
    if damage == "missing":
        path.unlink()
    elif damage == "damaged":
        path.write_bytes(path.read_bytes()[:100])
    else:
        records.write_predictions(store.run(join.run_id), {})
    comparison = read_comparison("mine", store)
    row = join_row(comparison)
    assert (row.best_single_model, row.p_value_vs_best_single, row.verdict) == ("resnet18", None, None)
    (note,) = comparison.notes
    assert note == (
        "mnist resnet18+googlenet probe beside resnet18: no verdict, because the test predictions of "
        f"{join.run_id} are missing or damaged; delete its record.json, and launch again."
    )
    assert f"- {note}\n" in as_markdown(comparison)


def test_a_record_that_does_not_agree_with_its_predictions_has_no_verdict(store: StorePaths) -> None:
    (join,) = write_join(store, join_wrong=wrong_in(0, 60))
    cases.completed(store, join, test_accuracy=0.99)
    comparison = read_comparison("mine", store)
    assert join_row(comparison).verdict is None
    assert "it states a test accuracy of 99.00 %, 940 of 1,000 stored predictions are right" in comparison.notes[0]


def test_a_join_with_fewer_seeds_is_judged_on_those_in_common_and_the_note_counts_them(store: StorePaths) -> None:
    joins = write_join(store, join_wrong=wrong_in(0, 60), seeds=3)
    cases.failed(store, joins[1], failure_class="timeout", error="time limit")
    comparison = read_comparison("mine", store)
    assert join_row(comparison).verdict == "better"
    assert comparison.notes == (
        "mnist resnet18+googlenet probe beside resnet18: difference and verdict are from the 2 of 3 seeds that both "
        "have.",
    )


# ------------------------------------------------------------------------------------------------------------ two rows
def two_rows(store: StorePaths, first: list[RunSpec], second: list[RunSpec]) -> PairedComparison | str:
    found = [[records.read_record(store.run(run.run_id)) for run in runs] for runs in (first, second)]
    a, b = ([record for record in row if record is not None] for row in found)
    return compare_rows(a, b, StoredPredictions(store))


def test_any_two_rows_are_paired_by_the_seeds_they_share(store: StorePaths) -> None:
    first = [cases.spec("scratch", "resnet18_5m", seed=seed) for seed in (0, 1, 2)]
    second = [cases.spec("scratch", "baseline_cnn", seed=seed) for seed in (1, 2, 3)]
    for run in first:
        finished(store, run, wrong_in(0, 50))
    for run in second:
        finished(store, run, wrong_in(0, 60 + 10 * (run.seed or 0)))
    found = two_rows(store, first, second)
    assert isinstance(found, PairedComparison)
    assert (found.seeds, found.images) == (2, IMAGES)
    assert found.difference == pytest.approx(0.025)


def test_no_difference_is_zero_from_either_side_and_never_minus_zero(store: StorePaths) -> None:
    a, b = (cases.spec("scratch", name) for name in ("resnet18_5m", "baseline_cnn"))
    finished(store, a, wrong_in(0, 50))
    finished(store, b, wrong_in(50, 100))
    results = [two_rows(store, *pair) for pair in (([a], [b]), ([b], [a]))]
    assert [points(r.difference) for r in results if isinstance(r, PairedComparison)] == ["+0.00", "+0.00"]


def test_a_solved_probe_has_wilsons_interval_and_stands_beside_every_seed_of_another_row(store: StorePaths) -> None:
    probe = cases.spec("probe", "resnet18", seed=None, solver="lbfgs")
    tuned = [cases.spec("finetune", "resnet18", seed=seed) for seed in (0, 1, 2)]
    finished(store, probe, wrong_in(0, 100))
    for run in tuned:
        finished(store, run, wrong_in(0, 60 + 10 * (run.seed or 0)))
    cases.write_grid(store, "mine", [(probe, ""), *((run, "") for run in tuned)])
    row = read_comparison("mine", store).rows[0]
    assert (row.phase, row.n_seeds, row.test_accuracy) == ("probe", 1, 0.9)
    assert row.ci95_low == pytest.approx(0.8799, abs=1e-4) and row.ci95_high == pytest.approx(0.9171, abs=1e-4)
    found = two_rows(store, tuned, [probe])
    assert isinstance(found, PairedComparison)
    assert (found.seeds, found.images, found.test) == (3, IMAGES, "paired_bootstrap")
    assert found.difference == pytest.approx(0.03)  # 40, 30 and 20 images of a thousand
    alone = two_rows(store, [probe], [probe])
    assert isinstance(alone, PairedComparison) and (alone.seeds, alone.test) == (1, "mcnemar_exact")


def test_rows_that_cannot_be_paired_say_why(store: StorePaths) -> None:
    run, later = (cases.spec("scratch", "baseline_cnn", seed=seed) for seed in (0, 7))
    elsewhere = cases.spec("scratch", "baseline_cnn", dataset="cifar10")
    other_images = cases.spec("scratch", "resnet18_5m")
    for one in (run, later, elsewhere):
        finished(store, one, wrong_in(0, 50))
    finished(store, other_images, wrong_in(0, 50), seed_of_labels=1)
    assert "no seed with stored predictions of all" in str(two_rows(store, [run], [later]))
    assert str(two_rows(store, [run], [elsewhere])).endswith("are of different data sets")
    assert "was not tested on the same images" in str(two_rows(store, [run], [other_images]))
    assert two_rows(store, [], [run]) == "the first of the two rows has no completed run"


def test_runs_without_a_seed_are_paired_where_each_row_has_one(store: StorePaths) -> None:
    first, second = (cases.spec("scratch", model, seed=None) for model in ("baseline_cnn", "resnet18_5m"))
    finished(store, first, wrong_in(0, 50))
    finished(store, second, wrong_in(0, 60))
    found = two_rows(store, [first], [second])
    assert isinstance(found, PairedComparison) and found.difference == pytest.approx(0.01)
    assert "no seed of its own" in str(two_rows(store, [first, second], [second]))


def test_a_verdict_needs_a_p_below_five_percent_and_follows_the_sign() -> None:
    assert [verdict(d, p) for d, p in [(0.1, 0.0499), (-0.1, 0.0499), (0.1, 0.0501)]] == [
        "better",
        "worse",
        "no difference shown",
    ]


def test_what_was_not_compared_does_not_count_in_its_family_and_a_pair_counts_once(store: StorePaths) -> None:
    write_join(store, join_wrong=wrong_in(16, 105))
    runs = list(read_comparison("mine", store).runs)
    gone = cases.spec("probe", "resnet34")
    finished(store, gone, wrong_in(0, 1))
    store.run(gone.run_id).predictions.unlink()
    record = records.read_record(store.run(gone.run_id))
    assert record is not None
    found = answers([(2, 0), (2, 1), (0, 2), (3, 0)], [*runs, (record,)], StoredPredictions(store))
    p_part, p_other = mcnemar_exact(16, 5), mcnemar_exact(85, 34)
    assert [a.p_adjusted for a in found.values()] == [
        pytest.approx(p_part),
        pytest.approx(2 * p_other),
        pytest.approx(p_part),
        None,
    ]
    assert {a.family_size for a in found.values()} == {2}
    assert found[3, 0].verdict is None and "missing or damaged" in str(found[3, 0].result)


# ---------------------------------------------------------------------------------------------------- against the best
def test_every_model_stands_beside_the_one_that_is_best_on_val_not_on_test(store: StorePaths) -> None:
    write_join(store, join_wrong=wrong_in(45, 145))  # best on val, with resnet18's accuracy on test
    (group,) = against_best(read_comparison("mine", store))
    assert (group.question, group.dataset, group.phase, group.name) == ("models", "mnist", "probe", "")
    assert group.best.model == "resnet18+googlenet"
    single, worse = group.others
    assert isinstance(single.answer.result, PairedComparison)
    assert (single.row.model, single.answer.verdict) == ("resnet18", "no difference shown")
    assert single.answer.result.difference == 0 and single.answer.p_adjusted == 1.0
    assert single.needed.startswith("about ") and single.needed.endswith(
        "test images would be needed to tell 0.5 points"
    )
    assert (worse.row.model, worse.answer.verdict, worse.needed) == ("googlenet", "worse", "")
    assert worse.answer.p_adjusted == pytest.approx(2 * mcnemar_exact(5, 45))


def settings(store: StorePaths, wrong: dict[str, tuple[int, float]]) -> tuple[Group, ...]:
    runs = []
    for i, (variant, (count, val)) in enumerate(wrong.items()):
        run = cases.spec("scratch", "baseline_cnn", batch_size=64 * (i + 1))
        finished(store, run, wrong_in(0, count), val=val)
        runs.append((run, variant))
    cases.write_grid(store, "mine", runs)
    return against_best(read_comparison("mine", store))


def test_seeds_that_only_one_row_has_are_counted_beside_those_in_common(store: StorePaths) -> None:
    write_join(store, join_wrong=wrong_in(0, 60), seeds=3)
    cases.failed(store, cases.spec("probe", "resnet18", seed=1), failure_class="timeout", error="time limit")
    comparison = read_comparison("mine", store)
    assert [other.seeds for other in against_best(comparison)[0].others] == ["2 of 3", "3"]
    assert "| worse |  | 2 of 3 | -4.00 [" in as_markdown(comparison)


def test_the_settings_of_one_model_stand_beside_the_best_setting(store: StorePaths) -> None:
    (group,) = settings(store, {"": (100, 0.8), "batch_128": (60, 0.9), "batch_192": (66, 0.85)})
    assert (group.question, group.name, group.best.variant) == ("settings", "baseline_cnn", "batch_128")
    assert [(other.row.variant, other.answer.verdict) for other in group.others] == [
        ("", "worse"),
        ("batch_192", "worse"),
    ]


def test_the_rows_of_a_group_are_named_in_plain_words_and_by_weights_only_where_nothing_else_differs(
    store: StorePaths,
) -> None:
    own = cases.spec("probe", "resnet18", backbone_options={"weights": "builtin", "identity": "a"})
    untrained = cases.spec("probe", "resnet18", backbone_options={"weights": "random", "identity": "b"})
    other = cases.spec("probe", "googlenet", backbone_options={"weights": "builtin", "identity": "a"})
    large = cases.spec("probe", "resnet18", backbone_options={"weights": "random", "identity": "b"}, batch_size=512)
    for i, run in enumerate((own, untrained, other, large)):
        finished(store, run, wrong_in(0, 50 + i), val=0.9 - i / 100)
    cases.write_grid(store, "mine", [(own, ""), (untrained, ""), (other, ""), (large, "large batch")])
    text = as_markdown(read_comparison("mine", store))
    best = "resnet18, weights shipped with transfergrid"
    assert f"| mnist | probe |  | {best} | resnet18, weights random |" in text
    assert f"| mnist | probe |  | {best} | googlenet |" in text
    own_settings = "the grid's own settings, weights"
    assert f"| mnist | probe | resnet18 | {own_settings} shipped with transfergrid | {own_settings} random |" in text
    assert f"| mnist | probe | resnet18 | {own_settings} shipped with transfergrid | large batch |" in text


def test_a_difference_that_only_the_family_hides_is_told_as_such(store: StorePaths) -> None:
    """Six images of a thousand: p = 0.03125 alone, 0.0625 among two."""
    (group,) = settings(store, {"": (66, 0.8), "batch_128": (60, 0.9), "batch_192": (66, 0.85)})
    assert [other.answer.p_adjusted for other in group.others] == [0.0625, 0.0625]
    assert {other.needed for other in group.others} == {"shown if it were the only comparison, not among so many"}


def test_a_row_without_predictions_is_in_its_group_with_the_reason(store: StorePaths) -> None:
    write_join(store, join_wrong=wrong_in(0, 60))
    run = cases.spec("probe", "googlenet")
    store.run(run.run_id).predictions.unlink()
    comparison = read_comparison("mine", store)
    (group,) = against_best(comparison)
    broken = group.others[1]
    assert (broken.answer.p_adjusted, broken.answer.verdict) == (None, None)
    assert f"the test predictions of {run.run_id} are missing or damaged" in str(broken.answer.result)
    assert f"| not compared: {broken.answer.result} |" in as_markdown(comparison)


def test_the_markdown_says_which_test_it_was_and_every_line_is_as_long_as_its_header(store: StorePaths) -> None:
    write_join(store, join_wrong=wrong_in(0, 60))
    text = as_markdown(read_comparison("mine", store))
    section = text.partition("## Is the difference real?\n")[2].partition("\n## ")[0]
    assert "exact McNemar test" in section and "bootstrap" not in section
    assert "| mnist | probe |  | resnet18+googlenet | resnet18 | worse |  | 1 | -4.00 [" in section
    winner, models = section.partition("Models of the same variant:")[::2]
    lines = [[line for line in part.splitlines() if line.startswith("|")] for part in (winner, models)]
    assert [len(part) for part in lines] == [3, 4]
    assert [{line.count(" |") for line in part} for part in lines] == [{8}, {10}]


def test_several_seeds_are_described_by_their_own_test(store: StorePaths) -> None:
    write_join(store, join_wrong=wrong_in(0, 60), seeds=2)
    text = as_markdown(read_comparison("mine", store))
    section = text.partition("## Is the difference real?\n")[2].partition("\n## ")[0]
    assert "paired bootstrap over seeds and test images" in section and "McNemar" not in section


def test_a_grid_without_two_rows_to_compare_has_no_such_section(store: StorePaths) -> None:
    run = cases.spec("probe", "resnet18")
    finished(store, run, wrong_in(0, 50))
    cases.write_grid(store, "mine", [(run, "")])
    assert "Is the difference real?" not in as_markdown(read_comparison("mine", store))


def test_small_p_values_are_not_printed_more_exactly_than_they_are_known() -> None:
    texts = [Answer(result="", p_adjusted=p, family_size=3).p_text for p in (None, 0.0002, 0.0312, 1.0)]
    assert texts == ["", "< 0.001 (of 3)", "0.031 (of 3)", "1.000 (of 3)"]


def test_a_p_just_below_five_percent_is_not_rounded_to_five() -> None:
    assert [p_text(p, ".3f") for p in (0.0494, 0.0496, 0.04996, 0.0504)] == ["0.049", "0.0496", "0.04996", "0.050"]
    assert [p_text(p, ".2g") for p in (0.0123, 0.0496, 0.0504)] == ["0.012", "0.0496", "0.05"]


def test_the_difference_shown_is_of_the_seeds_that_the_verdict_is_from(store: StorePaths) -> None:
    """The join's one seed beats its rival of that seed, and is below the rival's mean over three seeds."""
    runs = {seed: cases.spec("probe", "resnet18", seed=seed) for seed in (0, 1, 2)}
    other, join = cases.spec("probe", "googlenet"), cases.spec("probe", "resnet18+googlenet")
    for seed, run in runs.items():
        finished(store, run, list(range(400 if seed == 0 else 10)), val=0.99)
    finished(store, other, list(range(500)), val=0.5)
    finished(store, join, list(range(300)))
    cases.write_grid(store, "mine", [(run, "") for run in (*runs.values(), other, join)])
    row = join_row(read_comparison("mine", store))
    assert (row.best_single_model, row.verdict) == ("resnet18", "better")
    assert row.delta_to_best_single == pytest.approx(0.1)
