"""A finished network for use elsewhere: its weights, what it is to be fed, its classes, a program with a script."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.export import ExportedProgram

from transfergrid.config.predict import Format
from transfergrid.data import AS_STORED, PictureRules
from transfergrid.data.preprocess import FLAT_LEVELS, normalise
from transfergrid.errors import MachineError, ParityError, one_line
from transfergrid.export.inference import predict_files
from transfergrid.networks.finished import Reading
from transfergrid.paths import EXPORT_MARK
from transfergrid.specs import PreprocessSpec, to_dict
from transfergrid.store import durable

PROGRAM, ONNX = "model.pt2", "model.onnx"
# Of a logit, relative to the largest where that is above 1. torch runs the network's own kernels, onnxruntime others.
TOLERANCE = {PROGRAM: 1e-5, ONNX: 1e-4}
CHECKED_BATCHES = (1, 2, 5)
WEIGHTS, SCRIPT, CLASSES = "weights.safetensors", "load.py", "classes.json"
TIMEOUT_S = 1800.0  # of the check of load.py
FILES = (EXPORT_MARK, CLASSES, WEIGHTS, PROGRAM, ONNX, f"{ONNX}.data", SCRIPT)  # ONNX keeps above 2 GB apart
STEPS = (
    "decode as RGB, turned as EXIF data say where orientation is exif, values deeper than 8 bits by value_range = "
    "[stored value of 0, of 255]; mode direct: resize to crop_px x crop_px; mode recipe: shorter edge to resize_px "
    "(with small whole: to crop_px where it is below that; the longer rounded down), centre crop of crop_px; on 8-bit "
    "pixels with antialias, as Pillow does; normalise constants: divide by 255, subtract mean, divide by std; "
    "normalise image: subtract the picture's own mean per channel, divide by its own deviation (over all pixels, none "
    "left out) plus flat_levels"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """files: their names in the folder. largest_difference: of a logit, load.py against the run in float32; None
    without a program. of_precision: of a probability, the run in its own precision against float32; None where that is
    float32."""

    files: tuple[str, ...]
    largest_difference: float | None = None
    of_precision: float | None = None


def export_network(
    network: nn.Module,
    preprocess: tuple[PreprocessSpec, ...],
    folder: Path,
    *,
    names: Sequence[str],
    class_names: Sequence[str],
    export_format: Format,
    reading: Reading,
    rules: PictureRules = AS_STORED,
) -> Exported:
    """Write the folder's files: all of them, once they have been checked, or none.

    network: on the CPU, in eval mode. names: of the backbones, or of the architecture. rules: how the run's pictures
    became 8-bit RGB. Raises MachineError where it cannot be exported so, ParityError where load.py, run in a process of
    its own on pictures of many kinds, does not give the logits of the run.
    """
    durable.make_folder(folder)
    for name in FILES:  # an earlier export's, which would be another network's
        (folder / name).unlink(missing_ok=True)
    staging = durable.temporary_beside(folder / "export")
    staging.mkdir()
    try:
        specs = zip(names, preprocess, strict=True)
        inputs = [{"name": name, **to_dict(spec), "flat_levels": FLAT_LEVELS} for name, spec in specs]
        facts = {"pictures": asdict(rules), "inputs": inputs, "steps": STEPS}
        durable.write_json(staging / EXPORT_MARK, facts)
        durable.write_json(staging / CLASSES, list(class_names))
        if export_format in ("all", "state_dict"):
            _write_weights(staging / WEIGHTS, network, class_names)
        program = {"all": PROGRAM, "torch_export": PROGRAM, "onnx": ONNX}.get(export_format)
        exported = Exported(files=())
        if program is not None:
            (write_onnx if program == ONNX else write_program)(staging / program, network, preprocess)
            durable.write_bytes(staging / SCRIPT, _script())
            exported = _compared(network, preprocess, staging, program, reading, rules)
        files = tuple(name for name in FILES if (staging / name).exists())
        for name in files:
            durable.publish(staging / name, folder / name)
        return replace(exported, files=files)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _compared(
    network: nn.Module,
    preprocess: tuple[PreprocessSpec, ...],
    staging: Path,
    program: str,
    reading: Reading,
    rules: PictureRules,
) -> Exported:
    """The script as a user runs it, against the run as predict.py reads it, in float32 and by running statistics."""
    pictures = staging / "pictures"
    pictures.mkdir()
    names = write_pictures(pictures, max(spec.crop_px for spec in preprocess))
    reading = replace(reading, test_bn="running", batch_size=1)  # one by one, as the script reads them

    def logits_of_run(reading: Reading) -> dict[str, NDArray[np.float32]]:
        """By name, of the pictures that the run can read."""
        device = torch.device("cpu")
        read = predict_files(network, preprocess, pictures, names, reading=reading, rules=rules, device=device)
        return {p.file: p.logits_C for p in read if p.logits_C is not None}

    expected = logits_of_run(replace(reading, precision="fp32"))
    expected_NC = np.stack(list(expected.values()))
    script_NC = logits_of_script(staging, [pictures / name for name in expected])
    difference = float(np.abs(script_NC - expected_NC).max())
    assert_near(difference, float(np.abs(expected_NC).max()), program)
    of_precision = None
    if reading.precision != "fp32":
        own_NC = np.stack(list(logits_of_run(reading).values()))
        of_precision = float(np.abs(_softmax(own_NC) - _softmax(expected_NC)).max())
    return Exported(files=(), largest_difference=difference, of_precision=of_precision)


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


def write_pictures(folder: Path, side_px: int) -> list[str]:
    """One of every kind that files come in: sizes around side_px, modes, one colour, next to no contrast, EXIF."""
    generator, exif = np.random.default_rng(0), Image.Exif()
    exif[0x112] = 6  # the orientation: turned

    def noise(height_px: int, width_px: int, *channels: int) -> Image.Image:
        return Image.fromarray(generator.integers(0, 256, (height_px, width_px, *channels), dtype=np.uint8))

    ramp = np.add.outer(np.arange(2 * side_px), np.arange(side_px + 7)) % 256
    flat_HW = np.full((side_px, side_px), 120, np.uint8)
    faint_HW = flat_HW.copy()
    faint_HW[:, side_px // 3 :] += 1
    noise(side_px, side_px, 3).save(folder / "square.png")
    noise(side_px + 5, 2 * side_px + 1, 3).save(folder / "wide.png")
    Image.fromarray(ramp.astype(np.uint8)).convert("RGB").save(folder / "tall.jpg", exif=exif)
    noise(5, 9).save(folder / "small_grey.png")
    noise(3, min(2**17, 3 * 2**24 // side_px**2 + 9), 3).save(folder / "line.png")  # a giant if it were resized whole
    Image.fromarray(flat_HW).save(folder / "one_colour.png")
    Image.fromarray(faint_HW).save(folder / "faint.png")
    noise(side_px, side_px + 3, 4).save(folder / "transparent.png")
    noise(side_px, side_px, 3).quantize(16).save(folder / "palette.gif")
    noise(side_px, side_px, 3).convert("CMYK").save(folder / "print.jpg")
    Image.fromarray(generator.integers(0, 2**16, (side_px, side_px), dtype=np.uint16)).save(folder / "deep.png")
    return sorted(path.name for path in folder.iterdir())


def _script() -> bytes:
    return resources.files(__name__).joinpath("load.py.txt").read_bytes()


def _softmax(logits_NC: Any) -> Any:
    return torch.from_numpy(logits_NC).double().softmax(1).numpy()


def _write_weights(path: Path, network: nn.Module, class_names: Sequence[str]) -> None:
    from safetensors.torch import save

    from transfergrid.networks.joined import Plain

    # Of an architecture its own module: names are those of its file, without the wrapper's.
    state = (network.network if isinstance(network, Plain) else network).state_dict()
    # Copied, because the format refuses tensors that share memory, and keeps no strides.
    own = {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in state.items()}
    durable.write_bytes(path, save(own, metadata={"classes": json.dumps(list(class_names))}))


# ------------------------------------------------------------------------------------------------------------ programs
# of torch.export, or ONNX, that need no code of this project; each is read back and compared
class Logits(nn.Module):
    """One normalised float32 input (N, 3, H, W) per backbone -> logits (N, C), and nothing beside them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *images: Tensor) -> Any:
        return self.network(*images)[0]


def write_program(path: Path, network: nn.Module, preprocess: tuple[PreprocessSpec, ...]) -> None:
    """Raises MachineError where torch.export does not take the network, ParityError where the file gives others."""
    content = io.BytesIO()
    torch.export.save(_traced(network, preprocess), content)
    content.seek(0)
    durable.write_bytes(path, content.getbuffer())
    _compare(network, torch.export.load(content).module(), preprocess, PROGRAM)


def write_onnx(path: Path, network: nn.Module, preprocess: tuple[PreprocessSpec, ...]) -> None:
    """As write_program; the batch is of any size, inputs are named images_0, images_1, ..."""
    import onnxruntime

    program = _traced(network, preprocess)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # it tells of each of its rewriting steps
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of torch about its own deprecated parts
            exported = torch.onnx.export(program, tuple(_noise(preprocess, 2)), dynamo=True, verbose=False)
            assert exported is not None
            exported.save(path)
    except Exception as error:  # the exporter raises a dozen kinds for what it cannot translate
        raise MachineError(
            f"ONNX has no form of this network ({one_line(error)[:160]}); give export_format=torch_export"
        ) from error
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]

    def run(*images: Tensor) -> Tensor:
        arrays = (x.contiguous().numpy() for x in images)
        return torch.from_numpy(session.run(None, dict(zip(names, arrays, strict=True)))[0])

    _compare(network, run, preprocess, ONNX)


def assert_near(difference: float, largest: float, name: str) -> None:
    """Raises ParityError where a logit differs by more than rounding does. largest: of the network's own logits."""
    if not difference <= TOLERANCE[name] * max(1.0, largest):
        raise ParityError(f"the exported {name} gives other logits than the run: they differ by {difference:.3g}")


def _traced(network: nn.Module, preprocess: tuple[PreprocessSpec, ...]) -> ExportedProgram:
    batch = torch.export.Dim("batch")
    shapes = {"images": tuple({0: batch} for _ in preprocess)}
    examples = tuple(x.contiguous() for x in _noise(preprocess, 2))
    try:
        with torch.no_grad():
            return torch.export.export(Logits(network).eval(), examples, dynamic_shapes=shapes)
    except Exception as error:  # torch.export raises a dozen kinds for what it cannot trace
        raise MachineError(
            f"torch.export does not take this network ({one_line(error)[:160]}); give export_format=state_dict"
        ) from error


def _compare(
    network: nn.Module, program: Callable[..., Tensor], preprocess: tuple[PreprocessSpec, ...], name: str
) -> None:
    for size in CHECKED_BATCHES:
        inputs = _noise(preprocess, size)
        with torch.no_grad():
            expected_NC, program_NC = network(*inputs)[0], program(*inputs)
        assert_near(float((program_NC - expected_NC).abs().max()), float(expected_NC.abs().max()), name)


def _noise(preprocess: tuple[PreprocessSpec, ...], size: int) -> list[Tensor]:
    """A seeded batch of random pixels, normalised for each backbone."""
    generator = torch.Generator().manual_seed(size)
    inputs = []
    for spec in preprocess:
        shape = (size, spec.crop_px, spec.crop_px, 3)
        pixels_NHWC = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        inputs.append(normalise(pixels_NHWC, spec, prepared=True))
    return inputs
