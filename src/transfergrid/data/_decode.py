"""A picture file -> 8-bit RGB. What is deeper than 8 bits is brought there by one range, and EXIF data may turn it.

Pillow alone would clip 16-bit, 32-bit and float values to 0..255, keep the upper byte of 16-bit colours, and turn TIFF
files but no others. TIFF files are turned under both rules, as every program that reads them by Pillow has it.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from transfergrid.data._formats import MAX_MEGAPIXELS, opened, room_for, too_large
from transfergrid.data._image_size import HEAD_BYTES, declared_size_px, unreadable
from transfergrid.data.damaged import DamagedImage
from transfergrid.errors import DataError

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

ValueRange = tuple[float, float]
Orientation = Literal["stored", "exif"]
Depth = Literal["8-bit", "integer", "float"]

_ORIENTATION_TAG = 0x0112
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MAY_TURN = (
    b"irot",
    b"imir",
    b"Exif",
    b"eXIf",
    b"EXIF",
    b"Raw profile type exif",
    b"iff:Orientation",
    b"XML:com.adobe.xmp",
)
_BYTE_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_WIDE = re.compile(r"(RGB|RGBA|RGBX|R|G|B|A);16[BLN]")  # Pillow's names of colours of two bytes each
_WIDE_BUT_NARROWED = re.compile(r"(LA|RGBa);16[BLN]")
_STRIP_PX = 2**22  # converted at once: Pillow makes three copies of what it converts


@dataclass(frozen=True, slots=True)
class PictureRules:
    """How a data set's files are read. value_range: the stored values that become 0 and 255, None = 8 bits only.

    orientation: whether a picture is turned as its EXIF data say, or left as its pixels lie.
    max_megapixels: larger pictures are refused before they are decoded.
    """

    value_range: ValueRange | None = None
    orientation: Orientation = "stored"
    max_megapixels: float = MAX_MEGAPIXELS


AS_STORED = PictureRules()


@dataclass(frozen=True, slots=True)
class Picture:
    """pixels_HW3: uint8 RGB. deep: whether the file is deeper than 8 bits; outside: beyond the range somewhere."""

    pixels_HW3: NDArray[np.uint8]
    deep: bool
    outside: bool


@dataclass(frozen=True, slots=True)
class PictureFacts:
    """Of one file, for the plan. low, high: its finite values' extremes, where it is deeper than 8 bits.

    turned: whether `orientation=exif` shows other pixels than `stored`.
    """

    width_px: int
    height_px: int
    depth: Depth = "8-bit"
    turned: bool = False
    low: float = 0.0
    high: float = 0.0


@contextmanager
def decoded(path: Path, rules: PictureRules) -> Iterator[Picture]:
    """The picture, for as long as the block lasts: what threads hold at full size at once is bounded by its pixels.

    Raises DamagedImage, also where it is too large, or deeper than 8 bits and no range is known.
    """
    try:
        image = opened(path)
    except Exception as error:  # Pillow's decoders raise errors of every kind on damaged files
        raise unreadable(path, error) from error
    with image:
        width_px, height_px = image.size
        _refuse_large(path, image.size, rules.max_megapixels)
        with room_for(width_px * height_px):
            try:
                picture = _read(image, path, rules)
            except DataError:
                raise
            except MemoryError as error:
                raise MemoryError(f"{path}, of {width_px} x {height_px} px, does not fit into memory") from error
            except Exception as error:
                raise unreadable(path, error) from error
            image.close()  # with its own copy of the pixels
            yield picture


def _read(image: ImageFile, path: Path, rules: PictureRules) -> Picture:
    turns = rules.orientation == "exif"
    if _depth(image) == "8-bit":
        return Picture(_rgb(_turned(image, turns)), deep=False, outside=False)
    if rules.value_range is None:
        raise DamagedImage(
            path,
            "is deeper than 8 bits, and no range of values is known; convert it to 8 bits, as the other pictures"
            " are, or train with dataset.value_range=[low,high]",
            "",
        )
    low, high = rules.value_range
    values = _deep_values(path, turns=turns)
    pixels = to_8_bits(values, rules.value_range)
    pixels_HW3 = np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels
    numbers = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    return Picture(pixels_HW3, deep=True, outside=not bool(((numbers >= low) & (numbers <= high)).all()))


def _rgb(image: Any) -> NDArray[np.uint8]:
    """np.array(image.convert("RGB")), by strips of a large picture."""
    width_px, height_px = image.size
    rows = max(1, _STRIP_PX // width_px)
    if rows >= height_px:
        return np.array(image.convert("RGB"))
    pixels_HW3 = np.empty((height_px, width_px, 3), dtype=np.uint8)
    for top in range(0, height_px, rows):
        strip = image.crop((0, top, width_px, min(top + rows, height_px)))
        pixels_HW3[top : top + rows] = np.asarray(strip.convert("RGB"))
    return pixels_HW3


def to_8_bits(values: NDArray[Any], value_range: ValueRange) -> NDArray[np.uint8]:
    """low -> 0, high -> 255, rounded; what lies beyond becomes 0 or 255, and what is no number 0."""
    low, high = value_range
    levels = np.empty(values.shape, dtype=np.uint8)
    rows = max(1, _STRIP_PX // max(1, values[:1].size))
    for top in range(0, len(values), rows):
        scaled = (values[top : top + rows].astype(np.float64) - low) * (255 / (high - low))
        levels[top : top + rows] = np.clip(np.rint(np.nan_to_num(scaled, nan=0.0)), 0, 255)
    return levels


def picture_facts(path: Path, source: Path | bytes, *, max_megapixels: float = MAX_MEGAPIXELS) -> PictureFacts:
    """Of one file, which is decoded for it, a JPEG at an eighth of its size: all of it is read, little is computed.

    source: its whole content, or its path again where that is large. Raises DamagedImage.
    """
    head = source if isinstance(source, bytes) else _head(source)
    _refuse_large(path, declared_size_px(head), max_megapixels)  # before any decoder is asked
    may_turn = not head.startswith(_TIFF) and (isinstance(source, Path) or any(mark in head for mark in _MAY_TURN))
    try:
        with opened(_rewound(source)) as image:
            width_px, height_px = image.size
            _refuse_large(path, image.size, max_megapixels)
            depth = _depth(image)
            with room_for(width_px * height_px):
                low, high = _try_to_read(image) if depth == "8-bit" else _extremes(path, _rewound(source))
                turned = may_turn and _orientation(image) != 1
    except (MemoryError, DataError):
        raise
    except Exception as error:
        raise unreadable(path, error) from error
    return PictureFacts(width_px, height_px, depth, turned, low, high)


def _refuse_large(path: Path, size_px: tuple[int, int] | None, max_megapixels: float) -> None:
    large = None if size_px is None else too_large(*size_px, max_megapixels)
    if large is not None:
        raise DamagedImage(path, *large)


def _try_to_read(image: ImageFile) -> tuple[float, float]:
    image.draft(None, (1, 1))
    image.load()
    image.crop((0, 0, 1, 1)).convert("RGB")  # whether a picture can be converted is a matter of its mode
    return 0.0, 0.0


def _extremes(path: Path, source: Path | IO[bytes]) -> tuple[float, float]:
    values = _deep_values(source, turns=False)
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if not finite.size:
        raise DamagedImage(path, "holds no number at all")
    return float(finite.min()), float(finite.max())


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(HEAD_BYTES)


def _rewound(source: Path | bytes) -> Path | IO[bytes]:
    return source if isinstance(source, Path) else io.BytesIO(source)


def _depth(image: Any) -> Depth:
    if image.mode == "F":
        return "float"
    wide = any(_WIDE.fullmatch(mode) or _WIDE_BUT_NARROWED.fullmatch(mode) for mode in map(_raw_mode, image.tile))
    return "integer" if wide or image.mode.startswith("I") else "8-bit"


def _raw_mode(tile: Any) -> str:
    first = tile.args if isinstance(tile.args, str) else tile.args[0] if tile.args else ""
    return first if isinstance(first, str) else ""


def _deep_values(source: Path | IO[bytes], *, turns: bool) -> NDArray[Any]:
    """(H, W) or (H, W, 3), as stored."""

    def again() -> Any:
        if not isinstance(source, Path):
            source.seek(0)
        return opened(source)

    with again() as image:
        modes = list(map(_raw_mode, image.tile))
        if any(map(_WIDE_BUT_NARROWED.fullmatch, modes)):
            raise ValueError("16-bit colours with this kind of alpha cannot be read in full; save it without alpha")
        values: NDArray[Any] = np.array(_turned(image, turns))
        if any(map(_WIDE.fullmatch, modes)):
            with again() as other:
                other.tile = [_other_byte(tile) for tile in other.tile]
                lower = np.array(_turned(other, turns))
            both: NDArray[Any] = (values[..., :3].astype(np.uint16) << 8) | lower[..., :3]
            return both
        # Pillow reads unsigned numbers of 32 bits as signed ones.
        bits, sample = (getattr(image, "tag_v2", {}).get(tag, (default,)) for tag, default in ((258, 0), (339, 1)))
        unsigned = image.mode == "I" and 32 in bits and sample[0] == 1
    return values.view(np.uint32) if unsigned else values


def _other_byte(tile: Any) -> Any:
    """A colour of two bytes read in the opposite order gives the byte that Pillow would drop."""
    mode = _raw_mode(tile)
    swapped = mode[:-1] + _BYTE_ORDER[mode[-1]]
    return tile._replace(args=swapped if isinstance(tile.args, str) else (swapped, *tile.args[1:]))


def _orientation(image: Any) -> int:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # damaged EXIF data turn nothing
        return 1
    return orientation if orientation in range(2, 9) else 1


def _turned(image: Any, turns: bool) -> Any:
    """The image as it is to be shown; its pixels are read first, which is when Pillow turns a TIFF file."""
    from PIL.Image import Transpose

    image.load()
    orientation = _orientation(image) if turns else 1
    if orientation == 1:
        return image
    flips = {2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM}
    turns_by = {5: Transpose.TRANSPOSE, 6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90}
    return image.transpose((flips | turns_by)[orientation])
