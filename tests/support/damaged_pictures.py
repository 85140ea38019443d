"""A small picture file of every kind, cut and with bits flipped: Pillow alone says what of it is read."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, features

KINDS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "TIFF": "tif", "GIF": "gif", "BMP": "bmp", "PPM": "ppm"}
KINDS |= {"AVIF": "avif"} if features.check("avif") else {}
Options = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Odd:
    """One file. readable: whether it is a picture that is to be read; None: Pillow is asked."""

    name: bytes
    content: bytes
    readable: bool | None = True


def by_pillow(content: bytes) -> bool:
    """Whether Pillow alone reads it, as one of the formats, at a size that may be read."""
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(content), formats=[*KINDS]) as image:
            warnings.simplefilter("ignore")
            if image.width * image.height > 180e6 or max(image.size) > 2**17:
                return False
            image.convert("RGB")
    except Exception:  # its decoders raise errors of every kind on damaged files
        return False
    return True


def picture(number: int = 0, mode: str = "RGB", width_px: int = 12, height_px: int = 10) -> Image.Image:
    """A slope, another one for each number."""
    grey = (np.add.outer(np.arange(height_px), 2 * np.arange(width_px)) * 5 + 40 * number).astype(np.uint8)
    deep = {"F": np.float32, "I": np.int32, "I;16": np.uint16}
    if mode in deep:
        return Image.fromarray(grey.astype(deep[mode]) * 200)
    rgb = Image.fromarray(np.stack([grey, grey[::-1], 255 - grey], 2))
    if mode == "PA":
        return rgb.convert("P").convert("PA")
    return Image.fromarray(np.asarray(rgb), "LAB") if mode == "LAB" else rgb.convert(mode)


def saved(kind: str, number: int = 0, mode: str = "RGB", **options: Any) -> bytes:
    with io.BytesIO() as file:
        picture(number, mode).save(file, kind, **options)
        return file.getvalue()


def damageable() -> list[Odd]:
    """One small file of every kind."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "x" * 40
    more = {"exif": exif, "icc_profile": b"\0\0\x02\x0cappl" + bytes(500)}
    frames = {mode: {"save_all": True, "append_images": [picture(3, mode)]} for mode in ("RGB", "P")}
    asked: dict[str, list[tuple[str, Options]]] = {
        "JPEG": [("RGB", more), ("RGB", {"progressive": True}), ("CMYK", {})],
        "PNG": [("RGBA", more), ("P", {"transparency": b"\0\x80\xff"}), ("I;16", {}), ("RGB", frames["RGB"])],
        "TIFF": [("RGB", more), ("F", {}), ("L", {"big_tiff": True}), ("RGB", {"compression": "jpeg"})],
        "WEBP": [("RGB", more), ("RGBA", {"lossless": True})],
        **{"GIF": [("P", frames["P"])], "BMP": [("P", {})], "PPM": [("RGB", {})], "AVIF": [("RGB", {})]},
    }
    asked["TIFF"] += [("RGB", {"compression": "tiff_lzw"}), ("1", {"compression": "group4"})]
    made = [(suffix, saved(kind, 5, mode, **o)) for kind, suffix in KINDS.items() for mode, o in asked[kind]]
    made.append(("ppm", b"P3 4 4 255 " + b"7 " * 48))
    return [Odd(f"{number}.{suffix}".encode(), content) for number, (suffix, content) in enumerate(made)]


def damaged(seed: int, *, each: int) -> Iterator[Odd]:
    """`each` cut and `each` with one to eight bits flipped of every kind, half of these near the beginning."""
    noise = np.random.default_rng(seed)
    for odd in damageable():
        for number in range(each):
            yield Odd(b"cut%d-" % number + odd.name, odd.content[: int(noise.integers(1, len(odd.content)))], None)
            changed = bytearray(odd.content)
            for at in noise.integers(0, noise.choice([len(changed), min(len(changed), 200)]), noise.integers(1, 9)):
                changed[at] ^= 1 << int(noise.integers(8))
            yield Odd(b"flip%d-" % number + odd.name, bytes(changed), None)
