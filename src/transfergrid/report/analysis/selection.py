"""Choosing on val: by which score, what counts as equal, and which of equal rows stands first where one must be taken.

The order in which a grid lists its rows decides nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from transfergrid.report.analysis.rows import ComparisonRow
from transfergrid.specs import SelectBy

# Scores that are closer are equal: one image more or less, of any val set and number of seeds, is a larger step.
TIE = 1e-9
WORDS: dict[SelectBy, str] = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
}
RULE = "of rows tied on val the one with the lower val loss comes first, then the one with fewer FLOPs per image"


def choice_of(variant: str) -> tuple[str, str] | None:
    """(what is compared, the choice), of a variant named `<what is compared>--<choice>`; None of any other.

    Such variants are a search by their purpose, however few they are.
    """
    subject, sign, choice = variant.partition("--")
    return (subject, choice) if sign else None


def epochs_of(variant: str) -> int | None:
    """Of a variant named `epochs_<n>`; None of any other."""
    match = re.fullmatch(r"epochs_(\d+)", variant)
    return int(match[1]) if match else None


def is_share(variant: str) -> bool:
    """Whether a variant's name says nothing but the share of the images that it is trained on."""
    return re.fullmatch("(shots|fraction)_.*", variant) is not None


def val_score(row: ComparisonRow) -> float | None:
    """What the row is chosen by, in [0, 1]; None where there is no such score, as under protocol `published`."""
    score: float | None = getattr(row, f"val_{row.select_by}")
    return score


def best_first(
    rows: Sequence[ComparisonRow],
    among: Iterable[int] | None = None,
    *,
    score: Callable[[ComparisonRow], float | None] = val_score,
) -> list[list[int]]:
    """Positions of the rows that have a score, best first; those that are tied stand in one list, by RULE."""
    candidates = range(len(rows)) if among is None else among
    scored = [(value, i) for i in candidates if (value := score(rows[i])) is not None]
    groups: list[tuple[float, list[int]]] = []
    for value, i in sorted(scored, key=lambda pair: -pair[0]):
        if groups and groups[-1][0] - value < TIE:
            groups[-1][1].append(i)
        else:
            groups.append((value, [i]))
    return [sorted(group, key=lambda i: _by_rule(rows[i])) for _, group in groups]


def best_on_val(rows: Sequence[ComparisonRow], among: Iterable[int] | None = None) -> int | None:
    """The row that is taken where one must be; None where no row has a score on val."""
    ordered = best_first(rows, among)
    return ordered[0][0] if ordered else None


def is_tied(row: ComparisonRow, best: ComparisonRow) -> bool:
    """Whether two rows have one score on val."""
    a, b = val_score(row), val_score(best)
    return a is not None and b is not None and abs(a - b) < TIE


def _by_rule(row: ComparisonRow) -> tuple[object, ...]:
    """RULE, then parameters and names, which end every tie; what is not recorded stands last."""
    numbers = (row.val_loss, row.gflops_per_image, row.parameters)
    sort_keys = tuple((value is None, value or 0.0) for value in numbers)
    return (*sort_keys, row.model, row.phase, row.variant, row.weights, row.grid)
