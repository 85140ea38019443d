"""What the feature cache saved: forward passes done once, against those that every probe would have done for itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from transfergrid.report.analysis.rows import ComparisonRow
from transfergrid.report.figures import style
from transfergrid.report.figures.material import Material, Sketch, group_name
from transfergrid.specs import RunSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Passes:
    """Images sent through one frozen backbone: `done` to fill the cache, `needed` by the probes' training without it.

    runs: probes that read its features.
    """

    backbone: str
    done: int
    needed: int
    runs: int


def sketches(material: Material) -> Iterator[Sketch]:
    for dataset in material.datasets:
        passes = forward_passes(material, dataset)
        rows = tuple(row for row, runs in material.rows if row.dataset == dataset and runs[0].spec.extractions)
        for number, page in enumerate(style.columns(passes, per_column=40, per_page=1)):
            yield Sketch(
                name=group_name("forward-passes", dataset) + style.page_suffix(number),
                title=f"Forward passes on {dataset}, with the cache and without",
                caption=_caption(passes, rows),
                section="cache",
                rows=rows,
                draw=partial(draw_passes, page[0], title=dataset),
            )


def forward_passes(material: Material, dataset: str) -> list[Passes]:
    """Per extraction. Needed: epochs x training images of each probe, one pass for a solved one; its evaluations are
    not counted.

    A probe that stands in several grids of a report was trained once.
    """
    found: dict[RunSpec, Passes] = {}
    probes = {run.run_id: run for row, runs in material.rows if row.dataset == dataset for run in runs}
    for run in probes.values():
        for extraction in run.spec.extractions:
            if extraction not in found:
                found[extraction] = Passes(_name(extraction), _images_extracted(material, extraction), 0, 0)
            before = found[extraction]
            needed = before.needed + (run.epochs or 1) * (run.n_train or 0)
            found[extraction] = replace(before, needed=needed, runs=before.runs + 1)
    return sorted(found.values(), key=lambda p: (-p.needed, p.backbone))


def _name(extraction: RunSpec) -> str:
    statistics = extraction.extract.bn_statistics if extraction.extract is not None else "imagenet"
    weights = extraction.backbones[0].weights.label
    return f"{extraction.model} · {weights}" + (" · bn_target" if statistics == "target" else "")


def _images_extracted(material: Material, extraction: RunSpec) -> int:
    """0 where the features came from another's cache."""
    record = material.record(extraction.run_id)
    return int(record.details.get("images", 0)) if record is not None else 0


def _caption(passes: Sequence[Passes], rows: Sequence[ComparisonRow]) -> str:
    done, needed = sum(p.done for p in passes), sum(p.needed for p in passes)
    text = "Images that each frozen backbone reads. With the cache: each image once. Without it: epochs x training "
    text += f"images of all probes. Together {done:,} against {needed:,}"
    text += f", {style.count_text(needed / done)} times as many." if done else "; the features were there already."
    return f"{text} Evaluations, and learning rates that share one pass, are not counted."


def draw_passes(passes: Sequence[Passes], *, title: str) -> Figure:
    from matplotlib.patches import Patch

    figure = style.new_figure(style.NARROW_IN, 1.3 + 0.34 * max(2, len(passes)), style.shorten(title, 80))
    axes = figure.subplots()
    style.name_lines(axes, style.shorten_all([p.backbone for p in passes], 40))
    looks: tuple[dict[str, Any], ...] = (
        {"facecolor": style.PALE, "edgecolor": style.GREY, "hatch": "////"},
        {"facecolor": style.BLUE, "edgecolor": style.BLUE},
    )
    counts = [count for p in passes for count in (p.done, p.needed) if count]
    axes.set_xlim(0, 1.3 * max(counts, default=1))
    style.count_axis(axes)
    for y, p in enumerate(passes):
        ratio = f" (x {style.count_text(p.needed / p.done)})" if p.done else ""
        texts = (f"{p.done:,}" if p.done else "none: there before", f"{p.needed:,}{ratio}")
        for offset, count, look, text in zip((0.2, -0.2), (p.done, p.needed), looks[::-1], texts, strict=True):
            axes.barh(y + offset, count, height=0.36, **look)
            axes.annotate(text, (count, y + offset), (3, 0), textcoords="offset points", va="center", fontsize=7)
    axes.set_xlabel("forward passes (images)")
    style.legend_below(figure, [Patch(**look) for look in looks], ["without the cache", "done once"])
    return figure
