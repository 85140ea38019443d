"""comparison.tex: the comparison as one booktabs tabular, to be \\input into a table."""

from __future__ import annotations

import re
from collections.abc import Sequence

from transfergrid.report.analysis.cells import accuracy_with_interval, number, percent, points, weights_where_needed
from transfergrid.report.analysis.remarks import UNDERSTATES, footnotes
from transfergrid.report.analysis.rows import ComparisonRow
from transfergrid.report.analysis.selection import WORDS, val_score

HEADER = ("Model", "Phase", "Seeds", "Test \\% [95\\,\\%]", "Val \\%", "Published \\%", "vs.\\ best part")
COST = ("Parameters", "GFLOPs", "GPU s", "Wall s")
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


def as_latex(grid: str, rows: Sequence[ComparisonRow], *, notes: Sequence[str] = ()) -> str:
    """Needs \\usepackage{booktabs}. One block of lines per data set; a row without a result shows its status.

    notes: sentences below the table, before what the marks of single rows say.
    """
    columns = "ll" + "r" * (len(HEADER) + len(COST) - 2)
    marks, remarks = footnotes(rows)
    by = next((WORDS[row.select_by] for row in rows if row.select_by != "accuracy"), None)
    header = [f"Val {by} \\%" if by and name == "Val \\%" else name for name in (*HEADER, *COST)]
    lines = [
        f"% Comparison {' '.join(grid.split())}; needs \\usepackage{{booktabs}}.",
        "% Brackets: 95 % interval, Wilson over test images for one seed, Student's t over seeds for several"
        " (Wilson where they agree). Seeds 2/5: two of five have completed.",
        f"\\begin{{tabular}}{{{columns}}}",
        "\\toprule",
        " & ".join(header) + r" \\",
    ]
    for dataset in dict.fromkeys(_block(row) for row in rows):
        lines += ["\\midrule", f"\\multicolumn{{{len(columns)}}}{{l}}{{\\emph{{{escape(dataset)}}}}} \\\\"]
        block, marked = zip(*((r, m) for r, m in zip(rows, marks, strict=True) if _block(r) == dataset), strict=True)
        weights = weights_where_needed(block, "model", "phase", "variant")
        lines += [" & ".join(_cells(*told)) + r" \\" for told in zip(block, weights, marked, strict=True)]
    told = [escape(note) for note in notes] + [f"{_raised(mark)} {escape(text)}." for mark, text in remarks]
    below = [rf"\multicolumn{{{len(columns)}}}{{p{{\linewidth}}}}{{\footnotesize {text}}} \\" for text in told]
    return "\n".join([*lines, "\\bottomrule", *below, "\\end{tabular}"]) + "\n"


def _block(row: ComparisonRow) -> str:
    return f"{row.dataset}, protocol {row.protocol}" if row.protocol != "fair" else row.dataset


def _cells(row: ComparisonRow, weights: str, mark: str) -> tuple[str, ...]:
    accuracy = accuracy_with_interval(row) if row.test_accuracy is not None else row.status
    texts = (
        row.model,
        ", ".join(filter(None, (row.phase, row.variant, weights))),
        row.status.partition(" ")[0] if 0 < row.n_seeds and row.status != "completed" else str(row.n_seeds),
        accuracy,
        percent(val_score(row)),
        percent(row.published_accuracy),
        points(row.delta_to_best_single),
        number(row.parameters),
        number(row.gflops_per_image, digits=3),
        number(row.gpu_s, digits=1),
        number(row.wall_s, digits=1),
    )
    # A minus is a sign, not a hyphen.
    cells = [f"${text}$" if re.fullmatch(r"[+-][\d.]+", text) else escape(text) for text in texts]
    cells[3] += _raised(mark) if mark else ""
    return tuple(cells)


def _raised(mark: str) -> str:
    return f"$^{{{mark.replace(UNDERSTATES, TRIANGLE)}}}$"
