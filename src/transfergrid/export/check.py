"""The export's own check: its load.py itself, in a fresh process, on pictures of many kinds, against the run's way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from transfergrid.data import PictureRules
from transfergrid.errors import ParityError
from transfergrid.export.inference import predict_files
from transfergrid.networks.finished import Reading
from transfergrid.specs import PreprocessSpec

TIMEOUT_S = 1800.0
_ORIENTATION = 0x112  # the EXIF tag


def logits_of_script(folder: Path, files: list[Path]) -> NDArray[np.float32]:
    """(N, C), as the folder's load.py gives them. Raises ParityError where it ends with an error."""
    done = subprocess.run(
        [sys.executable, "load.py", "--json", *(str(file.resolve()) for file in files)],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},  # sums are added in the same order
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ParityError(f"the export's load.py does not run: {last[:200]}")
    return np.array([json.loads(line)["logits"] for line in done.stdout.splitlines()], dtype=np.float32)


def logits_of_run(
    network: nn.Module,
    preprocess: tuple[PreprocessSpec, ...],
    folder: Path,
    names: list[str],
    reading: Reading,
    rules: PictureRules,
) -> tuple[list[str], NDArray[np.float32]]:
    """The pictures that the run can read, by predict.py's own function, and their logits (N, C)."""
    device = torch.device("cpu")
    predictions = predict_files(network, preprocess, folder, names, reading=reading, rules=rules, device=device)
    read = [(p.file, p.logits_C) for p in predictions if p.logits_C is not None]
    return [file for file, _ in read], np.stack([logits_C for _, logits_C in read])


def write_pictures(folder: Path, side_px: int) -> list[str]:
    """One of every kind that files come in: sizes around side_px, modes, one colour, next to no contrast, EXIF."""
    generator = np.random.default_rng(0)

    def noise(height_px: int, width_px: int, *channels: int) -> Image.Image:
        return Image.fromarray(generator.integers(0, 256, (height_px, width_px, *channels), dtype=np.uint8))

    ramp = np.add.outer(np.arange(2 * side_px), np.arange(side_px + 7)) % 256
    turned = Image.Exif()
    turned[_ORIENTATION] = 6
    flat_HW = np.full((side_px, side_px), 120, np.uint8)
    faint_HW = flat_HW.copy()
    faint_HW[:, side_px // 3 :] += 1
    noise(side_px, side_px, 3).save(folder / "square.png")
    noise(side_px + 5, 2 * side_px + 1, 3).save(folder / "wide.png")
    Image.fromarray(ramp.astype(np.uint8)).convert("RGB").save(folder / "tall.jpg", exif=turned)
    noise(5, 9).save(folder / "small_grey.png")
    noise(3, min(2**17, 3 * 2**24 // side_px**2 + 9), 3).save(folder / "line.png")  # a giant if it were resized whole
    Image.fromarray(flat_HW).save(folder / "one_colour.png")
    Image.fromarray(faint_HW).save(folder / "faint.png")
    noise(side_px, side_px + 3, 4).save(folder / "transparent.png")
    noise(side_px, side_px, 3).quantize(16).save(folder / "palette.gif")
    noise(side_px, side_px, 3).convert("CMYK").save(folder / "print.jpg")
    Image.fromarray(generator.integers(0, 2**16, (side_px, side_px), dtype=np.uint16)).save(folder / "deep.png")
    return sorted(path.name for path in folder.iterdir())
