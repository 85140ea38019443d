"""Top-1 and top-5 errors of evaluations, beside what studies state about the same network and what is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transfergrid.report.analysis.cells import number, percent
from transfergrid.report.analysis.comparison import Comparison
from transfergrid.report.blocks import Column, Section, Table, figure, words
from transfergrid.report.studies.published import PublishedFigure, figures
from transfergrid.specs import EvaluateSettings, RunSpec
from transfergrid.store.records import RunRecord

METRICS = {"top1_error": "top-1", "top5_error": "top-5"}
_CORRECTED_WEIGHTS = "IMAGENET1K_V1"  # whose error torchvision's documentation gives


@dataclass(frozen=True, slots=True, kw_only=True)
class TopError:
    """One error of one evaluation, in [0, 1]. differs: what keeps it from being comparable with the corrected value.

    variant: of its row, which names the run where a finished run was evaluated.
    """

    dataset: str
    model: str
    variant: str
    weights: str
    metric: str
    images: int
    measured: float
    as_stated: float | None
    corrected: float | None
    differs: tuple[str, ...]
    notes: tuple[str, ...]


COLUMNS: list[Column[TopError]] = [
    words("dataset"),
    words("model"),
    words("variant"),
    words("weights"),
    words("differs", lambda error: ", ".join(error.differs)),
    words("error", lambda error: METRICS[error.metric], label="error %"),
    figure("images", number),
    figure("measured", percent),
    figure("as_stated", percent, label="as stated"),
    figure("corrected", percent),
]


def top_errors(comparison: Comparison) -> tuple[TopError, ...]:
    """Of every completed evaluation, in the order of the grid's rows. A figure counts whatever grid its study is in."""
    errors = []
    for row, runs in zip(comparison.rows, comparison.runs, strict=True):
        for record in runs:
            if record.spec.phase == "evaluate":
                errors += [_error(record, metric, row.variant) for metric in METRICS if metric in record.details]
    return tuple(errors)


def table(errors: Sequence[TopError]) -> Table[TopError]:
    return Table("top_1_and_top_5_errors", COLUMNS, errors)


def section(comparison: Comparison) -> Section | None:
    """None for a grid without evaluations."""
    errors = top_errors(comparison)
    if not errors:
        return None
    notes = dict.fromkeys(note for error in errors for note in error.notes)
    return Section("errors", "Top-1 and top-5 errors", tables=[table(errors)], items=list(notes))


def _error(record: RunRecord, metric: str, variant: str) -> TopError:
    spec = record.spec
    published = {f.rule: f for f in figures() if _is_of(f, spec, metric)}
    stated, corrected = published.get("as_stated"), published.get("corrected")
    return TopError(
        dataset=spec.dataset.name,
        model=spec.model,
        variant=variant,
        weights=spec.weights_label,
        metric=metric,
        images=int(record.details["n_test"]),
        measured=float(record.details[metric]),
        as_stated=None if stated is None else stated.value,
        corrected=None if corrected is None else corrected.value,
        differs=(*_differs(spec), *(["classes"] if "classes_compared" in record.details else [])) if published else (),
        notes=tuple(
            f"{METRICS[metric]} error {percent(f.value)} % {f.rule.replace('_', ' ')}: {f.note}"
            for f in published.values()
        ),
    )


def _is_of(figure: PublishedFigure, spec: RunSpec, metric: str) -> bool:
    named = (figure.dataset, figure.model, figure.phase, figure.metric)
    return named == (spec.dataset.name, spec.model, "evaluate", metric)


def _differs(spec: RunSpec) -> tuple[str, ...]:
    names = [] if spec.dataset.max_images is None else ["max_images"]
    own_head = isinstance(spec.settings, EvaluateSettings) and spec.settings.source == "own_head"
    names += [] if own_head and spec.weights_label == _CORRECTED_WEIGHTS else ["weights"]
    names += ["split"] if isinstance(spec.settings, EvaluateSettings) and spec.settings.split == "train" else []
    names += ["image_size_px"] if any(b.preprocess.mode != "recipe" for b in spec.backbones) else []
    return tuple(names)
