"""The sections of a grid's report in their order, and comparison.csv."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from operator import attrgetter, itemgetter

from transfergrid.report import wording
from transfergrid.report.analysis import (
    choices,
    claims,
    costs,
    grouped,
    handover,
    integrity,
    joins,
    lengths,
    per_class,
    published_metrics,
    top_errors,
    verdicts,
    worth,
)
from transfergrid.report.analysis.answer import answer_of
from transfergrid.report.analysis.cells import number, percent
from transfergrid.report.analysis.columns import HEADS, adjusted_p, of_rows, pick, use, wilson
from transfergrid.report.analysis.comparison import Comparison, failure_lines
from transfergrid.report.analysis.families import Answer
from transfergrid.report.analysis.rows import NAMES, ComparisonRow, names_of
from transfergrid.report.analysis.selection import RULE, WORDS, val_score
from transfergrid.report.analysis.use import UseCost
from transfergrid.report.blocks import Column, Section, Table, figure, words
from transfergrid.report.studies.published import lookup

HOW_TO_READ = (
    "Accuracies are percent of the test images. Val, train and test are evaluated without augmentation.",
    "The brackets are a 95 % interval. For one seed it is Wilson's, over test images. For several seeds it is "
    "Student's t over seeds, and the number before it is their mean; if all seeds agree, it is Wilson's. Neither "
    "covers the other source of chance.",
    f"Rows are chosen on val. Rows that are tied for the best are all named. If one must be taken: {RULE}.",
    "Protocol `fair` holds out 10 % of the training images as val and makes every choice there. The last epoch is "
    "the result, and the test set is read once. Protocol `published` uses the whole training set and the study's "
    "own checkpoint rule. It chooses nothing on val, so val and the best single model are empty.",
    "p_value_vs_best_single in comparison.csv compares a join with its best part on the same seeds and test "
    "images. One seed: the exact McNemar test. Several seeds: a paired bootstrap over seeds and test images. It "
    "is Holm-adjusted over all comparisons between models of the same dataset and phase, so two models have one p "
    "wherever they meet. The verdict follows it, at 5 %. A published claim is a question of its own, adjusted "
    "over its own comparisons.",
    "L-BFGS is the same head solved to its optimum, with its penalty chosen on val. A solved probe is that head. "
    "Nothing in it is random, so it has one run for all seeds. kNN, LDA and QDA are other heads on the same "
    "features. They never win and are not passed on. A mark ▲ says that one of them has more test images right "
    "than the probe's head in every run (exact McNemar, 5 %, Holm over the three). A linear head understates such "
    "features. better_than_head in comparison.csv names the heads.",
    "Seconds are means per completed seed. Full seconds are what a row costs, with all that it is made from: its "
    "extractions, and the probe that a fine-tuning starts from. The answer and the figures count these. Own seconds "
    "cover all attempts of the row's own runs, including failed and repeated ones. GPU seconds are what SLURM bills, "
    "and 0 without a GPU. Wall seconds of several runs are added up. Phase seconds are the work itself, without "
    "starting python and without lost work.",
)


USE = (
    "Measured is the whole network, every backbone of a join included: from prepared images to logits, both in the "
    "device's memory, in eval mode and in the arithmetic of the row's accuracy. Neither training nor the reading of "
    "images is in it. The first passes warm up and do not count. Then one image is passed at least 20 times and for "
    "2 s. Batches of 4, 16, 64 and 256 follow, each at least 5 times and for 1 s, until one would take longer than 2 "
    "s. Memory on a CPU is what the resident memory of a process grows by, from before the network was made to its "
    "peak. On a GPU it is the most that torch had allocated. Load is how many processes wanted a core when it began. "
    "Where it is above the number of threads, others took time away. Compare only rows that were measured on the "
    "same device."
)
_QUARTILES = {name: attrgetter(name) for name in ("latency_q1_ms", "latency_q3_ms")}


def as_csv(rows: Sequence[ComparisonRow]) -> str:
    """RFC 4180 with `\\n` line ends, numbers at full precision, empty cells for None."""
    text = io.StringIO()
    names = names_of(rows)
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(row.cells(names) for row in rows)
    return text.getvalue()


def sections(comparison: Comparison) -> list[Section]:
    """All that the report of one grid says, from top to bottom; the first is the comparison itself."""
    answer = answer_of(comparison)
    contests = worth.contests(comparison)
    answers = [contest.second.answer for contest in contests]
    sections_or_none = [
        _comparison(comparison),
        Section("answer", "The answer", items=list(wording.in_words(answer))) if answer.datasets else None,
        Section("how to read", "How to read this", items=_how_to_read(comparison.rows)),
        claims.section(claims.decisions_of(comparison)),
        _published(comparison.rows),
        published_metrics.section(comparison),
        top_errors.section(comparison),
        per_class.section(comparison),
        choices.section(comparison),
        lengths.section(comparison),
        verdicts.section(verdicts.against_best(comparison), answers, tables=worth.tables(contests)),
        _joins(comparison),
        joins.section(joins.join_baselines(comparison)),
        handover.section(comparison),
        _costs(comparison),
        _use(comparison.rows),
        _failures(comparison),
        integrity.section(comparison),
    ]
    return [section for section in sections_or_none if section is not None]


# ------------------------------------------------------------------------------------------------------- the comparison
def _comparison(comparison: Comparison) -> Section:
    rows = comparison.rows
    about = [_counts(rows), wording.verdict(comparison)]
    return Section("rows", about=about, tables=[of_rows("rows", _accuracy_columns(rows), rows)])


def _counts(rows: Sequence[ComparisonRow]) -> str:
    kinds = ("completed", "failed", "missing")
    counted = [(sum(r.status == kind for r in rows), kind) for kind in kinds]
    counted.append((sum(r.status not in kinds for r in rows), "completed in part"))
    return (
        f"{len(rows)} {'row' if len(rows) == 1 else 'rows'}: "
        + ", ".join(f"{n} {kind}" for n, kind in counted if n)
        + "."
    )


def _scores(rows: Sequence[ComparisonRow]) -> list[str]:
    """What choices on val are by, where it is not accuracy."""
    return [WORDS[score] for score in dict.fromkeys(row.select_by for row in rows) if score != "accuracy"]


def _chosen_by(rows: Sequence[ComparisonRow]) -> list[str]:
    scores = _scores(rows)
    return [f"Every choice on val between rows is by {score} (`select_by`), not by accuracy." for score in scores]


def _how_to_read(rows: Sequence[ComparisonRow]) -> list[str]:
    by_group = [grouped.HOW_TO_READ] if any(row.test_groups for row in rows) else []
    return [*HOW_TO_READ, *by_group, *_chosen_by(rows)]


def _accuracy_columns(rows: Sequence[ComparisonRow]) -> list[Column[ComparisonRow]]:
    scores = " or ".join(_scores(rows))
    columns = pick(
        f"{NAMES} status n_seeds n_train test_accuracy test_accuracy_std val_accuracy", test_accuracy_std="std"
    )
    columns[-2:-2] = [*wilson(rows), *use(rows)]  # behind the accuracy
    if scores:
        columns.append(figure("val_score", percent, val_score, label=f"val {scores}", unit="%"))
    labels = {"macro_precision": "precision", "macro_recall": "recall", "macro_f1": "F1 (macro)"}
    columns += pick("train_accuracy test_loss macro_precision macro_recall macro_f1 lbfgs_test_accuracy", **labels)
    return columns + pick(" ".join(f"{name}_test_accuracy" for name in HEADS))


# ------------------------------------------------------------------------------------------------- beside other figures
def _published(rows: Sequence[ComparisonRow]) -> Section | None:
    beside = [row for row in rows if row.published_accuracy is not None]
    if not beside:
        return None
    columns = pick(
        f"{NAMES} published_rule published_differs test_accuracy published_accuracy delta_to_published",
        published_rule="published by rule",
        published_differs="what differs from the study",
        test_accuracy="ours [95 %]",
    )
    about = "The difference stands only where nothing differs from the study but the weights file and the hardware."
    return Section(
        "published",
        "Beside the published figures",
        about=[about],
        tables=[Table("published", columns, beside)],
        items=_published_notes(rows),
    )


def _published_notes(rows: Sequence[ComparisonRow]) -> list[str]:
    """Where the figures come from, what is known about single ones, and what no comparison with them can settle."""
    figures = [
        (row, figure)
        for row in rows
        if (figure := lookup(**{name: getattr(row, name) for name in ("grid", "dataset", "model", "phase", "variant")}))
    ]
    notes = [f"source: {figure.source}." for _, figure in figures]
    notes += [f"{note}." for _, figure in figures if figure.study for note in figure.study.notes]
    notes += [f"{row.title}: {figure.note}." for row, figure in figures if figure.note]
    return list(dict.fromkeys(notes))


def _joins(comparison: Comparison) -> Section | None:
    pairs = [(comparison.rows[i], answer) for i, answer in sorted(comparison.joins.items())]
    if not pairs:
        return None
    names = f"{NAMES} best_single_model verdict test_accuracy delta_to_best_single"
    columns: list[Column[tuple[ComparisonRow, Answer]]] = [
        column.of(lambda pair: pair[0]) for column in pick(names, delta_to_best_single="difference")
    ]
    by_group = " (by group where test images come in groups)" if any(row.test_groups for row, _ in pairs) else ""
    about = (
        "The best single model is chosen on val among the join's own parts. The difference is on test, in points. p: "
        f"exact McNemar for one seed, paired bootstrap over seeds and test images for several{by_group}, Holm-adjusted "
        "over as many comparisons as stand in brackets behind it: all between models of the same dataset and phase, "
        "these and those of `Is the difference real?`."
    )
    table = Table(name="joins", columns=[*columns, adjusted_p(lambda pair: pair[1])], rows=pairs)
    return Section(
        "joins", "Joined models beside their best part", about=[about], tables=[table], items=comparison.notes
    )


# ------------------------------------------------------------------------------------------------- costs and failures
def _costs(comparison: Comparison) -> Section | None:
    rows = [row for row in comparison.rows if row.n_seeds]
    if not rows:
        return None
    seconds = "full_wall_s full_gpu_s wall_s gpu_s phase_s images_per_s"
    size = "gflops_per_image parameters trainable_parameters size_mb"
    columns = pick(f"{NAMES} epochs {seconds} {size}", size_mb="MB")
    table = Table("cost", columns, rows)
    return Section("cost", "Cost", tables=[table], below=costs.in_words(comparison.spent))


def _use(rows: Sequence[ComparisonRow]) -> Section | None:
    """A line for each row and each kind of device on which its network was measured."""
    pairs = [(row, cost) for row in rows for cost in row.use]
    if not pairs:
        return None
    of_row: list[Column[tuple[ComparisonRow, UseCost]]] = [
        column.of(itemgetter(0)) for column in pick(f"{NAMES} test_accuracy")
    ]
    of_cost: list[Column[UseCost]] = [
        words("measured_on", "place", label="measured on"),
        figure("latency_ms", text=_latency, label="ms per image", beside="[quartiles]", more=_QUARTILES),
        figure("use_images_per_s", number, "images_per_s", label="images/s"),
        figure("use_batch_size", number, "batch_size", label="in batches of"),
        figure("memory_mib", _one_digit, label="memory, MiB"),
        figure("batch_memory_mib", _one_digit, label="memory of such a batch, MiB"),
        figure("weights_mb", _one_digit, "size_mb", label="weights, MB"),
        figure("load", _one_digit, label="load"),
        words("measured"),
    ]
    columns = of_row + [column.of(itemgetter(1)) for column in of_cost]
    return Section("use", "What using it costs", about=[USE], tables=[Table("use", columns, pairs)])


def _latency(cost: UseCost) -> str:
    return f"{cost.latency_ms:.3g} [{cost.latency_q1_ms:.3g}, {cost.latency_q3_ms:.3g}]"


def _one_digit(value: float | None) -> str:
    return number(value, digits=1)


def _failures(comparison: Comparison) -> Section | None:
    lines = failure_lines(comparison.failures)
    return Section("failures", "Failed runs", items=lines) if lines else None
