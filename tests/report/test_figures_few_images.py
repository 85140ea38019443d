"""Accuracy against the number of images: which rows make a line, and a figure whose bars say what the rows say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import report_cases as cases

from transfergrid.paths import StorePaths
from transfergrid.report import figures, several
from transfergrid.report.analysis.comparison import Comparison, read_comparison
from transfergrid.report.figures import few_images, style
from transfergrid.report.figures.material import Material


def comparison(folder: Path) -> Comparison:
    """Two models on 10, 50 and all images, three seeds each; a third on all of them only."""
    store = StorePaths(folder)
    runs = []
    for model, gain in (("resnet18", 0.0), ("resnet18+googlenet", 0.05), ("vgg16", 0.01)):
        for shots, accuracy in ((1, 0.5), (5, 0.7), (None, 0.9)):
            for seed in (0, 1, 2):
                if model == "vgg16" and shots is not None:
                    continue
                run = replace(cases.spec("probe", model, seed=seed), shots=shots)
                runs.append((run, "" if shots is None else f"shots_{shots}"))
                n_train = 54_000 if shots is None else 10 * shots
                cases.completed(store, run, test_accuracy=accuracy + gain + 0.01 * seed, n_train=n_train)
    cases.write_grid(store, "few", runs)
    return read_comparison("few", store)


def test_a_model_on_three_numbers_of_images_is_a_line_and_one_on_all_of_them_alone_is_not(tmp_path: Path) -> None:
    lines = few_images.by_model(comparison(tmp_path).rows)
    assert {model: [row.n_train for row in rows] for model, rows in lines.items()} == {
        "resnet18": [10, 50, 54_000],
        "resnet18+googlenet": [10, 50, 54_000],
    }


def test_other_weights_and_other_grids_are_lines_of_their_own(tmp_path: Path) -> None:
    rows = comparison(tmp_path).rows
    others = [replace(row, weights="random") for row in rows]
    lines = few_images.by_model([*rows, *others])
    assert {name: len(points) for name, points in lines.items()} == {
        f"{model} · {weights}": 3
        for weights in (rows[0].weights, "random")
        for model in ("resnet18", "resnet18+googlenet")
    }
    again = several.named_apart(several.joined([comparison(tmp_path), renamed(comparison(tmp_path), "more")])).rows
    assert list(few_images.by_model(again)) == [
        f"{model} · {grid}" for grid in ("few", "more") for model in ("resnet18", "resnet18+googlenet")
    ]


def renamed(found: Comparison, grid: str) -> Comparison:
    return replace(found, grid=grid, rows=tuple(replace(row, grid=grid) for row in found.rows))


def test_the_points_are_the_rows_means_and_the_bars_their_intervals(tmp_path: Path) -> None:
    lines = few_images.by_model(comparison(tmp_path).rows)
    with style.house_style():
        axes = few_images.draw(lines).axes[0]
    points = [np.asarray(line.get_ydata()) for line in axes.lines]
    curves, bars = [p for p in points if len(p) == 3], [p for p in points if len(p) == 2]
    assert [curve.round(6).tolist() for curve in curves] == [[51, 71, 91], [56, 76, 96]]
    row = lines["resnet18"][0]
    assert bars[0].tolist() == [100 * (row.ci95_low or 0), 100 * (row.ci95_high or 0)]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["10", "50", "54,000"]


def test_it_stands_among_the_figures_of_a_report(tmp_path: Path) -> None:
    assert few_images in figures._KINDS
    (sketch,) = few_images.sketches(Material(comparison=comparison(tmp_path), images=figures.no_images))
    assert (sketch.section, len(sketch.rows)) == ("few images", 6) and sketch.name.startswith("images-mnist-probe-")
    with style.house_style():
        png, _ = style.save(sketch.draw(), tmp_path, sketch.name)
    assert png.stat().st_size > 5_000
