"""How every figure looks, and how it becomes files: one style, two formats, the same bytes for the same records.

Colours are Okabe and Ito's (safe for colour-blind readers); what they tell apart, a line style, a marker, a hatch or
lightness tells apart, too, so that a grey print loses nothing. No text is below 7 points.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transfergrid.store import durable

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
NARROW_IN, WIDE_IN = 7.0, 9.0
LINE_IN = 0.21  # of one label among labels below each other
TEXT_PT = 7.0
BLACK, BLUE, ORANGE, GREEN = "#000000", "#0072B2", "#E69F00", "#009E73"
RED, PURPLE, SKY = "#D55E00", "#CC79A7", "#56B4E9"
GREY, PALE = "#767676", "#D4D4D4"
COLOURS = (BLUE, RED, BLACK, ORANGE, GREEN, PURPLE, SKY)
DASHES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
# split -> colour, line style, marker
SPLITS = {"train": (BLUE, "-", "o"), "val": (ORANGE, "--", "s"), "test": (BLACK, ":", "^")}

_FONT = "DejaVu Sans"  # comes with matplotlib: the same on every machine
_RC = {
    "font.size": 8.0,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8.0,
    "xtick.labelsize": TEXT_PT,
    "ytick.labelsize": TEXT_PT,
    "legend.fontsize": TEXT_PT,
    "legend.frameon": False,
    "figure.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E2E2E2",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.0,
    "hatch.linewidth": 0.7,
    "text.parse_math": False,  # a name may hold `$`
    "svg.fonttype": "path",
    "svg.hashsalt": "transfergrid",
}


# ------------------------------------------------------------------------------------------------------------- drawing
@contextmanager
def house_style(letters: str = "") -> Iterator[None]:
    """Everything is drawn and saved inside; the user's own matplotlib settings have no say.

    letters: of names that may need other fonts than the figures' own.
    """
    from matplotlib import style

    others = {family for letter in set(letters) if (family := _family_of(letter))} - {_FONT}
    families = {"font.family": [_FONT, *sorted(others)]}
    with style.context(_RC | families, after_reset=True), warnings.catch_warnings():
        # Names go through clean(), which leaves no such letter; a text that did not is no reason to say more.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def new_figure(width_in: float, height_in: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(h_pad=0.06, w_pad=0.06)
    figure = Figure(figsize=(width_in, height_in), dpi=DPI, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def lay_out(figure: Figure) -> None:
    """Give everything its place, once; savefig would do so by drawing the figure once more for each format."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine(None)


def save(figure: Figure, folder: Path, name: str) -> tuple[Path, Path]:
    """Write <name>.png and <name>.svg; no dates and no random ids in them."""
    png, svg = folder / f"{name}.png", folder / f"{name}.svg"
    lay_out(figure)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DPI, metadata={"Software": None})
    durable.write_bytes(png, content.getvalue())
    content = io.BytesIO()
    figure.savefig(content, format="svg", metadata={"Date": None, "Creator": "transfergrid"})
    durable.write_bytes(svg, content.getvalue())
    return png, svg


# ---------------------------------------------------------------------------------------------------------------- text
def clean(text: str) -> str:
    """One line without control characters. A letter that no font here has stands as its number, as `U+732B`: a box
    would stand for any."""
    visible = "".join(c if unicodedata.category(c)[0] != "C" else " " for c in text)
    return " ".join("".join(c if _family_of(c) else f"U+{ord(c):04X}" for c in visible).split())


def is_drawable(text: str) -> bool:
    """Whether fonts of this machine have all its letters."""
    return all(_family_of(c) for c in text if unicodedata.category(c)[0] != "C")


@cache
def _family_of(letter: str) -> str | None:
    """The figures' own font where it has the letter, else the first other one that does, by name."""
    if letter.isascii():
        return _FONT
    paths = _regular_fonts()
    families = (_FONT, *sorted(paths))
    return next((family for family in families if ord(letter) in _letters(paths[family])), None)


@cache
def _regular_fonts() -> dict[str, str]:
    """Family -> file. Not matplotlib's font of last resort: it draws the same box for all letters of a script."""
    from matplotlib.font_manager import fontManager

    fonts = [font for font in fontManager.ttflist if font.style == "normal" and font.weight == 400]
    return {font.name: font.fname for font in fonts if not font.name.startswith("Last Resort")}


@cache
def _letters(path: str) -> frozenset[int]:
    """Of a font that can be drawn at any size: those made of pixels, as most with coloured emoji, have none."""
    from matplotlib.font_manager import get_font

    try:
        font = get_font(path)
    except (OSError, RuntimeError):
        return frozenset()
    return frozenset(font.get_charmap()) if font.scalable else frozenset()


def wrap(text: str, length: int) -> str:
    """Lines of at most `length` characters, broken at blanks, else behind a sign that joins names. All of it is there:
    names differ at either end."""
    # A dot ends a line and begins none; behind a plus a line may end, as at a blank.
    marked = clean(text).replace(" ·", "\u00a0·").replace("+", "+\v")
    options: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False, "replace_whitespace": False}
    lines = [line.replace("\u00a0", " ").replace("\v", "") for line in textwrap.wrap(marked, length, **options)]
    return "\n".join(part for line in lines for part in _at_joints(line, length))


def _at_joints(line: str, length: int) -> list[str]:
    parts = [""]
    for piece in re.findall(rf"[^+_/-]{{1,{length - 1}}}[+_/-]?|[+_/-]", line) if len(line) > length else [line]:
        if len(parts[-1] + piece) > length:
            parts.append("")
        parts[-1] += piece
    return parts


def count_text(value: float) -> str:
    """1234567 -> `1.23M`: three digits and a unit."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= 0.9995 * size:
            return f"{_three_digits(value / size)}{unit}"
    return _three_digits(value)


def _three_digits(value: float) -> str:
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


# -------------------------------------------------------------------------------------------------------------- layout
def spread(aims: Sequence[float], sizes: Sequence[float], low: float, high: float) -> list[float]:
    """Centres inside [low, high] of things of these sizes, none over another, in the order of `aims` and as near to
    it as can be.

    Where there is no room for all they are taken to be smaller.
    """
    if not aims:
        return []
    order = sorted(range(len(aims)), key=lambda i: aims[i])
    offsets = [0.0, *accumulate((sizes[a] + sizes[b]) / 2 for a, b in pairwise(order))]
    scale = min(1.0, (high - low) / max(offsets[-1], 1e-12))
    blocks: list[list[float]] = []  # [sum, count] of neighbours that stand shoulder to shoulder
    for offset, i in zip(offsets, order, strict=True):
        blocks.append([aims[i] - scale * offset, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1] = [blocks[-1][0] + total, blocks[-1][1] + count]
    levels = [total / count for total, count in blocks for _ in range(int(count))]
    top = high - scale * offsets[-1]
    positions = [0.0] * len(aims)
    for level, offset, i in zip(levels, offsets, order, strict=True):
        positions[i] = min(max(level, low), top) + scale * offset
    return positions


def labels_in(texts: Sequence[str]) -> list[float]:
    """How high each text is that side_labels puts below the others."""
    return [0.014 + 0.117 * (1 + text.count("\n")) for text in texts]


def side_labels(
    axes: Axes,
    points: Sequence[tuple[float, float]],
    texts: Sequence[str],
    *,
    height_in: float,
    looks: Sequence[tuple[str, str, str]] = (),
) -> None:
    """Names to the right of the axes, below each other, tied to their points. Limits must have been set before.

    height_in: about how high the axes will be. looks: of lines that are named: colour, line style, marker; a piece of
    the line then stands before its name.
    """
    to_axes = axes.transData + axes.transAxes.inverted()
    aims = [float(to_axes.transform(point)[1]) for point in points]
    sizes = [label_in / height_in for label_in in labels_in(texts)]
    for i, (point, y) in enumerate(zip(points, spread(aims, sizes, 0.0, 1.0), strict=True)):
        colour = looks[i][0] if looks else GREY
        axes.annotate(
            "",
            xy=point,
            xytext=(1.03, y),
            textcoords="axes fraction",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2},
        )
        if looks:
            _, dashes, marker = looks[i]
            sample: dict[str, Any] = {"color": colour, "marker": marker, "transform": axes.transAxes, "clip_on": False}
            axes.plot([1.03, 1.055, 1.08], [y, y, y], dashes, markevery=[1], scalex=False, scaley=False, **sample)
        axes.text(1.09 if looks else 1.035, y, texts[i], transform=axes.transAxes, fontsize=TEXT_PT, va="center")


def line_look(number: int) -> tuple[str, str, str]:
    """Colour, line style and marker of the n-th of several lines; each cycle has its own length."""
    return COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)], MARKERS[number % len(MARKERS)]


def legend_below(figure: Figure, handles: Sequence[Artist], texts: Sequence[str]) -> None:
    """One legend for the whole figure, outside of the axes."""
    figure.legend(
        list(handles),
        list(texts),
        loc="outside lower center",
        ncols=min(5, len(texts)),
        handlelength=2.6,
    )


def line_heights(names: Sequence[str], least: float = 1.0) -> list[float]:
    """What each name takes of a list, in units of LINE_IN, at least `least`."""
    return [max(least, 0.6 * (1 + name.count("\n"))) for name in names]


def name_lines(axes: Axes, names: Sequence[str], *, least: float = 1.0) -> list[float]:
    """Names below each other, the first at the top, and no grid along them. Returns where each stands."""
    heights = line_heights(names, least)
    places = [end - height / 2 for end, height in zip(accumulate(heights), heights, strict=True)]
    axes.set_yticks(places, list(names))
    axes.set_ylim(sum(heights) + 0.1, -0.1)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    return places


def log_counts(axes: Axes) -> None:
    """A log x axis with ticks like `20k` and `5M`, at 1, 2 and 5, with fewer where it is long."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    low, high = axes.get_xlim()
    decades = math.log10(high / low)
    subs = (1.0, 2.0, 5.0) if decades < 1.6 else (1.0, 3.0) if decades < 3 else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count_text(value)))


def whole_numbers(axes: Axes, most: int) -> None:
    """At most so many ticks on the x axis, at whole numbers, like `20k` where these are large."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=most, min_n_ticks=1))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count_text(value)))
