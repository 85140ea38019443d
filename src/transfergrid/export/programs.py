"""A network as a program that needs no code of this project: of torch.export, or ONNX. Each is read back and compared.
N images of a batch, C classes."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from transfergrid.data.preprocess import normalise
from transfergrid.errors import MachineError, ParityError, one_line
from transfergrid.specs import PreprocessSpec
from transfergrid.store import durable

PROGRAM, ONNX = "model.pt2", "model.onnx"
# Of a logit, relative to the largest where that is above 1. torch runs the network's own kernels, onnxruntime others.
TOLERANCE = {PROGRAM: 1e-5, ONNX: 1e-4}
CHECKED_BATCHES = (1, 2, 5)


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
