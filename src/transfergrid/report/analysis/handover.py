"""What the hand-over from probe to fine-tuning leaves to say: beside a row, in the document, in a line on the terminal.

Read from `details` of the records, which older ones have in another form or not at all: then nothing is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transfergrid.report.analysis.cells import percent
from transfergrid.report.analysis.comparison import Comparison
from transfergrid.report.analysis.statistics import p_text
from transfergrid.report.blocks import Finding, Section
from transfergrid.store.records import RunRecord

TITLE = "Where fine-tuning started"
BELOW = "starts below its probe"
NOT_JUDGED = "hand-over not judged"
SEVERAL = {BELOW: "start below their probe", NOT_JUDGED: "begin with a hand-over that the gate could not judge"}


def remarks(record: RunRecord) -> list[Finding]:
    """Mostly none."""
    return [Finding(record.run_id, kind, text) for kind, text in (*_start(record), *_gate(record))]


def flags(comparison: Comparison) -> list[tuple[str, ...]]:
    """Beside each row, without doubles."""
    return [tuple(dict.fromkeys(r.kind for run in runs for r in remarks(run))) for runs in comparison.runs]


def section(comparison: Comparison) -> Section | None:
    """None where no fine-tuning has a remark."""
    items = [f"{remark.sentence}." for remark in _all(comparison)]
    return Section("handover", TITLE, items=items) if items else None


def summary(comparison: Comparison) -> list[str]:
    """For a terminal: one line per kind, with how many fine-tunings it is true of."""
    findings = _all(comparison)
    counts = {kind: sum(remark.kind == kind for remark in findings) for kind in dict.fromkeys(r.kind for r in findings)}
    return [
        f"{number} of {_finetunings(comparison)} fine-tunings {SEVERAL.get(kind, f'have {kind}')}: see the report"
        for kind, number in counts.items()
    ]


def _all(comparison: Comparison) -> list[Finding]:
    return [remark for record in comparison.records for remark in remarks(record)]


def _finetunings(comparison: Comparison) -> int:
    return sum(record.spec.phase == "finetune" for record in comparison.records)


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
    findings = []
    if gate.get("judged") is False and gate.get("reason") == "rounding":
        text = f"on none of {gate.get('rows')} images is the probe's margin above rounding, so the gate could not judge"
        findings.append((NOT_JUDGED, f"{text} whether this network is the one that was probed"))
    same = f"gives the same features for all {gate.get('rows')} images of the gate"
    constant: Any = gate.get("constant_backbones") or ()
    return findings + [(f"constant features of {name}", f"{name} {same}") for name in constant]


def _number(values: Mapping[str, Any], name: str) -> float | None:
    value = values.get(name)
    return float(value) if isinstance(value, (int, float)) else None
