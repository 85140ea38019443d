"""A grid's figures: results/reports/<grid>/figures/<name>.{png,svg}. A figure that cannot be made stops no other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from transfergrid.data import LabeledImages
from transfergrid.errors import one_line
from transfergrid.images_at_hand import Images
from transfergrid.report.comparison import Comparison
from transfergrid.report.figures import (
    accuracy,
    architecture,
    cache,
    confusions,
    cost,
    curves,
    few_images,
    pictures,
    reliability,
    style,
)
from transfergrid.report.figures.material import Material, Section, Sketch, row_key
from transfergrid.specs import DatasetSpec, Split

__all__ = ["Figure", "make_figures", "no_images", "row_key"]

# In the order in which a reader meets them.
_KINDS = (accuracy, few_images, cost, curves, confusions, reliability, pictures, architecture, cache)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure in its two files. Title and caption are plain text and may hold any character of a name.

    row_keys: of the rows it shows, as row_key() gives them. models: theirs, in the same order, each once.
    """

    name: str
    title: str
    caption: str
    png: Path
    svg: Path
    section: Section
    row_keys: tuple[str, ...]
    models: tuple[str, ...]


def no_images(dataset: DatasetSpec, split: Split) -> LabeledImages | None:
    """Figures that show images of the data are left out, with a note."""
    return None


def make_figures(comparison: Comparison, folder: Path, *, images: Images = no_images) -> tuple[list[Figure], list[str]]:
    """Write every figure that can be made; (figures, notes on those that cannot). Older figures there are removed.

    images: gives the images of a data set's split where this machine has them, see images_at_hand.
    """
    made: list[Figure] = []
    notes: list[str] = []
    material = Material(comparison=comparison, images=images)
    with style.house_style():
        for sketch in _sketches(material, notes):
            try:
                png, svg = style.save(sketch.draw(), folder, sketch.name)
            except Exception as error:  # whatever is wrong with one figure's files, the others are wanted
                notes.append(f"no figure {sketch.title!r}: {one_line(error)}")
                continue
            made.append(_figure(sketch, png, svg))
    _remove_others(folder, {path.name for figure in made for path in (figure.png, figure.svg)})
    return made, notes


def _sketches(material: Material, notes: list[str]) -> Iterator[Sketch]:
    for kind in _KINDS:
        try:
            yield from kind.sketches(material)
        except Exception as error:
            notes.append(f"no more figures of {kind.__name__.rpartition('.')[2]}: {one_line(error)}")


def _figure(sketch: Sketch, png: Path, svg: Path) -> Figure:
    return Figure(
        name=sketch.name,
        title=sketch.title,
        caption=sketch.caption,
        png=png,
        svg=svg,
        section=sketch.section,
        row_keys=tuple(row_key(row) for row in sketch.rows),
        models=tuple(dict.fromkeys(row.model for row in sketch.rows)),
    )


def _remove_others(folder: Path, kept: set[str]) -> None:
    """Figures of rows that the grid no longer has."""
    for pattern in ("*.png", "*.svg"):
        for path in folder.glob(pattern):
            if path.name not in kept:
                path.unlink(missing_ok=True)
