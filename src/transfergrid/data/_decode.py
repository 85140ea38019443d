"""A picture file -> 8-bit RGB. What is deeper than 8 bits is brought there by one range, and EXIF data may turn it.

Pillow alone would clip 16-bit, 32-bit and float values to 0..255, keep the upper byte of 16-bit colours, and turn TIFF
files but no others. TIFF files are turned under both rules, as every program that reads them by Pillow has it.
"""

from __future__ import annotations

import io
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from transfergrid.data._image_size import size_px, unreadable
from transfergrid.errors import DataError

ValueRange = tuple[float, float]
Orientation = Literal["stored", "exif"]
Depth = Literal["8-bit", "integer", "float"]

_ORIENTATION_TAG = 0x0112
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_NEVER_DEEP = (b"\xff\xd8", b"GIF8", b"BM", b"RIFF")  # JPEG, GIF, BMP, WebP
_MAY_TURN = (b"Exif", b"eXIf", b"EXIF", b"Raw profile type exif", b"iff:Orientation", b"XML:com.adobe.xmp")
_BYTE_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_WIDE = re.compile(r"(RGB|RGBA|RGBX|R|G|B|A);16[BLN]")  # Pillow's names of colours of two bytes each
_WIDE_BUT_NARROWED = re.compile(r"(LA|RGBa);16[BLN]")


@dataclass(frozen=True, slots=True)
class PictureRules:
    """How a data set's files are read. value_range: the stored values that become 0 and 255, None = 8 bits only.

    orientation: whether a picture is turned as its EXIF data say, or left as its pixels lie.
    """

    value_range: ValueRange | None = None
    orientation: Orientation = "stored"


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


def decode(path: Path, rules: PictureRules = AS_STORED) -> NDArray[np.uint8]:
    """One file as (H, W, 3) RGB. Raises DataError naming the file."""
    return read_picture(path, rules).pixels_HW3


def read_picture(path: Path, rules: PictureRules) -> Picture:
    """Raises DataError naming the file, also where it is deeper than 8 bits and no range is known."""
    from PIL import Image

    try:
        turns = rules.orientation == "exif"
        with Image.open(path) as image:
            if _depth(image) == "8-bit":
                return Picture(np.array(_turned(image, turns).convert("RGB")), deep=False, outside=False)
        values = _deep_values(path, turns=turns)
    except (MemoryError, DataError):
        raise
    except Exception as error:  # Pillow's decoders raise errors of every kind on damaged files
        raise unreadable(path, error) from error
    if rules.value_range is None:
        raise DataError(
            f"{path} is deeper than 8 bits, and no range of values is known for it; convert it to 8 bits, as the other"
            " pictures are, or give dataset.value_range=[low,high]"
        )
    low, high = rules.value_range
    pixels = to_8_bits(values, rules.value_range)
    pixels_HW3 = np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels
    numbers = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    return Picture(pixels_HW3, deep=True, outside=not bool(((numbers >= low) & (numbers <= high)).all()))


def to_8_bits(values: NDArray[Any], value_range: ValueRange) -> NDArray[np.uint8]:
    """low -> 0, high -> 255, rounded; what lies beyond becomes 0 or 255, and what is no number 0."""
    low, high = value_range
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    return np.clip(np.rint(np.nan_to_num(scaled, nan=0.0)), 0, 255).astype(np.uint8)


def picture_facts(path: Path, content: bytes) -> PictureFacts:
    """From the whole content of a file; only deeper than 8 bits is it decoded. Raises DataError naming the file."""
    from PIL import Image

    width_px, height_px = size_px(path, content)
    png = content.startswith(b"\x89PNG")
    may_be_deep = content[24:25] == b"\x10" if png else not content.startswith(_NEVER_DEEP)
    may_turn = not content.startswith(_TIFF) and any(mark in content for mark in _MAY_TURN)
    if not (may_be_deep or may_turn):
        return PictureFacts(width_px, height_px)
    try:
        with Image.open(io.BytesIO(content)) as image:
            turned = may_turn and _orientation(image) != 1
            depth = _depth(image) if may_be_deep else "8-bit"
        if depth == "8-bit":
            return PictureFacts(width_px, height_px, turned=turned)
        values = _deep_values(io.BytesIO(content), turns=False)
    except (MemoryError, DataError):
        raise
    except Exception as error:
        raise unreadable(path, error) from error
    finite = values[np.isfinite(values)] if depth == "float" else values
    if not finite.size:
        raise DataError(f"{path} holds no number at all; mend or remove it")
    return PictureFacts(width_px, height_px, depth, turned, float(finite.min()), float(finite.max()))


def _depth(image: Any) -> Depth:
    if image.mode == "F":
        return "float"
    return "integer" if image.mode.startswith("I") or any(map(_raw_mode_is_wide, image.tile)) else "8-bit"


def _raw_mode_is_wide(tile: Any) -> bool:
    mode = _raw_mode(tile)
    return bool(_WIDE.fullmatch(mode) or _WIDE_BUT_NARROWED.fullmatch(mode))


def _raw_mode(tile: Any) -> str:
    first = tile.args if isinstance(tile.args, str) else tile.args[0] if tile.args else ""
    return first if isinstance(first, str) else ""


def _deep_values(source: Path | IO[bytes], *, turns: bool) -> NDArray[Any]:
    """(H, W) or (H, W, 3), as stored."""
    from PIL import Image

    def opened() -> Any:
        if not isinstance(source, Path):
            source.seek(0)
        return Image.open(source)

    with opened() as image:
        modes = [_raw_mode(tile) for tile in image.tile]
        if any(map(_WIDE_BUT_NARROWED.fullmatch, modes)):
            raise ValueError("16-bit colours with this kind of alpha are not read whole; save it without alpha")
        values: NDArray[Any] = np.array(_turned(image, turns))
        if any(map(_WIDE.fullmatch, modes)):
            with opened() as again:
                again.tile = [_other_byte(tile) for tile in again.tile]
                lower = np.array(_turned(again, turns))
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
        found = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # damaged EXIF data turn nothing
        return 1
    return found if found in range(2, 9) else 1


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
