"""Which picture files are read, by which of Pillow's decoders, and how large they may be.

No other decoder is tried, whatever a file holds: PostScript and PDF are programs, and would be run.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING

from transfergrid.data._threads import num_threads

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")
_JFIF, _AVIF, _HEIC = (".jfif",), (".avif",), (".heic", ".heif")
NEWER_SUFFIXES = (*_JFIF, *_AVIF, *_HEIC)  # which the first release left out
_NEVER_READ = (  # pictures by their name, which people take for data
    *(".jp2", ".j2k", ".jpx", ".jxl", ".tga", ".ico", ".svg", ".psd", ".eps", ".dcm", ".exr", ".hdr", ".pfm", ".jpe"),
    *(".mpo", ".apng", ".pnm", ".pbm", ".pam", ".pcx", ".sgi", ".dds", ".qoi", ".icns", ".cur", ".xbm", ".xpm", ".dib"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw", ".nrw", ".x3f", ".3fr", ".kdc"),
)
_DECODERS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "AVIF", "HEIF")

MAX_MEGAPIXELS = 180.0  # about where Pillow itself refuses
MAX_EDGE_PX = 2**17
_ROOM_PX = 2**23  # a thread, of pictures at full size: some 11 bytes a pixel while one is read and resized


@cache
def suffixes() -> tuple[str, ...]:
    """Lower case, of the files that are read on this machine."""
    from PIL import features

    avif = _AVIF if features.check("avif") else ()
    return (*_SUFFIXES, *_JFIF, *avif, *(_HEIC if importlib.util.find_spec("pillow_heif") else ()))


def lacking_for(name: str) -> str | None:
    """What this machine needs before it reads such a picture; None where it reads it, or never will."""
    if name.lower().endswith(suffixes()):
        return None
    if name.lower().endswith(_HEIC):
        return "needs the extra transfergrid[heic]"
    return "needs a Pillow that reads AVIF" if name.lower().endswith(_AVIF) else None


def why_unread(name: str) -> str | None:
    """Why a file that is a picture by its name is not read on this machine; None where it is, or is none."""
    never = "has a format that is not supported: convert it to PNG or JPEG"
    return lacking_for(name) or (never if name.lower().endswith(_NEVER_READ) else None)


@cache
def decoders() -> tuple[str, ...]:
    """Pillow's names of the formats that are read on this machine."""
    from PIL import Image

    if importlib.util.find_spec("pillow_heif"):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    Image.init()
    _quiet()
    Image.MAX_IMAGE_PIXELS = None  # too_large() comes first, and its limit can be raised
    return tuple(name for name in _DECODERS if name in Image.OPEN)


def _quiet() -> None:
    """What Pillow and libtiff say beside their errors names no file, and there may be a line of it for each."""
    from PIL import _imaging

    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    with contextlib.suppress(OSError, AttributeError):  # a Pillow without libtiff, or with one that is not to be seen
        libtiff = ctypes.CDLL(_imaging.__file__)
        libtiff.TIFFSetErrorHandler(None)
        libtiff.TIFFSetWarningHandler(None)


def opened(source: Path | IO[bytes]) -> ImageFile:
    """Pillow's image of a file, its pixels not read yet. Raises what Pillow raises, and OSError for a pipe or a device,
    of which reading might never end."""
    from PIL import Image

    if isinstance(source, Path) and source.is_dir():
        os.scandir(source).close()  # where it cannot be read, that is the reason
    if isinstance(source, Path) and source.exists() and not source.is_file():
        raise OSError("is a pipe, a device or a folder")
    return Image.open(source, formats=decoders())


def holds_image(path: Path) -> bool:
    """Whether a file is a picture that is read here, by how it begins."""
    try:
        opened(path).close()
    except Exception:  # Pillow's readers raise errors of every kind on what is none
        return False
    return True


def too_large(width_px: int, height_px: int, max_megapixels: float) -> tuple[str, str | None] | None:
    """Why a picture of this size is not decoded, and what helps, as DamagedImage has them; None where it is."""
    size = f"is of {width_px} x {height_px} px"
    if min(width_px, height_px) < 1:
        return size, None
    if width_px * height_px > max_megapixels * 1e6:
        return (
            f"{size}, {width_px * height_px / 1e6:.1f} megapixels; dataset.max_megapixels={max_megapixels:g} is the"
            " limit: shrink the picture, or raise it",
            "",
        )
    if max(width_px, height_px) > MAX_EDGE_PX:
        return f"{size}; an edge may have {MAX_EDGE_PX} px at most: cut the picture", ""
    return None


_free = threading.Condition()
_in_use_px = 0


@contextmanager
def room_for(num_px: int) -> Iterator[None]:
    """Waits until so many pixels more may be in memory; a picture larger than all there is goes alone."""
    global _in_use_px
    most_px = _ROOM_PX * num_threads()
    with _free:
        _free.wait_for(lambda: _in_use_px == 0 or _in_use_px + num_px <= most_px)
        _in_use_px += num_px
    try:
        yield
    finally:
        with _free:
            _in_use_px -= num_px
            _free.notify_all()
