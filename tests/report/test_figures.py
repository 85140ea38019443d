"""A grid's figures: what they show, that they can be read, and that one which cannot be made stops no other."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from figure_cases import images_of, run_of, trained
from PIL import Image
from report_cases import completed, write_grid

from transfergrid.paths import StorePaths
from transfergrid.report.analysis.comparison import Comparison, read_comparison
from transfergrid.report.analysis.per_class import confused_pairs
from transfergrid.report.figures import (
    Figure,
    accuracy,
    cost,
    curves,
    errors,
    make_figures,
    no_images,
    reliability,
    style,
)
from transfergrid.report.figures.cost import pareto_front
from transfergrid.report.figures.material import Material, Sketch, pages, row_labels
from transfergrid.report.figures.tiles import TILE_PX, tile
from transfergrid.report.figures.tracks import Track, binned_steps, mean_over_seeds, parted, smoothed, track
from transfergrid.specs import RunSpec
from transfergrid.training.evaluation import class_scores, confusion_matrix, scores

LONG = "timm/" + "very_long_network_name_" * 4 + "patch16_224"
ODD = "net_$x^2$_{<b>&"


def small_grid(store: StorePaths) -> Comparison:
    """A probe and a fine-tuning from it by two seeds, a pair's probe by one, and a network from scratch."""
    runs: list[tuple[RunSpec, str]] = []
    for seed in (0, 1):
        probe = run_of("probe", "tinynet_mnist", seed=seed)
        finetune = run_of("finetune", "tinynet_mnist", seed=seed, needs=(probe.run_id,))
        trained(store, probe, heads=2, epochs=2)
        trained(store, finetune, epochs=3, accuracy=0.9)
        runs += [(probe, ""), (finetune, "")]
    pair = run_of("probe", "tinynet_mnist+tinynet_cifar")
    trained(store, pair, epochs=2)
    runs.append((pair, ""))
    for extraction in pair.extractions:
        completed(store, extraction, metrics={}, details={"images": 260})
    scratch = run_of("scratch", "baseline_cnn", image_size_px=32)
    trained(store, scratch, accuracy=0.7)
    write_grid(store, "small", [*runs, (scratch, "")])
    return read_comparison("small", store)


@dataclass(frozen=True)
class Made:
    comparison: Comparison
    folder: Path
    figures: list[Figure]
    notes: list[str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("figures")
    comparison, folder = small_grid(StorePaths(root / "results")), root / "figures"
    folder.mkdir()
    (folder / "accuracy-of-a-row-that-is-gone.png").write_bytes(b"old")
    figures, notes = make_figures(comparison, folder, images=images_of(60))
    return Made(comparison, folder, figures, notes)


@pytest.fixture
def styled() -> Iterator[None]:
    with style.house_style():
        yield


# -------------------------------------------------------------------------------------------------------- all together
def test_every_section_has_its_figures_in_two_formats(made: Made) -> None:
    assert made.notes == []
    sections = [figure.section for figure in made.figures]
    assert {name: sections.count(name) for name in dict.fromkeys(sections)} == {
        "accuracy": 1,
        "cost": 1,
        "curves": 4,  # joined, the pair's, from scratch, and both probes together
        "errors": 4,
        "calibration": 1,
        "architecture": 3,
    }
    assert len({figure.name for figure in made.figures}) == len(made.figures) == 14
    assert all(figure.title.endswith("?") for figure in made.figures)
    assert len({figure.name.partition("-")[0] for figure in made.figures}) <= 8
    for figure in made.figures:
        with Image.open(figure.png) as image:
            width_px, height_px = image.size
            assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)
        assert 4.5 * 150 <= width_px <= 9 * 150 and 150 < height_px < 11 * 150, figure.name
        assert figure.svg.read_text().startswith("<?xml") and figure.svg.stat().st_size > 5_000


def test_a_figure_names_its_models_and_its_title_tells_the_phases(made: Made) -> None:
    models = {row.model for row in made.comparison.rows}
    assert all(figure.models and set(figure.models) <= models for figure in made.figures)
    joined = next(f for f in made.figures if f.section == "curves" and f.models == ("tinynet_mnist",))
    assert joined.title == "How did mnist · tinynet_mnist · probe and finetune learn?"


def test_only_the_figures_of_now_remain_in_the_folder(made: Made) -> None:
    there = {path.name for path in made.folder.iterdir()}
    assert there == {path.name for figure in made.figures for path in (figure.png, figure.svg)}


@pytest.mark.slow
def test_the_same_records_give_the_same_bytes(made: Made, styled: None, tmp_path: Path) -> None:
    material = Material(comparison=made.comparison, images=images_of(60))
    kinds = (accuracy, cost, curves, errors, reliability)
    firsts: list[Sketch] = [next(kind.sketches(material)) for kind in kinds]
    for sketch in firsts:
        for again in style.save(sketch.draw(), tmp_path, sketch.name):
            assert again.read_bytes() == (made.folder / again.name).read_bytes(), again.name


def test_a_missing_file_costs_its_own_figures_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transfergrid.report.figures._KINDS", (accuracy, curves, errors))
    store = StorePaths(tmp_path / "results")
    whole, broken = run_of("scratch", "baseline_cnn"), run_of("scratch", "resnet18_5m")
    for run in (whole, broken):
        trained(store, run)
    store.run(broken.run_id).metrics.unlink()
    store.run(broken.run_id).predictions.write_bytes(b"not a zip file")
    write_grid(store, "g", [(whole, ""), (broken, "")])
    figures, notes = make_figures(read_comparison("g", store), tmp_path / "figures", images=no_images)
    names = {figure.name.rsplit("-", 1)[0] for figure in figures}
    assert names == {"accuracy-mnist", "curves-mnist-baseline_cnn-scratch", "errors-mnist-baseline_cnn-scratch"}
    assert len(notes) == 3
    assert "How did mnist · resnet18_5m · scratch learn?" in notes[0] and "metrics.jsonl is missing" in notes[0]
    assert "settings" in notes[1].lower() and "predictions.npz cannot be read" in notes[2]


def test_a_grid_without_any_result_has_no_figures(tmp_path: Path) -> None:
    store = StorePaths(tmp_path)
    write_grid(store, "g", [(run_of("scratch", "baseline_cnn"), "")])
    assert make_figures(read_comparison("g", store), tmp_path / "figures") == ([], [])


# -------------------------------------------------------------------------------------------------------- can be read
@dataclass(frozen=True)
class DrawnText:
    text: str
    left: float
    top: float
    right: float
    bottom: float
    size_pt: float


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[DrawnText]:
    """Every text as it is really drawn into a PNG, in pixels from the top left."""
    from matplotlib.backends.backend_agg import RendererAgg

    seen: list[DrawnText] = []
    draw_text: Any = RendererAgg.draw_text

    def record(
        self: Any, gc: Any, x: float, y: float, s: str, prop: Any, angle: float, *rest: Any, **more: Any
    ) -> None:
        assert not more.get("ismath") and rest[:1] in ((), (False,)), f"{s} is drawn as a formula"
        width, height, descent = self.get_text_width_height_descent(s, prop, False)
        box = (x, y - height + descent, x + width, y + descent)
        if angle == 90:
            box = (x - height + descent, y - width, x + descent, y)
        seen.append(DrawnText(s, *box, prop.get_size_in_points()))
        draw_text(self, gc, x, y, s, prop, angle, *rest, **more)

    monkeypatch.setattr(RendererAgg, "draw_text", record)
    return seen


def overlapping(texts: Sequence[DrawnText]) -> list[tuple[str, str]]:
    """Pairs that share more than a pixel in both directions."""

    def shared(a: DrawnText, b: DrawnText) -> bool:
        across = min(a.right, b.right) - max(a.left, b.left)
        return across > 1 and min(a.bottom, b.bottom) - max(a.top, b.top) > 1

    return [(a.text, b.text) for a, b in combinations(texts, 2) if shared(a, b)]


def assert_legible(sketch: Sketch, drawn: list[DrawnText]) -> list[str]:
    """No text over another, none cut, none small; the texts drawn."""
    drawn.clear()
    figure = sketch.draw()
    style.lay_out(figure)
    figure.canvas.draw()
    width_px, height_px = figure.get_size_inches() * 150
    assert overlapping(drawn) == [], sketch.name
    cut = [t.text for t in drawn if t.left < 0 or t.top < 0 or t.right > width_px + 1 or t.bottom > height_px + 1]
    assert cut == [], sketch.name
    assert min(t.size_pt for t in drawn) >= 7, sketch.name
    return [t.text for t in drawn]


def many_models(store: StorePaths, number: int) -> Comparison:
    """Every eighth with a name too long for its line, every eighth with odd characters."""
    runs = []
    for i in range(number):
        name = f"{LONG}_{i}" if i % 8 == 3 else f"{ODD}_{i}" if i % 8 == 6 else f"network_{i}"
        run = run_of("probe", name)
        costs: dict[str, Any] = {"parameters": 10**6 * (1 + i), "size_mb": 4.0 * (1 + i), "gpu_s": 10.0 * (number - i)}
        trained(store, run, accuracy=0.5 + i / 2 / number, epochs=2, **costs)
        completed(store, run.extractions[0])
        runs.append((run, ""))
    write_grid(store, "many", runs)
    return read_comparison("many", store)


@pytest.mark.parametrize("number", [10, pytest.param(50, marks=pytest.mark.slow)])
def test_labels_of_many_models_stay_legible(number: int, tmp_path: Path, styled: None, drawn: list[DrawnText]) -> None:
    comparison = many_models(StorePaths(tmp_path / "results"), number)
    material = Material(comparison=comparison, images=no_images)
    sketches = [*accuracy.sketches(material), *cost.sketches(material)]
    sketches += [s for s in curves.sketches(material) if s.name.startswith("settings")]
    intervals, costs, *_ = [assert_legible(sketch, drawn) for sketch in sketches]
    # Every character as it was typed, whatever the line it stands on.
    assert all(row.model in "".join(intervals) for row, _ in material.rows)
    if number <= 12:  # all are named in each of the three panels
        assert all("".join(costs).count(row.model) == 3 for row, _ in material.rows)


@pytest.mark.parametrize(("without", "counted"), [(1, "1 row"), (2, "2 rows")])
def test_the_panel_of_gpu_seconds_says_how_many_rows_ran_without_a_gpu(
    without: int, counted: str, tmp_path: Path, styled: None, drawn: list[DrawnText]
) -> None:
    rows = [
        replace(row, gpu_s=0.0 if i < without else 9.0, full_wall_s=3.0, full_gpu_s=0.0 if i < without else 10.0)
        for i, row in enumerate(many_models(StorePaths(tmp_path / "results"), 4).rows)
    ]
    sketch = Sketch(name="pareto", title="", caption="", section="cost", rows=(), panels=lambda: cost.draw(rows))
    texts = assert_legible(sketch, drawn)
    assert {
        "full GPU seconds: one seed, with all that it is made from",
        f"(not shown: {counted} ran without a GPU)",
    } <= set(texts)
    assert sum("not shown" in text for text in texts) == 1
    rows = [replace(row, gpu_s=0.0, full_gpu_s=0.0) for row in rows]
    drawn.clear()
    cost.draw(rows).canvas.draw()
    assert "full wall seconds: one seed, with all that it is made from (no GPU)" in [t.text for t in drawn]


@pytest.mark.slow
def test_the_figures_of_single_rows_are_legible_with_long_class_names(
    tmp_path: Path, styled: None, drawn: list[DrawnText]
) -> None:
    store = StorePaths(tmp_path / "results")
    run = run_of("scratch", ODD, num_classes=30)
    names = [f"a rather long name <of> class $no$ {i}" for i in range(30)]
    trained(store, run, accuracy=0.6, class_names=names)
    write_grid(store, "g", [(run, "")])
    material = Material(comparison=read_comparison("g", store), images=images_of(60, num_classes=30))
    kinds = (curves, errors, reliability)
    for sketch in (sketch for kind in kinds for sketch in kind.sketches(material)):
        assert_legible(sketch, drawn)


def test_two_phases_are_told_apart_in_one_curve(made: Made, tmp_path: Path, drawn: list[DrawnText]) -> None:
    material = Material(comparison=made.comparison, images=no_images)
    with style.house_style():
        texts = assert_legible(next(curves.sketches(material)), drawn)
    assert texts.count("probe ◂") == texts.count("▸ finetune") == 4


def test_architectures_are_legible(made: Made, tmp_path: Path, drawn: list[DrawnText]) -> None:
    from transfergrid.report.figures import architecture

    material = Material(comparison=made.comparison, images=no_images)
    with style.house_style():
        texts = [assert_legible(sketch, drawn) for sketch in architecture.sketches(material)]
    assert {"What does tinynet_mnist consist of?", "61,338 parameters"} <= set(texts[0])
    assert "head on 64 + 64 · 10 · 1.29k" in texts[1] and "tinynet_cifar" in texts[1]
    assert {"What does baseline_cnn consist of?", "242,474 parameters"} <= set(texts[2])


# ------------------------------------------------------------------------------------------------------------- numbers
def test_the_pareto_front_holds_what_nothing_cheaper_beats() -> None:
    points = [(3.0, 0.9), (1.0, 0.5), (2.0, 0.5), (2.0, 0.8), (4.0, 0.9), (5.0, 0.95), (1.0, 0.4)]
    assert pareto_front(points) == [1, 3, 0, 5]
    assert pareto_front([]) == []


def test_a_joined_curve_counts_epochs_and_steps_through_both_phases(made: Made) -> None:
    material = Material(comparison=made.comparison, images=no_images)
    finetune = next(runs[0] for row, runs in material.rows if row.phase == "finetune")
    one = track(material, finetune)
    assert one.phases == ("probe", "finetune") and one.joints == [(2, 8)]
    assert one.epochs["train/loss"] == ([1, 2, 3, 4, 5], [1.0, 0.5, 1.0, 0.5, pytest.approx(1 / 3)])
    xs, losses = one.steps["train/loss"]
    assert xs == list(range(1, 21))
    assert losses[:3] == [1.0, 0.5, pytest.approx(1 / 3)]  # of the chosen head; the other's are 9
    assert losses[8:10] == [1.0, 0.5]


def test_a_solved_probe_has_no_curve_and_finetuning_from_it_begins_at_its_own_first_epoch(tmp_path: Path) -> None:
    store = StorePaths(tmp_path)
    probe = replace(run_of("probe", "tinynet_mnist", solver="lbfgs"), seed=None)
    tuned = run_of("finetune", "tinynet_mnist", needs=(probe.run_id,))
    trained(store, probe)
    record = trained(store, tuned, epochs=3)
    write_grid(store, "small", [(probe, ""), (tuned, "")])
    material = Material(comparison=read_comparison("small", store), images=images_of(60))
    assert [sketch.rows[0].phase for sketch in curves.sketches(material)] == ["finetune"]
    one = track(material, record)
    assert (one.phases, one.joints, one.epochs["train/loss"][0]) == (("finetune",), [], [1, 2, 3])


def test_curves_are_parted_where_a_phase_ends() -> None:
    assert parted([1, 2, 3, 4], [0.1, 0.2, 0.3, 0.4], [2]) == [([1, 2], [0.1, 0.2]), ([3, 4], [0.3, 0.4])]
    assert parted([], [], []) == []


def test_the_mean_over_seeds_stands_where_every_seed_has_a_value() -> None:
    tracks = [Track(("scratch",), {"val/loss": ([1, 2], [1.0, 0.5])}), Track(("scratch",), {"val/loss": ([1], [0.5])})]
    assert mean_over_seeds(tracks, "val/loss") == ([1], [0.75])
    assert mean_over_seeds(tracks, "test/loss") == ([], [])


def test_batches_are_binned_with_their_range() -> None:
    steps = list(range(1, 601))
    two = [Track(("scratch",), steps={"train/loss": (steps, [float(x + seed) for x in steps])}) for seed in (0, 1)]
    [(x_B, low_B, high_B, mean_B)] = binned_steps(two, "train/loss")
    assert len(x_B) == 300 and x_B[:2].tolist() == [1.5, 3.5]
    assert low_B[:2].tolist() == [1.0, 3.0] and high_B[:2].tolist() == [3.0, 5.0]
    assert mean_B[150] == pytest.approx(302.0)
    assert binned_steps(two, "train/accuracy") == []
    assert smoothed(np.array([0.0, 3.0, 6.0]), reach=1).tolist() == [1.5, 3.0, 4.5]


def test_class_scores_are_those_whose_means_are_the_macro_scores() -> None:
    generator = np.random.default_rng(0)
    label_N, logits_NC = generator.integers(0, 5, 200), generator.normal(size=(200, 5))
    logits_NC[:, 4] = -9  # one class is never predicted
    found = class_scores(confusion_matrix(label_N, logits_NC.argmax(1), num_classes=5))
    macro = scores(logits_NC, label_N, split="test")
    assert found.precision_C.mean() == pytest.approx(macro["test_macro_precision"], abs=1e-12)
    assert found.recall_C.mean() == pytest.approx(macro["test_macro_recall"], abs=1e-12)
    assert found.f1_C.mean() == pytest.approx(macro["test_macro_f1"], abs=1e-12)
    assert found.precision_C[4] == found.f1_C[4] == 0


def test_the_most_confused_pairs_come_first() -> None:
    counts_CC = np.array([[9, 2, 0], [5, 7, 2], [0, 0, 8]])
    assert confused_pairs(counts_CC, most=8) == [(1, 0, 5), (0, 1, 2), (1, 2, 2)]
    assert confused_pairs(counts_CC, most=1) == [(1, 0, 5)]


def test_a_mean_of_some_of_the_seeds_is_told_below_its_figure(made: Made) -> None:
    rows = made.comparison.rows
    partly = [replace(row, status="2/5 completed") if row.model == "baseline_cnn" else row for row in rows]
    captions = []
    for shown in (rows, tuple(partly)):
        material = Material(comparison=replace(made.comparison, rows=shown), images=no_images)
        captions.append([sketch.caption for sketch in accuracy.sketches(material)])
    assert captions[1][0] == f"{captions[0][0]} Not of all seeds: baseline_cnn (2/5 completed)."


def test_a_tile_holds_the_whole_image() -> None:
    wide = np.zeros((4, 8, 1), dtype=np.uint8)
    made_HWC = tile(wide)
    assert made_HWC.shape == (TILE_PX, TILE_PX, 3)
    assert (made_HWC[TILE_PX // 2] == 0).all() and (made_HWC[0] == 255).all()


def test_rows_are_named_by_what_tells_them_apart(made: Made) -> None:
    rows = list(made.comparison.rows)
    assert row_labels(rows[:1]) == ["tinynet_mnist"]
    assert row_labels(rows[:2]) == ["tinynet_mnist · probe", "tinynet_mnist · finetune"]


# --------------------------------------------------------------------------------------------------------------- texts
def test_long_names_are_broken_at_their_joints_and_lose_nothing() -> None:
    assert style.wrap("short", 10) == "short"
    assert style.wrap("two\nlines\x07", 20) == "two lines"
    assert style.wrap("resnet18+googlenet · random_weights · probe", 26).split("\n") == [
        "resnet18+googlenet ·",
        "random_weights · probe",
    ]
    assert style.wrap("regnet_y_400mf+resnext", 16).split("\n") == ["regnet_y_400mf+", "resnext"]
    assert style.wrap("abcdefghijklmnop_qrs", 9).replace("\n", "") == "abcdefghijklmnop_qrs"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.2471, "0.247"), (12.0, "12"), (999.6, "1k"), (61_338, "61.3k"), (11_181_642, "11.2M"), (2e9, "2G")],
)
def test_counts_have_three_digits_and_a_unit(value: float, text: str) -> None:
    assert style.count_text(value) == text


def test_neighbours_are_spread_no_further_than_they_must() -> None:
    assert style.spread([0.5, 0.9], [0.1, 0.1], 0.0, 1.0) == [0.5, 0.9]
    assert style.spread([0.5, 0.5], [0.1, 0.1], 0.0, 1.0) == pytest.approx([0.45, 0.55])
    assert style.spread([0.5, 0.5], [0.1, 0.3], 0.0, 1.0) == pytest.approx([0.4, 0.6])
    assert style.spread([1.0, 0.99], [0.1, 0.1], 0.0, 1.0) == pytest.approx([1.0, 0.9])
    assert style.spread([0.0] * 3, [0.6] * 3, 0.0, 1.0) == pytest.approx([0.0, 0.5, 1.0])


def test_many_items_fold_into_pages() -> None:
    assert [(suffix, list(page)) for suffix, page in pages(list(range(5)), 2)] == [
        ("", [0, 1]),
        ("-2", [2, 3]),
        ("-3", [4]),
    ]
    assert list(pages([], 2)) == []


def test_the_best_row_is_marked_and_so_is_what_it_is_best_on(made: Made, styled: None) -> None:
    [sketch] = accuracy.sketches(Material(comparison=made.comparison, images=no_images))
    figure = sketch.draw()
    names = [label.get_text() for label in figure.axes[0].get_yticklabels() if label.get_fontweight() == "bold"]
    assert names == ["tinynet_mnist · finetune"] and "The marked row is the best on val." in sketch.caption
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["mean and 95 % interval", "best on val"]
    accuracies = [row.test_accuracy or 0 for row in sketch.rows]
    assert accuracies == sorted(accuracies, reverse=True) and len(accuracies) == len(made.comparison.rows)


def test_the_gap_between_training_and_test_images_is_in_points(made: Made, styled: None) -> None:
    [sketch] = accuracy.sketches(Material(comparison=made.comparison, images=no_images))
    gaps = [np.asarray(line.get_xdata())[0] for line in sketch.draw().axes[1].lines if line.get_marker() == "s"]
    expected = [100 * ((row.train_accuracy or 0) - (row.test_accuracy or 0)) for row in sketch.rows]
    assert gaps == pytest.approx(expected)
    without = [replace(row, train_accuracy=None) for row in sketch.rows]
    assert len(accuracy.draw(without, [], chosen_on="val").axes) == 1


def test_no_panel_is_empty(made: Made, styled: None) -> None:
    for number in (1, 7):
        confidence_N, correct_N = np.linspace(0.1, 1, 50), np.arange(50) % 2 == 0
        axes = reliability.draw([("a", confidence_N, correct_N)] * number).axes
        assert len(axes) == 2 * number and all(a.patches for a in axes)
        assert {a.get_ylabel() for a in axes} >= {"accuracy [%]", "images [%]"}
    material = Material(comparison=made.comparison, images=no_images)
    assert len(next(errors.sketches(material)).draw().axes) == 3  # no images are at hand
    unlogged = Track(("scratch",), {name: ([1, 2], [1.0, 0.5]) for name in ("val/loss", "val/accuracy")})
    assert len(curves.draw([unlogged]).axes) == 2


def test_a_training_loss_that_contains_label_smoothing_is_told(tmp_path: Path) -> None:
    store = StorePaths(tmp_path)
    plain, smoothed_one = (run_of("scratch", "baseline_cnn", label_smoothing=s) for s in (0.0, 0.1))
    for run in (plain, smoothed_one):
        trained(store, run)
    write_grid(store, "g", [(plain, ""), (smoothed_one, "smoothed")])
    material = Material(comparison=read_comparison("g", store), images=no_images)
    captions = {
        sketch.rows[-1].variant: sketch.caption for sketch in curves.sketches(material) if len(sketch.rows) == 1
    }
    assert "label smoothing of 0.1" in captions["smoothed"] and "smoothing" not in captions[""]


def test_a_letter_that_no_font_has_stands_as_its_number_and_not_as_a_box() -> None:
    assert style.clean("\U00012345 chat \U00012346\n Ünïcödé Ωж") == "U+12345 chat U+12346 Ünïcödé Ωж"


def test_a_letter_that_another_font_has_is_drawn_with_it(drawn: list[DrawnText]) -> None:
    letter = "\u23b8"  # of STIX, which comes with matplotlib; DejaVu Sans lacks it
    assert style.is_drawable(letter) and style.clean(letter) == letter
    with style.house_style(letter), warnings.catch_warnings(action="error"):
        figure = style.new_figure(2, 1)
        figure.suptitle(letter)
        figure.canvas.draw()
    assert [text.text for text in drawn] == [letter]


def test_a_class_that_no_font_can_show_is_named_by_its_number_and_the_caption_tells(tmp_path: Path) -> None:
    store = StorePaths(tmp_path)
    run = run_of("scratch", "baseline_cnn", num_classes=2)
    trained(store, run, class_names=["\U00012345", "chat"])
    write_grid(store, "g", [(run, "")])
    [sketch] = errors.sketches(Material(comparison=read_comparison("g", store), images=no_images))
    with style.house_style():
        matrix = sketch.draw().axes[0]
    assert [label.get_text() for label in matrix.get_yticklabels()] == ["0", "chat"]
    assert "A number stands for a class whose name no font here can show" in sketch.caption
