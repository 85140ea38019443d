"""Figures inside the page: as data URIs, within a budget of bytes; what does not fit is left out and named."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transfergrid.report.figures import Figure

PAGE_BYTES = 5_000_000
SVG_BYTES = 40_000  # up to here SVG is embedded: sharp at any size, and no larger than the PNG
WIDTHS_PX = (1600, 1100, 760)  # tried one after the other until everything fits
COLOURS = 128  # of an embedded PNG: a third of the bytes, and no eye tells them apart in a plot


@dataclass(frozen=True, slots=True)
class Embedded:
    """A figure as the page shows it. uri: `data:image/...;base64,...`, of width_px x height_px."""

    figure: Figure
    uri: str
    width_px: int
    height_px: int


def embed(figures: Sequence[Figure], *, budget_bytes: int) -> tuple[dict[str, Embedded], tuple[Figure, ...]]:
    """(by name, left out). The first figures matter most: those at the end are left out where nothing else helps."""
    *wider, narrowest = WIDTHS_PX
    fitting = (_all_at(width_px, figures, budget_bytes) for width_px in wider)
    embedded_figures = next((m for m in fitting if m is not None), None) or [_embedded(f, narrowest) for f in figures]
    fitting_by_name: dict[str, Embedded] = {}
    left_out = []
    for embedded in embedded_figures:
        if len(embedded.uri) <= budget_bytes:
            budget_bytes -= len(embedded.uri)
            fitting_by_name[embedded.figure.name] = embedded
        else:
            left_out.append(embedded.figure)
    return fitting_by_name, tuple(left_out)


def _all_at(width_px: int, figures: Sequence[Figure], budget_bytes: int) -> list[Embedded] | None:
    """None as soon as they are too large together: the rest need not be made at this width."""
    embedded = []
    for figure in figures:
        embedded.append(_embedded(figure, width_px))
        budget_bytes -= len(embedded[-1].uri)
        if budget_bytes < 0:
            return None
    return embedded


def _embedded(figure: Figure, width_px: int) -> Embedded:
    from PIL import Image

    with Image.open(figure.png) as image:
        size = image.size
        if figure.svg.stat().st_size <= SVG_BYTES:
            return Embedded(figure, _uri("image/svg+xml", figure.svg.read_bytes()), *size)
        small = image.convert("RGB")
    if small.width > width_px:
        small = small.resize((width_px, round(small.height * width_px / small.width)), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    small.quantize(COLOURS, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(content, "PNG")
    return Embedded(figure, _uri("image/png", content.getvalue()), *small.size)


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
