"""Some 900 odd picture files as a folder of classes, and which of them are pictures: known from how each was made.

Only of what is damaged at random, or a matter of taste, Pillow alone is asked.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from damaged_pictures import KINDS, Odd, Options, by_pillow, damaged, picture, saved
from picture_files import chunk
from PIL import Image

NOT_READ = {"TGA": "tga", "ICO": "ico", "EPS": "eps", "JPEG2000": "jp2", "PDF": "pdf", "SGI": "rgb", "PCX": "pcx"}
SUFFIXES = (*KINDS.values(), "tiff", "jpeg", "pgm", "jfif")
MODES = "1 L LA P PA RGB RGBA CMYK YCbCr LAB HSV I I;16 F".split()
COMPRESSIONS = {"packbits": MODES, "tiff_lzw": MODES, "tiff_adobe_deflate": MODES, "tiff_deflate": MODES}
COMPRESSIONS |= {"jpeg": ["L", "RGB", "CMYK", "YCbCr"], "group3": ["1"], "group4": ["1"], "tiff_ccitt": ["1"]}
CLASSES = (b"cat", b"caf\xc3\xa9", b'it\'s "here"', b"line\nbreak", b"\x1b[31mred", b"latin\xe9")
SIGNATURE = b"\x89PNG\r\n\x1a\n"
ODD_NAMES = ["new\nline", "return\rhere", "both\r\n", "\u2028", "\u0085next", " leading", "trailing ", "a:cat:", "100%"]
ODD_NAMES += "tab\there|a\"b|it's|a,b|=1+1|-rf|--help|$HOME|`id`|a;b|\u202egnp|\x1b[2J\x1b[31mred|\x7f\x08".split("|")
ODD_NAMES += "caf\u00e9 cafe\u0301 \U0001f408 \u732b \\n ... a.b #1 [x] {y} * ? <b> &amp; CON ~ ! (1) @".split(" ")
ODD_NAMES += ["\ufeff", "\ud7ff", "x" * 250, *map(os.fsdecode, (b"caf\xe9", b"\xff\xfe", b"\xc3", b"\xed\xa0\x80"))]
NO_PICTURES = ".hidden.png ._fork.jpg .DS_Store Thumbs.db notes.txt no-suffix photo.cr2 x.svg".split(" ")


@dataclass(slots=True)
class Made:
    """Paths relative to the folder. refused: pictures by name alone. left_out: no pictures by name, or hidden."""

    good: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    left_out: set[str] = field(default_factory=set)


def make(folder: Path, *, seed: int = 0) -> Made:
    """train/ and test/ of six classes in `folder`: the same files for the same seed and the same Pillow."""
    made = Made()
    parts = [split + name for split in (b"train/", b"test/") for name in CLASSES]
    for part in parts:
        os.makedirs(os.path.join(os.fsencode(folder), part))
    for number, odd in enumerate((*formats(), *by_hand(), *named(), *damaged(seed, each=10))):
        path = os.fsdecode(parts[number % len(parts)] + b"/" + odd.name)
        (folder / path).write_bytes(odd.content)
        readable = by_pillow(odd.content) if odd.readable is None else odd.readable
        is_named = odd.name[:1] != b"." and path.lower().rpartition(".")[2] in SUFFIXES
        (made.left_out if not is_named else made.good if readable else made.refused).add(path)
    here = folder / "train" / "cat"
    (here / "nowhere.png").symlink_to("/nowhere/at/all.png")
    (here / "circle.png").symlink_to("circle.png")
    os.mkfifo(here / "pipe.png")
    (here / "folder.jpg").mkdir()
    for name in ("secret.png", "folder.jpg/inside.png"):
        (here / name).write_bytes(saved("PNG", len(name)))
    (here / "link.png").symlink_to("folder.jpg/inside.png")
    (here / "secret.png").chmod(0)
    (made.good if os.access(here / "secret.png", os.R_OK) else made.refused).add("train/cat/secret.png")
    made.refused |= {f"train/cat/{name}.png" for name in ("nowhere", "circle", "pipe")}
    made.good |= {"train/cat/folder.jpg/inside.png", "train/cat/link.png"}
    return made


def formats() -> Iterator[Odd]:
    """Every mode in every format that can be written, the ways of compressing, turning and animating."""
    none: Options = {}
    asked = [(kind, mode, none, suffix) for kind, suffix in (KINDS | NOT_READ).items() for mode in MODES]
    asked += [("TIFF", mode, {"compression": way}, "tiff") for way, modes in COMPRESSIONS.items() for mode in modes]
    for number, (kind, mode, options, suffix) in enumerate(asked):
        try:
            content = saved(kind, number, mode, **options)
        except (OSError, KeyError, ValueError, RuntimeError):
            continue  # this format has no such mode
        name = "-".join((str(number), kind, mode.replace(";", "_")))
        yield Odd(f"{name}.{suffix}".encode(), content)
        if kind in NOT_READ:  # what a file is does not hang on its name
            yield Odd(f"{name}-named.png".encode(), content, readable=False)
    broken = (b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM", b"xxxx", b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        for turn in (*range(10), 65535):
            exif = Image.Exif()
            exif[0x0112] = turn
            yield Odd(f"turn{turn}.{KINDS[kind]}".encode(), saved(kind, turn, exif=exif))
        for number, value in enumerate(broken if kind != "TIFF" else ()):
            yield Odd(f"exif{number}.{KINDS[kind]}".encode(), saved(kind, number, exif=value))
    for kind in ("GIF", "WEBP", "PNG", "TIFF", "MPO"):
        content = saved(kind, 7, save_all=True, append_images=[picture(n) for n in (8, 9)])
        yield Odd(f"many.{KINDS.get(kind, 'jpeg')}".encode(), content)
    ways: list[Options] = [{"progressive": True}, {"subsampling": 2, "quality": 5}, {"restart_marker_rows": 1}]
    for number, options in enumerate(ways):
        yield Odd(f"way{number}.jfif".encode(), saved("JPEG", number, **options))
    for width_px, height_px in ((65000, 1), (1, 65000), (1, 1), (2, 1), (3, 700)):
        with io.BytesIO() as file:
            picture(3, "L", width_px, height_px).save(file, "PNG")
            yield Odd(f"{width_px}x{height_px}.PNG".encode(), file.getvalue())


def by_hand() -> Iterator[Odd]:
    """What no program saves on purpose."""
    rgb, jpeg, gif, bmp = saved("PNG", 4), saved("JPEG", 4), saved("GIF", 4, "P"), saved("BMP", 4, "P")
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    page, text = b"<!DOCTYPE html><p>404", b"this is no picture\n" * 5
    nothing = (b"", b"\0", bytes(4096), text, page, rgb[:6], jpeg[:2], postscript, b"%PDF-1.4\n", b"<svg/>")
    for number, content in enumerate(nothing):
        for suffix in ("png", "jpg", "gif", "tif", "bmp", "ppm"):
            yield Odd(f"nothing{number}.{suffix}".encode(), content, readable=False)
    for number, suffix in enumerate(("jpg", "gif", "tiff", "ppm", "avif")):
        yield Odd(f"png-named.{suffix}".encode(), saved("PNG", number))
        yield Odd(f"jpeg-named.{suffix.upper().replace('JPG', 'PnG')}".encode(), saved("JPEG", number))
    for width_px, height_px in ((20_000, 20_000), (2**31 - 1, 2**31 - 1), (0, 5), (13_000, 13_000), (2**17 + 1, 1)):
        head = chunk(b"IHDR", struct.pack(">IIBBBBB", width_px, height_px, 8, 2, 0, 0, 0))
        yield Odd(b"large%d.png" % width_px, SIGNATURE + head + chunk(b"IDAT", zlib.compress(b"")), readable=False)
    yield Odd(b"large.bmp", bmp[:18] + struct.pack("<ii", 50_000, 50_000) + bmp[26:], readable=False)
    yield Odd(b"large.gif", gif[:6] + struct.pack("<HH", 65535, 65535) + gif[10:], readable=False)
    yield Odd(b"large.jpg", jpeg.replace(b"\0\x0a\0\x0c", b"\xff\xdc\xff\xdc", 1), readable=False)
    yield Odd(b"no-frame.gif", gif[:13] + b";", readable=False)
    maxima = [b"P3 2 2 %s " % maximum + b"9 " * 12 for maximum in (b"9", b"70000", b"0", b"x", b"3")]
    maxima += [b"P5 0 0 255\n", b"P6 40000 40000 255\n" + bytes(300), b"P3 " + b"9" * 99]
    for number, content in enumerate(maxima):
        yield Odd(b"ppm%d.ppm" % number, content, readable=number == 0)
    inserted = [chunk(b"tEXt", b"Comment\0" + b"x" * 1000), chunk(b"abCd", bytes(100)), chunk(b"gAMA", bytes(4))]
    inserted += [chunk(b"iCCP", b"x\0\0" + zlib.compress(b"none")), chunk(b"eXIf", b"MM\0*\xff\xff\xff\xff")]
    inserted += [chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(size), 1)) for size in (900_000, 90_000_000)]
    inserted += [chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(bytes(9_000_000), 1)), bytes(4) + b"\0\1\2\3"]
    inserted += [struct.pack(">I", 2**31 - 1) + b"tEXtx", b"\xff\xff\xff\xffIDATx"]
    for number, extra in enumerate(inserted):
        yield Odd(b"chunk%d.png" % number, rgb[:33] + extra + rgb[33:], number < 6 or None)
        yield Odd(b"chunk%d-first.png" % number, rgb[:8] + extra + rgb[8:], None)
    paletted = SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 3, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + bytes([200] * 8) for _ in range(8)))) + chunk(b"IEND", b"")
    depth3, interlaced = (chunk(b"IHDR", rgb[16:24] + bytes(b)) for b in ((3, 2, 0, 0, 0), (8, 2, 0, 0, 1)))
    made = [paletted + chunk(b"PLTE", bytes(6)) + rows, paletted + rows, SIGNATURE + depth3 + rgb[33:]]
    made += [rgb[:29] + bytes(4) + rgb[33:], rgb[:-12], rgb.replace(b"IDATx", b"IDAT\0"), rgb + bytes(99), rgb + rgb]
    for number, content in enumerate((*made, SIGNATURE + interlaced + rgb[33:])):
        yield Odd(b"made%d.png" % number, content, None)
    for bits in (1, 4, 8, 16, 24, 32, 3, 64):
        for height in (6, -6):  # the latter begins at the top
            info = struct.pack("<IiiHHIIiiII", 40, 5, height, 1, bits, 0, 0, 0, 0, 0, 0)
            start = 54 + (4 << bits if bits <= 8 else 0)
            content = b"BM" + struct.pack("<IHHI", start + 240, 0, 0, start) + info + bytes(start - 54 + 240)
            yield Odd(b"bits%d%+d.bmp" % (bits, height), content, None)
    for marker in b"\xc1\xc3\xc9\xca":  # extended, lossless, arithmetic coding
        yield Odd(b"coding%d.jpg" % marker, jpeg.replace(b"\xff\xc0", bytes((0xFF, marker)), 1), None)


def named() -> Iterator[Odd]:
    """Pictures of names that programs trip over, some that are none, and files that are no pictures by their name."""
    for number, name in enumerate(map(os.fsencode, ODD_NAMES)):
        yield Odd(name + b".png", saved("PNG", number))
        yield Odd(name[:240] + b"-none.png", b"none", readable=False)
    for other in NO_PICTURES:
        yield Odd(other.encode(), saved("PNG"))
