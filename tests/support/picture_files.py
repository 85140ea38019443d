"""Picture files that Pillow does not write: 16-bit colours; and folders of two classes told apart by brightness."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from transfergrid.data._decode import AS_STORED, PictureRules, decoded


def chunk(name: bytes, content: bytes) -> bytes:
    """Of a PNG file, whole."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png16(path: Path, pixels: NDArray[Any]) -> Path:
    """uint16 (H, W, 1 | 2 | 3 | 4): grey, grey with alpha, RGB, RGBA."""
    height_px, width_px, channels = pixels.shape
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)

    head = struct.pack(">IIBBBBB", width_px, height_px, 16, colour_type, 0, 0, 0)
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    return path


def tiff(path: Path, pixels: NDArray[Any], *, order: str = "<", sample_format: int = 1) -> Path:
    """Uncompressed, one strip. pixels: (H, W) or (H, W, 3) of 16 or 32 bits. order: `<` or `>`, of the bytes."""
    content = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()  # type: ignore[arg-type]
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    bits = 8 * pixels.dtype.itemsize
    bits_at = 8
    strip_at = bits_at + 2 * channels
    tags = [
        *((256, 4, 1, pixels.shape[1]), (257, 4, 1, pixels.shape[0])),
        (258, 3, channels, bits if channels == 1 else bits_at),
        *((259, 3, 1, 1), (262, 3, 1, 1 if channels == 1 else 2), (273, 4, 1, strip_at), (277, 3, 1, channels)),
        *((278, 4, 1, pixels.shape[0]), (279, 4, 1, len(content)), (339, 3, 1, sample_format)),
    ]
    made = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", strip_at + len(content))
    made += struct.pack(f"{order}{channels}H", *[bits] * channels) + content + struct.pack(order + "H", len(tags))
    for tag, kind, count, value in tags:
        short = kind == 3 and count == 1
        made += struct.pack(order + "HHI", tag, kind, count)
        made += struct.pack(order + ("HH" if short else "I"), *([value, 0] if short else [value]))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(made + struct.pack(order + "I", 0))
    return path


def two_classes(
    folder: Path,
    save: Callable[[Path, NDArray[np.float64]], object],
    *,
    train: int = 20,
    test: int = 10,
    suffix: str = "png",
    side_px: int = 32,
) -> Path:
    """`dark` and `light` pictures; `save` gets a picture's values as shares: 0.03 to 0.14 and 0.6 to 0.92."""
    noise = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for name, low, high in (("dark", 0.03, 0.14), ("light", 0.6, 0.92)):
            for number in range(count):
                path = folder / split / name / f"{number}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                save(path, noise.uniform(low, high, (side_px, side_px)))
    return folder


def save_16_bits(path: Path, shares_HW: NDArray[np.float64]) -> None:
    Image.fromarray((shares_HW * 65535).astype(np.uint16)).save(path)


def save_8_bits(path: Path, shares_HW: NDArray[np.float64]) -> None:
    Image.fromarray((shares_HW * 255).astype(np.uint8)).save(path)


def decode(path: Path, rules: PictureRules = AS_STORED) -> NDArray[np.uint8]:
    """One file as (H, W, 3) RGB. Raises DamagedImage."""
    with decoded(path, rules) as picture:
        return picture.pixels_HW3
