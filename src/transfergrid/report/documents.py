"""comparison.csv and comparison.md of a grid, as text."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict

from transfergrid.report.analysis import (
    choices,
    claims,
    costs,
    handover,
    integrity,
    joins,
    lengths,
    published_metrics,
    top_errors,
    verdicts,
    worth,
)
from transfergrid.report.analysis.cells import accuracy_with_interval, markdown_table, number, percent, points
from transfergrid.report.analysis.comparison import Comparison
from transfergrid.report.analysis.failures import failure_lines
from transfergrid.report.analysis.remarks import UNDERSTATES, footnotes
from transfergrid.report.analysis.rows import COLUMNS, ComparisonRow
from transfergrid.report.analysis.selection import RULE, WORDS, val_score
from transfergrid.report.page import wording
from transfergrid.report.studies.published import lookup

HOW_TO_READ = f"""\
- Accuracies are percent of the test images; val, train and test are evaluated without augmentation.
- The brackets are a 95 % interval: for one seed Wilson's, over test images; for several seeds Student's t, over seeds,
  and the number before it is their mean. Neither covers the other source of chance. Where all seeds agree it is
  Wilson's, over test images, too.
- Rows are chosen on val, and a tie of the best rows is told as a tie. Where one must be taken:
  {RULE}.
- Protocol `fair`: 10 % of the training images are held out as val, every choice is made there, the last epoch is the
  result and the test set is read once. Protocol `published`: the whole training set and the study's own checkpoint
  rule; nothing is chosen on val, so val and the best single model are empty.
- p_value_vs_best_single in comparison.csv: a join against its best part on the same seeds and test images, by the exact
  McNemar test for one seed, by a paired bootstrap over seeds and test images for several; Holm-adjusted over all
  comparisons between models of the same dataset and phase, so that two models have one p wherever they stand beside
  each other. The verdict is by it, at 5 %. A published claim is a question of its own, adjusted over its own
  comparisons.
- L-BFGS: the same head solved to its optimum, its penalty chosen on val; a solved probe is that head, and has one run
  for all seeds because nothing in it is drawn. kNN, LDA, QDA: other heads on the same features, which never win and are
  not handed on. A mark ▲: more test images right than the probe's head in every run (exact McNemar, 5 %, Holm over the
  three), so a linear head understates these features; better_than_head in comparison.csv names them.
- Seconds are means per completed seed. Wall and GPU seconds are those of all attempts of the row's own runs, what
  failed or was interrupted and had to be done again included; GPU seconds are what SLURM bills, 0 where no GPU was
  used. Phase seconds are those of the work itself, without starting python and without what was lost. Upstream GPU
  seconds are those of everything that a row needs: its extractions, the probe that a fine-tuning starts from.
"""


def as_csv(rows: Sequence[ComparisonRow]) -> str:
    """RFC 4180 with `\\n` line ends, numbers at full precision, empty cells for None."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue()


# --------------------------------------------------------------------------------------------------------- markdown
def as_markdown(comparison: Comparison) -> str:
    rows = comparison.rows
    contests = worth.contests(comparison)
    parts = [
        f"# Comparison: {comparison.grid}\n",
        f"{_counts(rows)}\n",
        f"{wording.verdict(comparison)}\n",
        _accuracy_table(rows),
        "## How to read this\n",
        HOW_TO_READ + _chosen_by(rows),
        claims.as_markdown(claims.decisions_of(comparison)),
        _published_table(rows),
        published_metrics.as_markdown(comparison),
        top_errors.as_markdown(comparison),
        choices.as_markdown(comparison),
        lengths.as_markdown(comparison),
        verdicts.as_markdown(
            verdicts.against_best(comparison),
            [contest.second.answer for contest in contests],
            tables=worth.tables(contests),
        ),
        _join_table(comparison),
        joins.as_markdown(joins.join_baselines(comparison)),
        handover.as_markdown(comparison),
        _cost_table(comparison),
        _failures(comparison),
        integrity.as_markdown(comparison),
    ]
    return "\n".join(part for part in parts if part)


def _counts(rows: Sequence[ComparisonRow]) -> str:
    kinds = ("completed", "failed", "missing")
    counted = [(sum(r.status == kind for r in rows), kind) for kind in kinds]
    counted.append((sum(r.status not in kinds for r in rows), "completed in part"))
    return f"{len(rows)} rows: " + ", ".join(f"{n} {kind}" for n, kind in counted if n) + "."


def _chosen_by(rows: Sequence[ComparisonRow]) -> str:
    """What choices on val are by, where it is not accuracy."""
    scores = [WORDS[score] for score in dict.fromkeys(row.select_by for row in rows) if score != "accuracy"]
    return "".join(
        f"- Every choice on val between rows is by {score} (`select_by`), not by accuracy.\n" for score in scores
    )


NAMES = ("dataset", "model", "phase", "variant", "weights", "protocol")


def _names(row: ComparisonRow) -> list[str]:
    return [getattr(row, name) for name in NAMES]


def _accuracy_table(rows: Sequence[ComparisonRow]) -> str:
    header = [*NAMES, "status", "seeds", "trained on", "test [95 %]", "std", "val", "train", "test loss"]
    header += ["precision", "recall", "F1 (macro)", "L-BFGS test", "kNN test", "LDA test", "QDA test"]
    scores = [WORDS[score] for score in dict.fromkeys(row.select_by for row in rows) if score != "accuracy"]
    marks, notes = footnotes(rows)
    if scores:
        header.insert(header.index("train"), f"val {' or '.join(scores)}")
    lines = [
        [
            *_names(row),
            row.status + (f" ({row.failure_class})" if row.failure_class else ""),
            str(row.n_seeds),
            number(row.n_train),
            " ".join(filter(None, (accuracy_with_interval(row), mark))),
            percent(row.test_accuracy_std),
            percent(row.val_accuracy),
            *([percent(val_score(row))] if scores else []),
            percent(row.train_accuracy),
            number(row.test_loss, digits=4),
            percent(row.macro_precision),
            percent(row.macro_recall),
            percent(row.macro_f1),
            percent(row.lbfgs_test_accuracy),
            *(_beside_head(row, name) for name in ("knn", "lda", "qda")),
        ]
        for row, mark in zip(rows, marks, strict=True)
    ]
    below = "".join(f"- {mark}: {text}.\n" for mark, text in notes)
    return "\n".join(part for part in (markdown_table(header, lines, left=len(NAMES) + 1), below) if part)


def _beside_head(row: ComparisonRow, name: str) -> str:
    """Its test accuracy, marked where it says that a linear head understates the features."""
    marked = name in (row.better_than_head or "").split("; ")
    return percent(getattr(row, f"{name}_test_accuracy")) + (f" {UNDERSTATES}" if marked else "")


def _published_table(rows: Sequence[ComparisonRow]) -> str:
    header = [
        *NAMES,
        "published by rule",
        "what differs from the study",
        "ours [95 %]",
        "published",
        "ours - published",
    ]
    lines = [
        [
            *_names(row),
            row.published_rule or "",
            row.published_differs or "",
            accuracy_with_interval(row),
            percent(row.published_accuracy),
            points(row.delta_to_published),
        ]
        for row in rows
        if row.published_accuracy is not None
    ]
    if not lines:
        return ""
    about = "The difference stands only where nothing differs from the study but the weights file and the hardware.\n"
    table = markdown_table(header, lines, left=len(NAMES) + 2)
    return f"## Beside the published figures\n\n{about}\n{table}\n" + _published_notes(rows)


def _published_notes(rows: Sequence[ComparisonRow]) -> str:
    """Where the figures come from, what is known about single ones, and what no comparison with them can settle."""
    found = [
        (row, figure)
        for row in rows
        if (figure := lookup(**{name: getattr(row, name) for name in ("grid", "dataset", "model", "phase", "variant")}))
    ]
    notes = [f"source: {figure.source}." for _, figure in found]
    notes += [f"{note}." for _, figure in found if figure.study for note in figure.study.notes]
    for row, figure in found:
        if figure.note:
            notes.append(f"{' '.join(filter(None, (row.dataset, row.model, row.phase, row.variant)))}: {figure.note}.")
    return "".join(f"- {note}\n" for note in dict.fromkeys(notes))


def _join_table(comparison: Comparison) -> str:
    header = [*NAMES, "best single model", "verdict", "test [95 %]", "difference", "p (Holm)"]
    lines = [
        [
            *_names(row),
            row.best_single_model or "",
            row.verdict or "",
            accuracy_with_interval(row),
            points(row.delta_to_best_single),
            comparison.joins[i].p_text,
        ]
        for i, row in enumerate(comparison.rows)
        if i in comparison.joins
    ]
    if not lines:
        return ""
    about = (
        "The best single model is chosen on val among the join's own parts. The difference is on test, in points. p: "
        "exact McNemar for one seed, paired bootstrap over seeds and test images for several, Holm-adjusted over as "
        "many comparisons as stand in brackets behind it: all between models of the same dataset and phase, these and "
        "those of `Is the difference real?`.\n"
    )
    notes = "".join(f"- {note}\n" for note in comparison.notes)
    table = markdown_table(header, lines, left=len(NAMES) + 2)
    return "\n".join(part for part in ("## Joined models beside their best part\n", about, table, notes) if part)


def _cost_table(comparison: Comparison) -> str:
    header = [*NAMES, "epochs", "wall s", "phase s", "GPU s", "upstream GPU s", "images/s"]
    header += ["GFLOPs/image", "parameters", "trainable", "MB"]
    lines = [
        [
            *_names(row),
            number(row.epochs),
            *(number(s, digits=1) for s in (row.wall_s, row.phase_s, row.gpu_s, row.upstream_gpu_s)),
            number(row.images_per_s),
            number(row.gflops_per_image, digits=3),
            number(row.parameters),
            number(row.trainable_parameters),
            number(row.size_mb, digits=2),
        ]
        for row in comparison.rows
        if row.n_seeds
    ]
    if not lines:
        return ""
    table = markdown_table(header, lines, left=len(NAMES))
    return f"## Cost\n\n{table}{costs.as_text(comparison.spent)}"


def _failures(comparison: Comparison) -> str:
    if not comparison.failures:
        return ""
    lines = [f"- {line}\n" for line in failure_lines(comparison.failures)]
    return "## Failed runs\n\n" + "".join(lines)
