"""Sample images: which are shown of each class, and where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from figure_cases import images_of, run_of, trained
from report_cases import write_grid

from transfergrid.data import ArrayImages
from transfergrid.paths import StorePaths
from transfergrid.report.analysis.comparison import read_comparison
from transfergrid.report.figures import errors
from transfergrid.report.figures.material import Material
from transfergrid.report.figures.samples import most_confused, samples_of
from transfergrid.report.figures.tiles import STEP_PX
from transfergrid.store.records import make_predictions


def test_of_each_class_the_first_image_trained_on_right_and_wrong_is_shown() -> None:
    """Image i is of brightness 10 i. Two classes; of the second all test images are right."""
    label_N, said_N = np.array([0, 1, 0, 1, 0]), np.array([1, 1, 0, 1, 1])
    pixels = np.repeat(np.arange(5, dtype=np.uint8), 8 * 8 * 3).reshape(5, 8, 8, 3)
    test = ArrayImages(10 * pixels, label_N, ("a", "b"))
    train = ArrayImages(10 * pixels + 100, 1 - label_N, ("a", "b"))
    predictions = make_predictions(np.arange(5), label_N, np.eye(2, dtype=np.float32)[said_N])
    shown = samples_of([0, 1], predictions, test, train)
    middle = STEP_PX // 2
    brightness = {name: [int(strip[middle, i * STEP_PX + middle, 0]) for i in (0, 1)] for name, strip in shown.lines}
    assert brightness == {"train split": [110, 100], "right": [20, 10], "wrong": [0, 255]}  # white: there is none
    assert shown.said == [1, None]
    assert [name for name, _ in samples_of([0, 1], predictions, test, None).lines] == ["right", "wrong"]


def test_of_many_classes_those_with_the_most_errors_are_shown() -> None:
    counts_CC = 50 * np.eye(30, dtype=np.int64)
    counts_CC[10:20, 0] = 1 + np.arange(10)
    assert most_confused(counts_CC) == list(range(10, 20))
    assert most_confused(counts_CC[:4, :4]) == [0, 1, 2, 3]


def test_the_best_row_shows_images_of_the_train_split_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = StorePaths(tmp_path / "results")
    best, other = (run_of("scratch", name, num_classes=2) for name in ("baseline_cnn", "resnet18_5m"))
    trained(store, best, accuracy=0.9)
    trained(store, other, accuracy=0.3)
    write_grid(store, "g", [(other, ""), (best, "")])
    material = Material(comparison=read_comparison("g", store), images=images_of(60, num_classes=2))
    monkeypatch.setattr(errors, "draw", lambda *drawn: drawn[-1])
    shown: dict[str, Any] = {sketch.rows[0].model: sketch.panels() for sketch in errors.sketches(material)}
    names = {model: [name for name, _ in samples.lines] for model, samples in shown.items()}
    assert names == {"baseline_cnn": ["train split", "right", "wrong"], "resnet18_5m": ["right", "wrong"]}
