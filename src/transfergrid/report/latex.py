"""comparison.tex: the comparison as one booktabs tabular, to be \\input into a table."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from transfergrid.report.analysis.cells import accuracy_with_interval, percent, weights_where_needed
from transfergrid.report.analysis.columns import pick, test_accuracy, use, use_notes, wilson
from transfergrid.report.analysis.remarks import UNDERSTATES, footnotes
from transfergrid.report.analysis.rows import ComparisonRow
from transfergrid.report.analysis.selection import WORDS, val_score
from transfergrid.report.blocks import Column, figure, words

LABELS = {
    "model": "Model",
    "published_accuracy": "Published %",
    "delta_to_best_single": "vs. best part",
    "parameters": "Parameters",
    "gflops_per_image": "GFLOPs",
    "full_gpu_s": "Full GPU s",
    "full_wall_s": "Full wall s",
}
TRIANGLE = r"\triangle"  # of every LaTeX, as ▲ is not
_SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"''",
    # After a row's end, `[` would open a length and `*` forbid a page break.
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    "-": "{-}",
    "`": "{`}",
}


def escape(text: str) -> str:
    """Any text as LaTeX that prints it literally, on one line."""
    return "".join(_SPECIAL.get(sign, sign) for sign in re.sub(r"[\s\x00-\x1f\x7f]+", " ", text))


@dataclass(frozen=True, slots=True)
class _Line:
    """weights: of the row, where nothing else tells it from another of its block."""

    row: ComparisonRow
    weights: str


def as_latex(grid: str, rows: Sequence[ComparisonRow], *, notes: Sequence[str] = ()) -> str:
    """Needs \\usepackage{booktabs}. One block of lines per data set; a row without a result shows its status.

    notes: sentences below the table, before what the marks of single rows say.
    """
    columns = _columns(rows)
    marks, remarks = footnotes(rows)
    aligned = "".join("r" if column.is_number else "l" for column in columns)
    lines = [
        f"% Comparison {' '.join(grid.split())}; needs \\usepackage{{booktabs}}.",
        "% Brackets: 95 % interval, Wilson over test images for one seed, Student's t over seeds for several"
        " (Wilson where they agree). Seeds 2/5: two of five have completed. Full: one seed, with all it is made from.",
        *(["% Test images in groups: intervals by group, Wilson for all images beside."] if wilson(rows) else []),
        f"\\begin{{tabular}}{{{aligned}}}",
        "\\toprule",
        " & ".join(escape(column.heading) for column in columns) + r" \\",
    ]
    for title in dict.fromkeys(_block(row) for row in rows):
        lines += ["\\midrule", _over_all(columns, "l", rf"\emph{{{escape(title)}}}")]
        block = [(row, mark) for row, mark in zip(rows, marks, strict=True) if _block(row) == title]
        weights = weights_where_needed([row for row, _ in block], "model", "phase", "variant")
        for (row, mark), label in zip(block, weights, strict=True):
            cells = [_cell(column, column.text(_Line(row, label)), mark) for column in columns]
            lines.append(" & ".join(cells) + r" \\")
    below = [escape(note) for note in (*notes, *(f"{mark}: {text}." for mark, text in use_notes(rows)))]
    below += [f"{_raised(mark)} {escape(text)}." for mark, text in remarks]
    lines += ["\\bottomrule", *(_over_all(columns, r"p{\linewidth}", rf"\footnotesize {text}") for text in below)]
    return "\n".join([*lines, "\\end{tabular}"]) + "\n"


def _columns(rows: Sequence[ComparisonRow]) -> list[Column[_Line]]:
    by = next((f"{WORDS[row.select_by]} " for row in rows if row.select_by != "accuracy"), "")
    of_row: Callable[[_Line], ComparisonRow] = attrgetter("row")
    measured = [
        words("n_seeds", _seeds, label="Seeds", is_number=True),
        test_accuracy("Test %", _accuracy),
        *wilson(rows),
        *use(rows),
        figure("val_score", percent, val_score, label=f"Val {by}%"),
        *pick("published_accuracy delta_to_best_single parameters gflops_per_image full_gpu_s full_wall_s", **LABELS),
    ]
    (model,) = pick("model", **LABELS)
    return [model.of(of_row), words("phase", _phase, label="Phase"), *(column.of(of_row) for column in measured)]


def _accuracy(row: ComparisonRow) -> str:
    return accuracy_with_interval(row) if row.test_accuracy is not None else row.status


def _phase(line: _Line) -> str:
    return ", ".join(part for part in (line.row.phase, line.row.variant, line.weights) if part)


def _seeds(row: ComparisonRow) -> str:
    """`2/5` where some are missing."""
    some = row.n_launched is not None and 0 < row.n_seeds < row.n_launched
    return f"{row.n_seeds}/{row.n_launched}" if some else str(row.n_seeds)


def _block(row: ComparisonRow) -> str:
    return f"{row.dataset}, protocol {row.protocol}" if row.protocol != "fair" else row.dataset


def _over_all(columns: Sequence[Column[_Line]], alignment: str, text: str) -> str:
    """A line that all columns share."""
    return rf"\multicolumn{{{len(columns)}}}{{{alignment}}}{{{text}}} \\"


def _cell(column: Column[_Line], text: str, mark: str) -> str:
    # A minus is a sign, not a hyphen.
    cell = f"${text}$" if text and column.unit == "points" else escape(text)
    return cell + _raised(mark) if mark and column.is_marked else cell


def _raised(mark: str) -> str:
    return f"$^{{{mark.translate({ord(UNDERSTATES): TRIANGLE})}}}$"
