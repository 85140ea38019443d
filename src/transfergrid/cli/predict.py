"""jobs/predict.py: a finished run on a folder of images, and its export with a model card."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from transfergrid.cli.console import FAILED, OK, count, progress_line, run_script
from transfergrid.config.arguments import own_keys, takes
from transfergrid.config.help import Help
from transfergrid.config.predict import PredictKeys, PredictRequest, parse_predict
from transfergrid.names import csv_rows, printable, utf8
from transfergrid.store import durable

if TYPE_CHECKING:
    from torch import nn

    from transfergrid.specs import PreprocessSpec

HELP = Help(
    script="predict.py",
    purpose="Apply a finished run (probe, finetune or scratch) to pictures, as CSV; or export it:"
    " weights, program, preprocessing, class names and a model card.",
    examples=(
        "run=RUN_ID images=DIR  # or a FILE, or 'DIR/*.jpg'; CSV to standard output",
        "run=RUN_ID images=DIR top_k=3 output=FILE.csv",
        "run=RUN_ID export=DIR export_format=onnx",
        "run=results/runs/RUN_ID images=DIR device=cpu cluster.num_threads=2",
        "run=PROBE_ID images=DIR weights_files.<backbone>=FILE",
    ),
    keys=takes(PredictKeys),
    first=own_keys(PredictKeys),
)


def main() -> int:
    return run_script(predict, HELP)


def predict(arguments: Sequence[str]) -> int:
    """Exit code 1 where some image could not be read; the others are predicted all the same."""
    request = parse_predict(arguments)
    # Loading torch takes seconds, which a request that makes no sense need not wait for.
    from transfergrid.networks.finished import network_of_run
    from transfergrid.training.device import prepare_process

    prepare_process(request.runtime)
    network, preprocess = network_of_run(request.record.spec, request.paths, request.runtime)
    if request.export is not None:
        _export(request, request.export, network, preprocess, tuple(arguments))
    if request.images is None:
        return OK
    if request.skipped:
        counted = ", ".join(f"{n} {why} (as {first.removeprefix('./')})" for why, (n, first) in request.skipped.items())
        print(f"not read: {printable(counted)}", file=sys.stderr)
    unreadable = _predict(request, request.images, network, preprocess)
    if unreadable:
        print(f"{count(unreadable, 'image')} of {len(request.files)} could not be read", file=sys.stderr)
    return FAILED if unreadable else OK


def _predict(request: PredictRequest, images: Path, network: nn.Module, preprocess: tuple[PreprocessSpec, ...]) -> int:
    """How many images could not be read; each is named as it is met."""
    from transfergrid.export.inference import by_its_batch, csv_header, csv_row, predict_files
    from transfergrid.networks.finished import picture_rules_of, reading_of
    from transfergrid.training.device import device_of, on_device

    device = device_of(request.runtime)
    network = on_device(network, device)
    reading = reading_of(request.record.spec)
    reading = replace(reading, precision="fp32") if request.in_fp32 else reading
    if by_its_batch(network, reading):
        print(
            "warning: this run was tested with test_bn=batch, so the prediction for an image depends on the other "
            f"images in its batch; a batch holds {reading.batch_size} images that follow each other by name",
            file=sys.stderr,
        )
    rules = picture_rules_of(request.record, request.runtime.max_megapixels)
    show, unreadable, outside, of_8_bits = progress_line("predicting"), 0, 0, 0
    clear = "\r\x1b[K" if sys.stderr.isatty() else ""  # the progress line stands there
    with _opened(request.output) as file:
        writer = csv_rows(file)
        writer.writerow(csv_header(request.top_k))
        predictions = predict_files(
            network, preprocess, images, request.files, reading=reading, rules=rules, device=device
        )
        for done, predicted in enumerate(predictions, start=1):
            writer.writerow(csv_row(predicted, request.class_names, top_k=request.top_k))
            if predicted.error is not None:
                unreadable += 1
                print(f"{clear}unreadable: {predicted.error}", file=sys.stderr)
            outside += predicted.outside
            of_8_bits += predicted.error is None and not predicted.deep
            show(done, len(request.files))
    if rules.value_range is not None:
        low, high = rules.value_range
        for num_images, what in (
            (outside, f"values beyond the run's range {low:g} to {high:g}, which become 0 or 255"),
            (of_8_bits, f"8 bits, which stay as they are; the run's pictures hold {low:g} to {high:g}"),
        ):
            if num_images:
                print(f"warning: {count(num_images, 'image')} with {what}", file=sys.stderr)
    return unreadable


def _export(
    request: PredictRequest,
    folder: Path,
    network: nn.Module,
    preprocess: tuple[PreprocessSpec, ...],
    arguments: tuple[str, ...],
) -> None:
    from transfergrid.export import SCRIPT, export_network
    from transfergrid.networks.finished import picture_rules_of, reading_of
    from transfergrid.report.model_card import CardFacts, model_card

    spec = request.record.spec
    exported = export_network(
        network,
        preprocess,
        folder,
        names=[b.name for b in spec.backbones] or [spec.model],
        class_names=request.class_names,
        export_format=request.export_format,
        reading=reading_of(spec),
        rules=picture_rules_of(request.record, request.runtime.max_megapixels),
    )
    facts = CardFacts(
        class_names=request.class_names,
        files=exported.files,
        largest_difference=exported.largest_difference,
        script=(folder / SCRIPT).read_text(encoding="utf-8") if SCRIPT in exported.files else None,
        arguments=arguments,
    )
    card = model_card(request.record, request.paths, facts)
    durable.write_bytes(folder / "README.md", utf8(card))
    print(f"exported to {folder}: {', '.join((*exported.files, 'README.md'))}", file=sys.stderr)
    if exported.largest_difference is not None:
        print(
            f"load.py gives the run's logits, largest difference {exported.largest_difference:.2g}",
            file=sys.stderr,
        )
    if exported.of_precision is not None:
        print(
            f"the export computes in float32, the run in {reading_of(spec).precision}: on the pictures of the check a"
            f" probability differs by up to {exported.of_precision:.2g}; precision=fp32 predicts as the export does",
            file=sys.stderr,
        )


@contextlib.contextmanager
def _opened(output: Path | None) -> Iterator[TextIO]:
    """The CSV's file, whole under its name once all is written; or standard output. File names keep their bytes."""
    if output is None:
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
        yield sys.stdout
        return
    with durable.temporary_for(output) as temporary:
        with open(temporary, "x", encoding="utf-8", errors="surrogateescape", newline="") as file:
            yield file
        durable.publish(temporary, output)
