"""What the hand-over from probe to fine-tuning leaves to say: beside a row, in the document, in a line on the terminal.

Read from `details` of the records, which older ones have in another form or not at all: then nothing is said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
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


def remarks(record: RunRecord) -> Iterator[Finding]:
    """Mostly none."""
    start, gate = (record.details.get(name) for name in ("start", "gate"))
    if isinstance(start, Mapping) and start.get("falls") is True:
        by_batch, by_statistics = (percent(_number(start, name)) for name in ("batch_accuracy", "running_accuracy"))
        p = p_text(_number(start, "p_value") or 0.0, ".3f")
        text = (
            f"before the first step {by_batch} % of {start.get('rows')} held-out images are right with BatchNorm by"
            f" batches of {start.get('batch_size')}, as in training, against {by_statistics} % by its statistics (exact"
            f" McNemar, p = {p}): training must regain what the probe had; phase.finetune.bn=eval keeps the statistics"
        )
        yield Finding(record.run_id, BELOW, text)
    if not isinstance(gate, Mapping):
        return
    images = f"{gate.get('rows')} images"
    if gate.get("judged") is False and gate.get("reason") == "rounding":
        text = f"on none of {images} is the probe's margin above rounding, so the gate could not judge"
        yield Finding(record.run_id, NOT_JUDGED, f"{text} whether this network is the one that was probed")
    for name in gate.get("constant_backbones") or ():
        text = f"{name} gives the same features for all {images} of the gate"
        yield Finding(record.run_id, f"constant features of {name}", text)


def flags(comparison: Comparison) -> list[tuple[str, ...]]:
    """Beside each row, without doubles."""
    return [tuple(dict.fromkeys(r.kind for run in runs for r in remarks(run))) for runs in comparison.runs]


def section(comparison: Comparison) -> Section | None:
    """None where no fine-tuning has a remark."""
    items = [f"{remark.sentence}." for record in comparison.records for remark in remarks(record)]
    return Section("handover", TITLE, items=items) if items else None


def summary(comparison: Comparison) -> list[str]:
    """For a terminal: one line per kind, with how many fine-tunings it is true of."""
    finetunings = sum(record.spec.phase == "finetune" for record in comparison.records)
    counts = Counter(remark.kind for record in comparison.records for remark in remarks(record))
    return [
        f"{number} of {finetunings} fine-tunings {SEVERAL.get(kind, f'have {kind}')}: see the report"
        for kind, number in counts.items()
    ]


def _number(values: Mapping[str, Any], name: str) -> float | None:
    value = values.get(name)
    return float(value) if isinstance(value, (int, float)) else None
