"""A finished network for use elsewhere: its weights, what it is to be fed, its classes, a program of torch.export."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from transfergrid import durable
from transfergrid.data import AS_STORED, PictureRules
from transfergrid.errors import MachineError, ParityError, one_line
from transfergrid.paths import EXPORT_MARK
from transfergrid.preprocess import normalise
from transfergrid.specs import PreprocessSpec, to_dict

WEIGHTS, PROGRAM, SCRIPT, CLASSES = "weights.safetensors", "model.pt2", "load.py", "classes.json"
TOLERANCE = 1e-4  # of a logit, relative to the largest where that is above 1
CHECKED_BATCHES = (5, 1)
STEPS = (
    "decode as RGB, turned as EXIF data say where orientation is exif, values deeper than 8 bits by value_range = "
    "[stored value of 0, of 255]; mode direct: resize to crop_px x crop_px; mode recipe: shorter edge to resize_px "
    "(with small whole: to crop_px where it is below that; the longer rounded down), centre crop of crop_px; on 8-bit "
    "pixels with antialias, as Pillow does; divide by 255; normalise "
    "constants: subtract mean, divide by std; normalise image: by the image's own mean and deviation per channel"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """files: their names in the folder. largest_difference: of a logit, program against network; None without one."""

    files: tuple[str, ...]
    largest_difference: float | None


def export_network(
    network: nn.Module,
    preprocess: tuple[PreprocessSpec, ...],
    folder: Path,
    *,
    names: Sequence[str],
    class_names: Sequence[str],
    rules: PictureRules = AS_STORED,
    with_weights: bool,
    with_program: bool,
) -> Exported:
    """Write the folder's files, each whole or not at all. names: of the backbones, or of the architecture.

    rules: how the run's pictures became 8-bit RGB.

    network: on the CPU, in eval mode. Raises MachineError where torch.export does not take it, ParityError where the
    program, read back from its file, does not give the network's logits.
    """
    for name in (WEIGHTS, PROGRAM, SCRIPT):  # an earlier export's, which would be another network's
        (folder / name).unlink(missing_ok=True)
    inputs = [{"name": name, **to_dict(spec)} for name, spec in zip(names, preprocess, strict=True)]
    durable.write_json(folder / EXPORT_MARK, {"pictures": asdict(rules), "inputs": inputs, "steps": STEPS})
    durable.write_json(folder / CLASSES, list(class_names))
    files, difference = [EXPORT_MARK, CLASSES], None
    if with_weights:
        _write_weights(folder / WEIGHTS, _inside(network).state_dict(), class_names)
        files.append(WEIGHTS)
    if with_program:
        difference = _write_program(folder / PROGRAM, network, preprocess)
        script = resources.files(__name__).joinpath("load.py.txt").read_bytes()
        durable.write_bytes(folder / SCRIPT, script)
        files += [PROGRAM, SCRIPT]
    return Exported(files=tuple(files), largest_difference=difference)


class Logits(nn.Module):
    """One normalised float32 input (N, 3, H, W) per backbone -> logits (N, C), and nothing beside them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *images: Tensor) -> Any:
        return self.network(*images)[0]


def _inside(network: nn.Module) -> nn.Module:
    """An architecture's own module: its names are those of its file, without the wrapper's."""
    from transfergrid.network import Plain

    return network.network if isinstance(network, Plain) else network


def _write_weights(path: Path, state: Mapping[str, Tensor], class_names: Sequence[str]) -> None:
    from safetensors.torch import save

    # Copied, because the format refuses tensors that share memory, and keeps no strides.
    own = {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in state.items()}
    durable.write_bytes(path, save(own, metadata={"classes": json.dumps(list(class_names))}))


def _write_program(path: Path, network: nn.Module, preprocess: tuple[PreprocessSpec, ...]) -> float:
    """The largest difference of a logit between the network and the program in the file, over batches of two sizes."""
    module = Logits(network).eval()
    batch = torch.export.Dim("batch")
    shapes = {"images": tuple({0: batch} for _ in preprocess)}
    try:
        with torch.no_grad():
            program = torch.export.export(module, tuple(_noise(preprocess, 2)), dynamic_shapes=shapes)
    except Exception as error:  # torch.export raises a dozen kinds for what it cannot trace
        raise MachineError(
            f"torch.export does not take this network ({one_line(error)[:160]}); give export_format=state_dict"
        ) from error
    content = io.BytesIO()
    torch.export.save(program, content)
    content.seek(0)
    loaded = torch.export.load(content).module()
    largest = 0.0
    for size in CHECKED_BATCHES:
        inputs = _noise(preprocess, size)
        with torch.no_grad():
            expected_NC, found_NC = module(*inputs), loaded(*inputs)
        difference = float((found_NC - expected_NC).abs().max())
        if not difference <= TOLERANCE * max(1.0, float(expected_NC.abs().max())):
            raise ParityError(f"the exported program's logits differ by {difference:.3g} from the network's")
        largest = max(largest, difference)
    durable.write_bytes(path, content.getbuffer())
    return largest


def _noise(preprocess: tuple[PreprocessSpec, ...], size: int) -> list[Tensor]:
    """A seeded batch of random pixels, normalised for each backbone."""
    generator = torch.Generator().manual_seed(size)
    made = []
    for spec in preprocess:
        shape = (size, spec.crop_px, spec.crop_px, 3)
        pixels_NHWC = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        made.append(normalise(pixels_NHWC, spec, prepared=True).contiguous())
    return made
