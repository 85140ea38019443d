"""What the hand-over from probe to fine-tuning leaves to say: beside a row, in the document, in a line on the terminal.

Read from `details` of the records, which older ones have in another form or not at all: then nothing is said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transfergrid.report.analysis.cells import percent
from transfergrid.report.analysis.comparison import Comparison
from transfergrid.report.analysis.statistics import p_text
from transfergrid.store.records import RunRecord

HEADING = "Where fine-tuning started"
BELOW = "starts below its probe"
NOT_JUDGED = "hand-over not judged"
SEVERAL = {BELOW: "start below their probe", NOT_JUDGED: "begin with a hand-over that the gate could not judge"}


@dataclass(frozen=True, slots=True)
class Remark:
    """kind: a few words, for beside a row. sentence: with the run and the numbers."""

    kind: str
    sentence: str


def remarks(record: RunRecord) -> list[Remark]:
    """Mostly none."""
    return [Remark(kind, f"{record.run_id}: {text}") for kind, text in (*_start(record), *_gate(record))]


def flags(comparison: Comparison) -> list[tuple[str, ...]]:
    """Beside each row, without doubles."""
    return [tuple(dict.fromkeys(r.kind for run in runs for r in remarks(run))) for runs in comparison.runs]


def as_markdown(comparison: Comparison) -> str:
    """A section, or nothing where no fine-tuning has a remark."""
    lines = "".join(f"- {remark.sentence}.\n" for remark in _all(comparison))
    return f"## {HEADING}\n\n{lines}" if lines else ""


def summary(comparison: Comparison) -> list[str]:
    """For a terminal: one line per kind, with how many fine-tunings it is true of."""
    found = _all(comparison)
    counts = {kind: sum(remark.kind == kind for remark in found) for kind in dict.fromkeys(r.kind for r in found)}
    return [
        f"{number} of {_finetunings(comparison)} fine-tunings {SEVERAL.get(kind, f'have {kind}')}: see the report"
        for kind, number in counts.items()
    ]


def _all(comparison: Comparison) -> list[Remark]:
    return [remark for record in _records(comparison) for remark in remarks(record)]


def _finetunings(comparison: Comparison) -> int:
    return sum(record.spec.phase == "finetune" for record in _records(comparison))


def _records(comparison: Comparison) -> Sequence[RunRecord]:
    return list({record.run_id: record for runs in comparison.runs for record in runs}.values())


def _start(record: RunRecord) -> list[tuple[str, str]]:
    start = record.details.get("start")
    if not isinstance(start, Mapping) or start.get("falls") is not True:
        return []
    by_batch, by_statistics = (percent(_number(start, name)) for name in ("batch_accuracy", "running_accuracy"))
    p = p_text(_number(start, "p_value") or 0.0, ".3f")
    text = (
        f"before the first step {by_batch} % of {start.get('rows')} held-out images are right with BatchNorm by batches"
        f" of {start.get('batch_size')}, as in training, against {by_statistics} % by its statistics (exact McNemar,"
        f" p = {p}): training must regain what the probe had; phase.finetune.bn=eval keeps the statistics"
    )
    return [(BELOW, text)]


def _gate(record: RunRecord) -> list[tuple[str, str]]:
    gate = record.details.get("gate")
    if not isinstance(gate, Mapping):
        return []
    found = []
    if gate.get("judged") is False and gate.get("reason") == "rounding":
        text = f"on none of {gate.get('rows')} images is the probe surer than rounding, so the gate could not judge"
        found.append((NOT_JUDGED, f"{text} whether this network is the one that was probed"))
    same = f"gives the same features for all {gate.get('rows')} images of the gate"
    constant: Any = gate.get("constant_backbones") or ()
    return found + [(f"constant features of {name}", f"{name} {same}") for name in constant]


def _number(values: Mapping[str, Any], name: str) -> float | None:
    value = values.get(name)
    return float(value) if isinstance(value, (int, float)) else None
