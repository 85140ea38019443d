"""Small images in the lines and columns of one pair of axes: a single picture, because a hundred axes take seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from transfergrid.data import LabeledImages
from transfergrid.training.evaluation import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TILE_PX = 64
GAP_PX = 4
STEP_PX = TILE_PX + GAP_PX


def tiles(axes: Axes, images: LabeledImages, lines: Sequence[Sequence[int]], *, columns: int) -> None:
    """Draw the images of these indices; the tile of line i and column j is centred at (j, i), one unit wide."""
    canvas_HWC = np.concatenate([strip(images, line, columns=columns) for line in lines])
    axes.imshow(canvas_HWC, extent=(-0.5, columns - 0.5, len(lines) - 0.5, -0.5), interpolation="nearest")
    axes.grid(visible=False)


def tiles_beside(axes: Axes, y: float, images: LabeledImages, line: Sequence[int], *, tile_in: float) -> None:
    """One line of tiles of this size from the left edge of the axes on, whatever the shape of the axes."""
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    drawn = OffsetImage(strip(images, line, columns=len(line)), zoom=72 * tile_in / STEP_PX, interpolation="nearest")
    place = AnnotationBbox(
        drawn, (0.0, y), xycoords=("axes fraction", "data"), box_alignment=(0.0, 0.5), frameon=False, pad=0
    )
    axes.add_artist(place)


def strip(images: LabeledImages, line: Sequence[int], *, columns: int) -> Array:
    """(STEP_PX, columns x STEP_PX, 3) uint8: tiles side by side, white where there are no more."""
    made_HWC = np.full((STEP_PX, STEP_PX * columns, 3), 255, dtype=np.uint8)
    shown = list(line[:columns])
    for j, image_HWC in enumerate(images.read(shown) if shown else ()):
        left_px = j * STEP_PX + GAP_PX // 2
        made_HWC[GAP_PX // 2 : GAP_PX // 2 + TILE_PX, left_px : left_px + TILE_PX] = tile(image_HWC)
    return made_HWC


def tile(image_HWC: Array) -> Array:
    """(TILE_PX, TILE_PX, 3) uint8: the whole image, its shape kept, on white; small images keep their pixels sharp."""
    from PIL import Image

    rgb_HWC = np.repeat(image_HWC, 3, axis=2) if image_HWC.shape[2] == 1 else image_HWC
    height_px, width_px = rgb_HWC.shape[:2]
    scale = TILE_PX / max(height_px, width_px)
    size = max(1, round(width_px * scale)), max(1, round(height_px * scale))
    how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BILINEAR
    resized_HWC = np.asarray(Image.fromarray(np.ascontiguousarray(rgb_HWC)).resize(size, how))
    made_HWC = np.full((TILE_PX, TILE_PX, 3), 255, dtype=np.uint8)
    top_px, left_px = (TILE_PX - size[1]) // 2, (TILE_PX - size[0]) // 2
    made_HWC[top_px : top_px + size[1], left_px : left_px + size[0]] = resized_HWC
    return made_HWC
