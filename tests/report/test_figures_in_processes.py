"""Figures drawn by several processes are those that one draws, and a process that ends early takes no other along."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from figure_cases import run_of, trained
from report_cases import write_grid

from transfergrid.data import LabeledImages
from transfergrid.paths import StorePaths
from transfergrid.report.analysis.comparison import Comparison, read_comparison
from transfergrid.report.figures import make_figures, no_images
from transfergrid.specs import DatasetSpec, Split

pytestmark = pytest.mark.slow


def two_networks(store: StorePaths) -> Comparison:
    """One of which has lost its predictions."""
    runs = [run_of("scratch", model, image_size_px=32) for model in ("baseline_cnn", "resnet18_5m")]
    for run in runs:
        trained(store, run)
    store.run(runs[1].run_id).predictions.write_bytes(b"not a zip file")
    write_grid(store, "g", [(run, "") for run in runs])
    return read_comparison("g", store)


def killed(dataset: DatasetSpec, split: Split) -> LabeledImages | None:
    """What a machine does to a process that takes too much memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    return None


def test_two_processes_draw_the_same_figures_in_the_same_order_with_the_same_notes(tmp_path: Path) -> None:
    comparison = two_networks(StorePaths(tmp_path / "results"))
    alone, notes = make_figures(comparison, tmp_path / "alone", images=no_images, processes=1)
    shared, notes_shared = make_figures(comparison, tmp_path / "shared", images=no_images, processes=2)
    assert len(alone) == 8
    assert [figure.name for figure in shared] == [figure.name for figure in alone]
    assert notes_shared == notes and any("predictions.npz cannot be read" in note for note in notes)
    for one, other in zip(alone, shared, strict=True):
        assert one.png.read_bytes() == other.png.read_bytes() and one.svg.read_bytes() == other.svg.read_bytes()


def test_a_process_that_is_killed_is_told_and_stops_no_report(tmp_path: Path) -> None:
    comparison = two_networks(StorePaths(tmp_path / "results"))
    figures, notes = make_figures(comparison, tmp_path / "figures", images=killed, processes=2)
    assert notes and all("was killed, perhaps because memory ran out" in n or "predictions.npz" in n for n in notes)
    assert {path.suffix for path in (tmp_path / "figures").glob("*")} <= {".png", ".svg"}
    assert all(figure.png.exists() and figure.svg.exists() for figure in figures)
