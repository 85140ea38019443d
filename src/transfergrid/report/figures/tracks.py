"""Metrics files -> curves: the phases of one training joined end to end, the seeds beside each other."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from transfergrid.errors import DataError
from transfergrid.report.figures.material import Material
from transfergrid.store.metrics_log import read_metrics
from transfergrid.store.records import RunRecord
from transfergrid.training.evaluation import Array

MAX_BINS = 300  # points of a per-batch curve: more than a figure has pixels for would only make its file large


@dataclass(slots=True)
class Track:
    """One seed's training. epochs: name of a metric -> (epochs, values), epochs from 1 on through all phases.

    steps: the same per batch. joints: (epochs, steps) done where one phase ends and the next begins.
    """

    phases: tuple[str, ...]
    epochs: dict[str, tuple[list[int], list[float]]] = field(default_factory=dict)
    steps: dict[str, tuple[list[int], list[float]]] = field(default_factory=dict)
    joints: list[tuple[int, int]] = field(default_factory=list)


def probe_of(material: Material, run: RunRecord) -> RunRecord | None:
    """The probe whose head a fine-tuning started from, if it did, was trained, and the store still has it."""
    if run.spec.phase != "finetune" or not run.spec.needs:
        return None
    probe = material.record(run.spec.needs[0])
    return probe if probe is not None and probe.spec.phase == "probe" and not probe.spec.is_solved else None


def track(material: Material, run: RunRecord) -> Track:
    """A run's training, after that of the probe it started from. Raises DataError where a metrics file is missing."""
    probe = probe_of(material, run)
    parts = [run] if probe is None else [probe, run]
    whole = Track(tuple(part.spec.phase for part in parts))
    epochs_before, steps_before = 0, 0
    for number, part in enumerate(parts):
        if number:
            whole.joints.append((epochs_before, steps_before))
        epochs_before, steps_before = _append(whole, material, part, epochs_before, steps_before)
    return whole


def _append(whole: Track, material: Material, run: RunRecord, epochs: int, steps: int) -> tuple[int, int]:
    path = material.comparison.store.run(run.run_id).metrics
    lines = [line for line in read_metrics(path) if line.get("kind") in ("step", "epoch")]
    if not lines:
        raise DataError(f"{path} is missing or empty; launch the run again")
    # A probe trains one head per learning rate; the chosen one's batches count.
    prefix = f"head_{run.details.get('chosen', {}).get('head', 0)}/"
    for line in lines:
        is_step = line["kind"] == "step"
        series, x = (whole.steps, steps + int(line["step"])) if is_step else (whole.epochs, epochs + int(line["epoch"]))
        for name in ("train/accuracy", "train/loss", "val/accuracy", "val/loss", "test/accuracy", "test/loss"):
            value = line.get(name, line.get(prefix + name))
            if value is not None:
                xs, values = series.setdefault(name, ([], []))
                xs.append(x)
                values.append(float(value))
    return epochs + max(int(line["epoch"]) for line in lines), steps + max(int(line["step"]) for line in lines)


# --------------------------------------------------------------------------------------------------------- over seeds
def mean_over_seeds(tracks: Sequence[Track], name: str) -> tuple[list[int], list[float]]:
    """Per epoch, where every seed has it."""
    values: dict[int, list[float]] = {}
    for one in tracks:
        for x, value in zip(*one.epochs.get(name, ([], [])), strict=True):
            values.setdefault(x, []).append(value)
    shared = sorted(x for x, of_seeds in values.items() if len(of_seeds) == len(tracks))
    return shared, [float(np.mean(values[x])) for x in shared]


def parted(xs: Sequence[int], values: Sequence[float], joints: Sequence[int]) -> list[tuple[list[int], list[float]]]:
    """One curve as one piece per phase: what lies between two phases is no training. joints: where a phase ends."""
    edges = [0, *joints, max(xs, default=0)]
    pieces = []
    for low, high in pairwise(edges):
        inside = [(x, value) for x, value in zip(xs, values, strict=True) if low < x <= high]
        if inside:
            pieces.append(([x for x, _ in inside], [value for _, value in inside]))
    return pieces


def binned_steps(tracks: Sequence[Track], name: str) -> list[tuple[Array, Array, Array, Array]]:
    """Per phase, and in it per bin of batches, all seeds together: (x, lowest, highest, smoothed mean), each (B,)."""
    joints = [steps for _, steps in tracks[0].joints]
    logged = [one.steps[name] for one in tracks if name in one.steps]
    longest = max((max(xs) for xs, _ in logged), default=0)
    width = max(1, -(-longest // MAX_BINS))
    pieces: dict[int, list[tuple[int, float]]] = {}
    for xs, values in logged:
        for x, value in zip(xs, values, strict=True):
            pieces.setdefault(bisect_left(joints, x), []).append((x, value))
    return [_binned(pieces[phase], width) for phase in sorted(pieces)]


def _binned(pairs: Sequence[tuple[int, float]], width: int) -> tuple[Array, Array, Array, Array]:
    x_P, value_P = np.array([x for x, _ in pairs]), np.array([value for _, value in pairs])
    bins_B, place_P = np.unique((x_P - 1) // width, return_inverse=True)
    low_B, high_B = np.full(len(bins_B), np.inf), np.full(len(bins_B), -np.inf)
    np.minimum.at(low_B, place_P, value_P)
    np.maximum.at(high_B, place_P, value_P)
    mean_B = np.bincount(place_P, weights=value_P) / np.bincount(place_P)
    x_B = bins_B * width + (width + 1) / 2
    return x_B, low_B, high_B, smoothed(mean_B, reach=max(1, len(bins_B) // 40))


def smoothed(values_B: Array, *, reach: int) -> Array:
    """Running mean over `reach` neighbours on either side, fewer at the ends."""
    sums = np.concatenate([[0.0], np.cumsum(values_B)])
    place_B = np.arange(len(values_B))
    first_B, after_B = np.maximum(place_B - reach, 0), np.minimum(place_B + reach + 1, len(values_B))
    mean_B: Array = (sums[after_B] - sums[first_B]) / (after_B - first_B)
    return mean_B
