"""A finished run's network on the images of a folder, streaming: a few batches are in memory, never all images. B
images of a batch, C classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from transfergrid.data._decode import PictureRules, decoded
from transfergrid.data._formats import lacking_for, why_unread
from transfergrid.data._threads import in_threads
from transfergrid.data.damaged import DamagedImage
from transfergrid.data.preprocess import normalise, prepare_one
from transfergrid.errors import DataError, one_line
from transfergrid.networks.finished import Reading
from transfergrid.specs import PreprocessSpec
from transfergrid.training.on_images import evaluating


@dataclass(frozen=True, slots=True)
class Prepared:
    """One picture at the size of each input. deep, outside: as in data._decode.Picture."""

    pixels: dict[PreprocessSpec, NDArray[np.uint8]]
    deep: bool
    outside: bool


@dataclass(frozen=True, slots=True)
class Predicted:
    """One file: its logits (C,) float32, or why it cannot be read. deep: of more than 8 bits. outside: some values lie
    beyond the run's value range."""

    file: str
    logits_C: NDArray[np.float32] | None
    error: str | None
    deep: bool = False
    outside: bool = False


def by_its_batch(network: nn.Module, reading: Reading) -> bool:
    """Do an image's logits depend on the other images of its batch? With one image a batch they do not."""
    has_batch_norm = any(isinstance(module, _BatchNorm) for module in network.modules())
    return has_batch_norm and reading.test_bn == "batch" and reading.batch_size > 1


def predict_files(
    network: nn.Module,
    preprocess: tuple[PreprocessSpec, ...],
    folder: Path,
    files: Sequence[str],
    *,
    reading: Reading,
    rules: PictureRules,
    device: torch.device,
) -> Iterator[Predicted]:
    """In the order of `files`, which are relative to the folder; the next batch is read while one is computed. The same
    images give the logits of the run's own evaluation, bit for bit where they fill the same batches."""
    batches = [files[start : start + reading.batch_size] for start in range(0, len(files), reading.batch_size)]
    specs = tuple(dict.fromkeys(preprocess))
    with ThreadPoolExecutor(1) as reader:
        future = reader.submit(_read, folder, batches[0], specs, rules)
        for batch, following in zip(batches, [*batches[1:], ()], strict=True):
            pictures = future.result()
            future = reader.submit(_read, folder, following, specs, rules)
            whole = [prepared for prepared in pictures if not isinstance(prepared, DataError)]
            logits = iter(_logits(network, preprocess, whole, reading, device) if whole else ())
            for file, prepared in zip(batch, pictures, strict=True):
                if isinstance(prepared, DataError):
                    yield Predicted(file, None, one_line(prepared))
                else:
                    yield Predicted(file, next(logits), None, prepared.deep, prepared.outside)


def csv_header(top_k: int) -> list[str]:
    """The predicted class is the first of top_k; those that follow are named by their rank."""
    ranked = [f"{name}_{rank}" for rank in range(2, top_k + 1) for name in ("class", "probability")]
    return ["file", "predicted", "probability", *ranked, "error"]


def csv_row(predicted: Predicted, class_names: Sequence[str], *, top_k: int) -> list[str]:
    """Classes by falling probability; those of one logit in their own order."""
    if predicted.logits_C is None:
        return [predicted.file, *[""] * (2 * top_k), predicted.error or ""]
    exact_C = predicted.logits_C.astype(np.float64)
    odds_C = np.exp(exact_C - exact_C.max())
    probability_C = odds_C / odds_C.sum()
    best = np.argsort(-exact_C, kind="stable")[:top_k]
    return [predicted.file, *(cell for c in best for cell in (class_names[c], f"{probability_C[c]:.6f}")), ""]


def _read(
    folder: Path, files: Sequence[str], specs: tuple[PreprocessSpec, ...], rules: PictureRules
) -> list[Prepared | DataError]:
    def prepare(file: str) -> Prepared | DataError:
        try:
            never = None if lacking_for(file) else why_unread(file)
            if never is not None:  # a camera's raw file would be read: as a TIFF file, of its thumbnail
                raise DamagedImage(folder / file, never, "")
            with decoded(folder / file, rules) as picture:
                pixels = {spec: prepare_one(picture.pixels_HW3, spec) for spec in specs}
                return Prepared(pixels, picture.deep, picture.outside)
        except DataError as error:
            return error
        except MemoryError as error:  # of this picture alone: the others are predicted all the same
            return DataError(str(error) or f"{folder / file} does not fit into memory")

    return in_threads(prepare, files)


def _logits(
    network: nn.Module,
    preprocess: tuple[PreprocessSpec, ...],
    images: Sequence[Prepared],
    reading: Reading,
    device: torch.device,
) -> NDArray[np.float32]:
    """(B, C)"""
    inputs = {}
    for spec in dict.fromkeys(preprocess):
        pixels_BHW3 = torch.from_numpy(np.stack([image.pixels[spec] for image in images])).to(device)
        inputs[spec] = normalise(pixels_BHW3, spec, prepared=True)
    with evaluating(network, device, precision=reading.precision, test_bn=reading.test_bn):
        logits_BC, _ = network(*(inputs[spec] for spec in preprocess))
    logits: NDArray[np.float32] = logits_BC.float().cpu().numpy()
    return logits
