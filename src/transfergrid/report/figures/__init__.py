"""A grid's figures: results/reports/<grid>/figures/<name>.{png,svg}. A figure that cannot be made stops no other."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

from transfergrid.data import LabeledImages
from transfergrid.data.images_at_hand import Images
from transfergrid.errors import one_line
from transfergrid.report.analysis.comparison import Comparison
from transfergrid.report.analysis.predictions import StoredPredictions
from transfergrid.report.figures import accuracy, architecture, cost, curves, errors, few_images, reliability, style
from transfergrid.report.figures.material import Material, Section, Sketch
from transfergrid.specs import DatasetSpec, Split
from transfergrid.store import durable

Files = tuple[Path, Path] | str  # a figure's PNG and SVG, or why it could not be made
Show = Callable[[int, int], None]
FEW = 20  # figures: fewer are drawn before other processes have started
MOST_PROCESSES = 8
# In the order in which a reader meets them.
_KINDS = (accuracy, few_images, cost, curves, errors, reliability, architecture)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure in its two files. Title and caption are plain text and may hold any character of a name.

    models: of the rows it shows, in their order, each once.
    """

    name: str
    title: str
    caption: str
    png: Path
    svg: Path
    section: Section
    models: tuple[str, ...]


def no_images(dataset: DatasetSpec, split: Split) -> LabeledImages | None:
    """Figures that show images of the data are left out, with a note."""
    return None


def make_figures(
    comparison: Comparison,
    folder: Path,
    *,
    images: Images = no_images,
    processes: int | None = None,
    show: Show = lambda done, total: None,
) -> tuple[list[Figure], list[str]]:
    """Write every figure that can be made; (figures, notes on those that cannot). Older figures there are removed.

    images: gives the images of a data set's split where this machine has them, see images_at_hand. processes: that
    share the drawing, and are sent `images`; None: as many as there are cores, where there are many figures. show: is
    told (how many are done, of how many) after each.
    """
    notes: list[str] = []
    material = Material(comparison=comparison, images=images)
    sketches = list(_sketches(material, notes))
    if processes is None:
        processes = 1 if len(sketches) < FEW else min(MOST_PROCESSES, len(os.sched_getaffinity(0)))
    drawing = _draw_in_processes(processes, sketches, material, folder) if processes > 1 else None
    files_of: dict[int, Files] = {}
    for position, files in drawing or _draw(sketches, range(len(sketches)), folder, material.letters()):
        files_of[position] = files
        show(len(files_of), len(sketches))
    figures = []
    for position, sketch in enumerate(sketches):
        files = files_of[position]
        if isinstance(files, str):
            notes.append(f"no figure {sketch.title!r}: {files}")
        else:
            figures.append(_figure(sketch, *files))
    files_now = {path for figure in figures for path in (figure.png, figure.svg)}
    for path in {*folder.glob("*.png"), *folder.glob("*.svg")} - files_now:  # of rows that the grid no longer has
        path.unlink(missing_ok=True)
    return figures, notes


def _draw(
    sketches: Sequence[Sketch], positions: Sequence[int], folder: Path, letters: str
) -> Iterator[tuple[int, Files]]:
    for position in positions:
        sketch = sketches[position]
        try:
            with style.house_style(letters):
                files: Files = style.save(sketch.draw(), folder, sketch.name)
        except Exception as error:  # whatever is wrong with one figure's files, the others are wanted
            files = one_line(error)
        yield position, files


def _draw_in_processes(
    processes: int, sketches: Sequence[Sketch], material: Material, folder: Path
) -> Iterator[tuple[int, Files]]:
    """Every process finds the same sketches in the same comparison, and draws some of them. This one draws the
    networks: it alone then imports torch, and needs it for their layers anyway."""
    networks = [position for position, sketch in enumerate(sketches) if sketch.section == "architecture"]
    positions = [position for position in range(len(sketches)) if position not in networks]
    # Predictions are not sent: they are read where they are drawn.
    comparison = replace(material.comparison, stored=StoredPredictions(material.comparison.store))
    sent = replace(material, comparison=comparison)
    # New processes: a fork of this one could hang on the threads that torch or numpy may have started in it.
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawned, initializer=_begin, initargs=(sent,)) as pool:
        running = {pool.submit(_draw_there, position, folder): position for position in positions}
        yield from _draw(sketches, networks, folder, material.letters())
        for future in as_completed(running):
            try:
                yield from future.result()
            except BrokenProcessPool:
                yield running[future], "the process that draws it was killed, perhaps because memory ran out"
    durable.sweep(folder)  # of processes that were killed, or ended with them, in the middle of a file


_of_this_process: list[tuple[list[Sketch], str]] = []  # of one that draws for another: its sketches, and all letters


def _begin(material: Material) -> None:
    _of_this_process.append((list(_sketches(material, [])), material.letters()))


def _draw_there(position: int, folder: Path) -> list[tuple[int, Files]]:
    sketches, letters = _of_this_process[-1]
    return list(_draw(sketches, [position], folder, letters))


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
        models=tuple(dict.fromkeys(row.model for row in sketch.rows)),
    )
