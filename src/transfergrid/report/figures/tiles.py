"""Small images beside each other, as a single picture: an artist for each would take seconds."""

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


def put_beside(axes: Axes, y: float, strip_HWC: Array, *, height_in: float) -> None:
    """A strip that begins at the left edge of the axes, whatever their shape."""
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    picture = OffsetImage(strip_HWC, zoom=72 * height_in / STEP_PX, interpolation="nearest")
    place = AnnotationBbox(
        picture, (0.0, y), xycoords=("axes fraction", "data"), box_alignment=(0.0, 0.5), frameon=False, pad=0
    )
    axes.add_artist(place)


def strip(images: LabeledImages, line: Sequence[int | None]) -> Array:
    """(STEP_PX, STEP_PX x images, 3) uint8: tiles side by side, a white one where there is no image."""
    edge = ((GAP_PX // 2, GAP_PX // 2), (GAP_PX // 2, GAP_PX // 2), (0, 0))
    read = iter(images.read([i for i in line if i is not None]))
    white_HWC = np.full((TILE_PX, TILE_PX, 3), 255, dtype=np.uint8)
    tiles = [white_HWC if i is None else tile(next(read)) for i in line]
    return np.concatenate([np.pad(one, edge, constant_values=255) for one in tiles], axis=1)


def tile(image_HWC: Array) -> Array:
    """(TILE_PX, TILE_PX, 3) uint8: the whole image, its shape kept, on white; small images keep their pixels sharp."""
    from PIL import Image

    rgb_HWC = np.repeat(image_HWC, 3, axis=2) if image_HWC.shape[2] == 1 else image_HWC
    height_px, width_px = rgb_HWC.shape[:2]
    scale = TILE_PX / max(height_px, width_px)
    size = max(1, round(width_px * scale)), max(1, round(height_px * scale))
    how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BILINEAR
    resized_HWC = np.asarray(Image.fromarray(np.ascontiguousarray(rgb_HWC)).resize(size, how))
    square_HWC = np.full((TILE_PX, TILE_PX, 3), 255, dtype=np.uint8)
    top_px, left_px = (TILE_PX - size[1]) // 2, (TILE_PX - size[0]) // 2
    square_HWC[top_px : top_px + size[1], left_px : left_px + size[0]] = resized_HWC
    return square_HWC
