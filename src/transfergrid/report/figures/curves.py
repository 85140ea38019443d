"""Accuracy and loss per epoch and per batch, and a study's settings laid over each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from transfergrid.report.analysis.rows import ComparisonRow
from transfergrid.report.figures import style
from transfergrid.report.figures.material import Material, Rows, Sketch, group_name, row_labels, row_name
from transfergrid.report.figures.tracks import Track, binned_steps, mean_over_seeds, parted, probe_of, track
from transfergrid.specs import TrainSettings
from transfergrid.store.records import RunRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRAINED = ("probe", "finetune", "scratch")
LINES_TOLD_APART = 12  # of curves laid over each other; the others are grey
WHAT_IS_DRAWN = (
    "Thin: single seeds; thick: their mean. The training curve is the running mean while the weights change, on "
    "augmented images; val and test are evaluated after the epoch. Per batch: the pale band spans all batches of all "
    "seeds, the line is their running mean."
)
JOINT = (
    " The vertical line separates the probe from fine-tuning. Curves may jump there: the probe saw plain images and "
    "stored BatchNorm statistics, fine-tuning sees augmented images and, unless bn=eval, the statistics of each batch."
)


def sketches(material: Material) -> Iterator[Sketch]:
    yield from _of_rows(material)
    for (dataset, phase), of_phase in material.groups().items():
        rows = tuple((row, runs) for row, runs in of_phase if not any(r.spec.is_solved for r in runs))
        if phase in TRAINED and len(rows) > 1:
            yield _of_settings(material, dataset, phase, rows)


# ----------------------------------------------------------------------------------------------------------- one row
def _of_rows(material: Material) -> Iterator[Sketch]:
    probes = {run.run_id: row for row, runs in material.rows if row.phase == "probe" for run in runs}
    joined: set[str] = set()
    for row, runs in material.rows:
        if row.phase != "finetune":
            continue
        ids = [probe.run_id for run in runs if (probe := probe_of(material, run)) is not None]
        joined |= set(ids)
        rows = dict.fromkeys([*(probes[i] for i in ids if i in probes), row])
        yield _of_row(material, runs, tuple(rows))
    for row, runs in material.rows:
        is_trained = row.phase == "scratch" or (row.phase == "probe" and not any(r.spec.is_solved for r in runs))
        if is_trained and not (row.phase == "probe" and joined.issuperset(r.run_id for r in runs)):
            yield _of_row(material, runs, (row,))


def _of_row(material: Material, runs: Sequence[RunRecord], rows: tuple[ComparisonRow, ...]) -> Sketch:
    """rows: the runs' own is the last; before it stand those of the probes that it started from."""
    row = rows[-1]
    is_joined = any(probe_of(material, run) is not None for run in runs)
    phases = "probe and finetune" if is_joined else row.phase
    return Sketch(
        name=row_name("curves", row),
        title=f"How did {' · '.join(filter(None, (row.dataset, row.model, phases, row.variant)))} learn?",
        caption=WHAT_IS_DRAWN + (JOINT if is_joined else "") + _smoothing(material, runs),
        section="curves",
        rows=rows,
        panels=lambda: draw([track(material, run) for run in runs]),
    )


def _smoothing(material: Material, runs: Sequence[RunRecord]) -> str:
    """What raises the training loss above the others, where something does."""
    trainings = [*runs, *filter(None, (probe_of(material, run) for run in runs))]
    shares = {s.label_smoothing for r in trainings if isinstance(s := r.spec.settings, TrainSettings)} - {0.0}
    if not shares:
        return ""
    values = " or ".join(f"{share:g}" for share in sorted(shares))
    return f" The training loss contains label smoothing of {values}, so it never gets near 0; the other losses do not."


def draw(tracks: Sequence[Track]) -> Figure:
    """Above per epoch, below per batch where batches were logged; left accuracy, right loss."""
    has_batches = {"train/accuracy", "train/loss"} <= {name for one in tracks for name in one.steps}
    figure = style.new_figure(style.WIDE_IN, 5.2 if has_batches else 2.9)
    grid = figure.subplots(1 + has_batches, 2, squeeze=False)
    for column, (metric, unit) in enumerate((("accuracy", "accuracy [%]"), ("loss", "loss [nats]"))):
        for place, (axes, draw_panel) in enumerate(zip(grid[:, column], (per_epoch, per_batch), strict=False)):
            draw_panel(axes, tracks, metric)
            axes.set_ylabel(unit)
            _mark_joints(axes, tracks[0], place)
    style.legend_below(figure, *grid[0][0].get_legend_handles_labels())
    return figure


def per_epoch(axes: Axes, tracks: Sequence[Track], metric: str) -> None:
    scale = 100 if metric == "accuracy" else 1
    longest = 0
    joints = [epochs for epochs, _ in tracks[0].joints]
    for split, (colour, dashes, marker) in style.SPLITS.items():
        name = f"{split}/{metric}"
        xs, means = mean_over_seeds(tracks, name)
        if not xs:
            continue
        longest = max(longest, *xs)
        for one in tracks if len(tracks) > 1 else ():
            for part_xs, values in parted(*one.epochs[name], joints):
                axes.plot(part_xs, [scale * v for v in values], dashes, color=colour, linewidth=0.6, alpha=0.5)
        every, label = max(1, len(xs) // 15), split if split != "train" else "train (running mean)"
        for part_xs, values in parted(xs, means, joints):
            look: dict[str, Any] = {"color": colour, "marker": marker, "label": label}
            axes.plot(part_xs, [scale * v for v in values], dashes, markevery=every, **look)
            label = "_again"  # one entry in the legend
    axes.set_xlim(0.5, longest + 0.5)
    style.whole_numbers(axes, 10)
    axes.set_xlabel("epoch")


def per_batch(axes: Axes, tracks: Sequence[Track], metric: str) -> None:
    scale = 100 if metric == "accuracy" else 1
    parts = binned_steps(tracks, f"train/{metric}")
    for x_B, low_B, high_B, mean_B in parts:
        axes.fill_between(x_B, scale * low_B, scale * high_B, color=style.SKY, alpha=0.35, linewidth=0)
        axes.plot(x_B, scale * mean_B, color=style.BLUE, marker="o" if len(x_B) == 1 else "")
    axes.set_xlim(0, parts[-1][0][-1] + 1)
    axes.set_xlabel("batch")
    style.whole_numbers(axes, 7)


def _mark_joints(axes: Axes, first: Track, place: int) -> None:
    """A line where one phase ends, and the names of the phases on either side, above the axes."""
    if len(first.phases) < 2:
        return
    ends = [joint[place] + (0.5 if place == 0 else 0.0) for joint in first.joints]
    low, high = axes.get_xlim()
    for end in ends:
        axes.axvline(end, color=style.BLACK, linewidth=1.0, linestyle=(0, (4, 2)))
    share = (ends[0] - low) / (high - low)
    axes.annotate(
        f"{first.phases[0]} ◂", (share, 1.0), (-3, 3), "axes fraction", "offset points", ha="right", fontsize=7
    )
    axes.annotate(f"▸ {first.phases[1]}", (share, 1.0), (3, 3), "axes fraction", "offset points", fontsize=7)


# -------------------------------------------------------------------------------------------------- settings together
def _of_settings(material: Material, dataset: str, phase: str, rows: Rows) -> Sketch:
    split = "val" if any(row.val_accuracy is not None for row, _ in rows) else "test"
    grey = len(rows) - LINES_TOLD_APART
    caption = f"Accuracy on {split} after each epoch, mean over seeds; names stand in the order of the last epoch."
    if grey > 0:
        caption += f" The {LINES_TOLD_APART} best by their last epoch are named, the other {grey} are grey."
    return Sketch(
        name=group_name("settings", dataset, phase),
        title=f"How do the settings of {phase} on {dataset} compare, epoch by epoch?",
        caption=caption,
        section="curves",
        rows=tuple(row for row, _ in rows),
        panels=lambda: _draw_settings(material, rows, split),
    )


def _draw_settings(material: Material, rows: Rows, split: str) -> Figure:
    name = f"{split}/accuracy"
    # Of its own phase alone: where a fine-tuning began is another figure's matter.
    curves = [_own_phase(material, runs, name) for _, runs in rows]
    labels = row_labels([row for row, _ in rows])
    measured = [(label, xs, values) for label, (xs, values) in zip(labels, curves, strict=True) if xs]
    if not measured:
        raise ValueError(f"no {name} was recorded")
    measured.sort(key=lambda curve: -curve[2][-1])
    named = measured[:LINES_TOLD_APART]
    texts = [style.wrap(f"{label}: {100 * values[-1]:.2f} %", 42) for label, _, values in named]
    axes_in = max(2.6, sum(style.labels_in(texts)))
    figure = style.new_figure(style.WIDE_IN, axes_in + 1.0)
    axes = figure.subplots()
    for _, xs, values in measured[LINES_TOLD_APART:]:
        axes.plot(xs, [100 * v for v in values], color=style.PALE, linewidth=0.8, zorder=1)
    looks = [style.line_look(number) for number in range(len(named))]
    for (colour, dashes, marker), (_, xs, values) in zip(looks, named, strict=True):
        every = max(1, len(xs) // 12)
        axes.plot(xs, [100 * v for v in values], dashes, color=colour, marker=marker, markevery=every, zorder=3)
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"accuracy on {split} [%]")
    style.whole_numbers(axes, 12)
    axes.set_ylim(axes.get_ylim())
    axes.set_xlim(axes.get_xlim())
    points = [(xs[-1], 100 * values[-1]) for _, xs, values in named]
    style.side_labels(axes, points, texts, height_in=axes_in, looks=looks)
    return figure


def _own_phase(material: Material, runs: Sequence[RunRecord], name: str) -> tuple[list[int], list[float]]:
    tracks = [track(material, run) for run in runs]
    before = tracks[0].joints[-1][0] if tracks[0].joints else 0
    xs, values = mean_over_seeds(tracks, name)
    own = [(x - before, value) for x, value in zip(xs, values, strict=True) if x > before]
    return [x for x, _ in own], [value for _, value in own]
