"""Small images in the lines and columns of one pair of axes: a single picture, because a hundred axes take seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from transfergrid.data import LabeledImages
from transfergrid.evaluation import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TILE_PX = 64
GAP_PX = 4


def tiles(axes: Axes, images: LabeledImages, lines: Sequence[Sequence[int]], *, columns: int) -> None:
    """Draw the images of these indices; the tile of line i and column j is centred at (j, i), one unit wide."""
    step_px = TILE_PX + GAP_PX
    canvas_HWC = np.full((step_px * len(lines), step_px * columns, 3), 255, dtype=np.uint8)
    wanted = [index for line in lines for index in line]
    found = dict(zip(wanted, images.read(wanted), strict=True)) if wanted else {}
    for i, line in enumerate(lines):
        for j, index in enumerate(line[:columns]):
            top_px, left_px = i * step_px + GAP_PX // 2, j * step_px + GAP_PX // 2
            canvas_HWC[top_px : top_px + TILE_PX, left_px : left_px + TILE_PX] = tile(found[index])
    axes.imshow(canvas_HWC, extent=(-0.5, columns - 0.5, len(lines) - 0.5, -0.5), interpolation="nearest")
    axes.grid(visible=False)


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
