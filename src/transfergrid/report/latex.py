"""comparison.tex: the comparison as one booktabs tabular, to be \\input into a table."""

from __future__ import annotations

import re
from collections.abc import Sequence

from transfergrid.report.cells import accuracy_with_interval, number, percent, points, weights_where_needed
from transfergrid.report.comparison import ComparisonRow

HEADER = ("Model", "Phase", "Seeds", "Test \\% [95\\,\\%]", "Val \\%", "Published \\%", "vs.\\ best part")
COST = ("Parameters", "GFLOPs", "GPU s", "Wall s")
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


def as_latex(grid: str, rows: Sequence[ComparisonRow]) -> str:
    """Needs \\usepackage{booktabs}. One block of lines per data set; a row without a result shows its status."""
    columns = "ll" + "r" * (len(HEADER) + len(COST) - 2)
    lines = [
        f"% Comparison {' '.join(grid.split())}; needs \\usepackage{{booktabs}}.",
        "% Brackets: 95 % interval, Wilson over test images for one seed, Student's t over seeds for several."
        " Seeds 2/5: two of five have completed.",
        f"\\begin{{tabular}}{{{columns}}}",
        "\\toprule",
        " & ".join((*HEADER, *COST)) + r" \\",
    ]
    for dataset in dict.fromkeys(_block(row) for row in rows):
        lines += ["\\midrule", f"\\multicolumn{{{len(columns)}}}{{l}}{{\\emph{{{escape(dataset)}}}}} \\\\"]
        block = [row for row in rows if _block(row) == dataset]
        weights = weights_where_needed(block, "model", "phase", "variant")
        lines += [" & ".join(_cells(*pair)) + r" \\" for pair in zip(block, weights, strict=True)]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def _block(row: ComparisonRow) -> str:
    return f"{row.dataset}, protocol {row.protocol}" if row.protocol != "fair" else row.dataset


def _cells(row: ComparisonRow, weights: str) -> tuple[str, ...]:
    accuracy = accuracy_with_interval(row) if row.test_accuracy is not None else row.status
    texts = (
        row.model,
        ", ".join(filter(None, (row.phase, row.variant, weights))),
        row.status.partition(" ")[0] if 0 < row.n_seeds and row.status != "completed" else str(row.n_seeds),
        accuracy,
        percent(row.val_accuracy),
        percent(row.published_accuracy),
        points(row.delta_to_best_single),
        number(row.parameters),
        number(row.gflops_per_image, digits=3),
        number(row.gpu_s, digits=1),
        number(row.wall_s, digits=1),
    )
    # A minus is a sign, not a hyphen.
    return tuple(f"${text}$" if re.fullmatch(r"[+-][\d.]+", text) else escape(text) for text in texts)
