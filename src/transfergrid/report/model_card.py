"""The model card beside an exported network: what it is, how good, made from what, how to use it; in Markdown."""

from __future__ import annotations

import contextlib
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transfergrid.config.spelling import command, hydra_value
from transfergrid.errors import DataError
from transfergrid.paths import RunPaths, StorePaths
from transfergrid.report.analysis.calibration import confidence, expected_calibration_error
from transfergrid.report.analysis.cells import number, percent
from transfergrid.report.analysis.grouped import interval_of_runs
from transfergrid.report.analysis.per_class import Confusion, class_names, confusion, taken_for
from transfergrid.report.analysis.rerun import commands_of
from transfergrid.report.analysis.statistics import wilson
from transfergrid.report.blocks import plain
from transfergrid.report.markdown import table_text
from transfergrid.specs import BackboneSpec, EvaluateSettings, ProbeSettings, RunSpec, TrainSettings, to_dict
from transfergrid.store.attempts import read_spec
from transfergrid.store.records import MANY_CLASSES, Predictions, RunRecord, read_predictions, read_record

MOST_FAILURES = 5  # classes, and pairs of them
STATE_DICT_ONLY = """from safetensors.torch import load_file

state = load_file("weights.safetensors")  # name -> tensor
"""
FILES = {
    "weights.safetensors": "every parameter and buffer by name, float32",
    "model.pt2": "the network as a program of torch.export; any batch size; it needs no code but PyTorch",
    "model.onnx": "the network in ONNX, float32; any batch size; inputs images_0, images_1, ... (N, 3, H, W)",
    "model.onnx.data": "its parameters, which it reads from beside it",
    "load.py": "how to use it",
    "preprocessing.json": "size, interpolation, mean and standard deviation of each input",
    "classes.json": "class names, in the order of the logits",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFacts:
    """What the record does not know. script: the text of load.py, None where no program was exported.

    arguments: of the command that made the export.
    """

    class_names: tuple[str, ...]
    files: tuple[str, ...]
    largest_difference: float | None
    script: str | None
    arguments: tuple[str, ...]


def model_card(record: RunRecord, paths: RunPaths, facts: CardFacts) -> str:
    """A card without per-class scores and calibration where the stored predictions cannot be read, and it says so."""
    spec = record.spec
    try:
        test = read_predictions(paths).get("test")
    except DataError:
        test = None
    found = None if test is None else confusion([test], facts.class_names)
    sections = [
        ("", _summary(record, facts)),
        ("Use", _use(facts)),
        ("Results", _results(record, test)),
        ("Where it fails", _failures(record, paths, test, found)),
        ("Scores per class", _per_class(found)),
        ("Data", _data(record)),
        ("Network", _network(record)),
        ("Training settings", _settings(spec)),
        ("Intended use and limits", _limits(record)),
        ("Licence", _licence(spec)),
        ("How it was made", _origin(record, paths, facts)),
    ]
    return "\n".join(f"## {title}\n\n{text}" if title else text for title, text in sections if text)


def _summary(record: RunRecord, facts: CardFacts) -> str:
    spec = record.spec
    kind = {"probe": "a linear head on frozen features", "finetune": "fine-tuned", "scratch": "trained from scratch"}
    return (
        f"# {_plain(spec.model)} on {_plain(spec.dataset.name)}\n\nAn image classifier of {len(facts.class_names)}"
        f" classes, {kind[spec.phase]} by transfergrid (run `{record.run_id}`).\n"
    )


def _use(facts: CardFacts) -> str:
    files = _table(["file", "holds"], [[name, FILES[name]] for name in facts.files], left=2)
    if facts.script is None:
        return f"{files}\n{_fenced('python', STATE_DICT_ONLY)}"
    checked = (
        "Run by itself on pictures of many kinds, `load.py` gave the logits of the run, with a largest difference of"
        f" {facts.largest_difference:.2g}."
    )
    needs = "onnxruntime" if "model.onnx" in facts.files else "PyTorch"
    run = (
        f"`python load.py picture.jpg` prints a picture's class; it needs {needs}, numpy and Pillow. This is `load.py`"
    )
    return f"{files}\n{checked}\n\n{run}:\n\n{_fenced('python', facts.script)}"


def _results(record: RunRecord, test: Predictions | None) -> str:
    metrics, n_test = record.metrics, record.details.get("n_test") or (len(test.index_N) if test else None)
    accuracy = metrics.get("test_accuracy")
    lines = []
    if accuracy is not None and n_test:
        lines.append(["test accuracy", f"{percent(accuracy)} % [{_interval(record, accuracy, n_test, test)}]"])
    for name, label in (("val_accuracy", "val accuracy"), ("train_accuracy", "train accuracy")):
        lines += [[label, f"{percent(metrics[name])} %"]] if name in metrics else []
    lines += [["test loss, nats", number(metrics["test_loss"], digits=4)]] if "test_loss" in metrics else []
    for name in ("precision", "recall", "f1"):
        value = metrics.get(f"test_macro_{name}")
        lines += [] if value is None else [[f"test macro {name}", f"{percent(value)} %"]]
    if test is not None:
        error = expected_calibration_error(confidence(test), test.predicted_N == test.label_N)
        lines.append(["expected calibration error, 15 bins", f"{percent(error)} %"])
    kind, unit = ("by group", "groups") if _groups(record) else ("Wilson", "images")
    note = (
        f"One network{_of_seed(record.spec)}, on {number(n_test)} test images. The interval (95 %, {kind}) says"
        f" what other {unit} of the same kind would change; it says nothing about other seeds.\n"
    )
    unread = "" if test is not None else "The stored predictions cannot be read: no calibration, no scores per class.\n"
    return _table(["", "value"], lines, left=1) + "\n" + note + unread


def _groups(record: RunRecord) -> int | None:
    """Of its test images."""
    return record.details.get("test_groups")


def _interval(record: RunRecord, accuracy: float, n_test: int, test: Predictions | None) -> str:
    if _groups(record):
        interval = None if test is None else interval_of_runs([test])
        return "not judged" if interval is None else f"{percent(interval[0])}, {percent(interval[1])}"
    low, high = wilson(round(accuracy * n_test), n_test)
    return f"{percent(low)}, {percent(high)}"


def _of_seed(spec: RunSpec) -> str:
    return ", which no seed changes" if spec.seed is None else f", of seed {spec.seed}"


def _failures(record: RunRecord, paths: RunPaths, test: Predictions | None, found: Confusion | None) -> str:
    """In plain English: on how many test images, in which classes, for which others; and on what else it was tried."""
    dataset, elsewhere = _plain(record.spec.dataset.name), _elsewhere(record, paths)
    tried = f"It was also tried on:\n\n{elsewhere}\nNo other" if elsewhere else "No other"
    tried += " data was tried in the store of this run. On other data it may fail more often, and in other classes.\n"
    if test is None or found is None:
        return tried
    interval = _interval(record, found.right / found.images, found.images, test)
    groups = f", which come from {number(_groups(record))} groups" if _groups(record) else ""
    text = (
        f"It was tested on the {number(found.images)} test images of {dataset}{groups}. It gets {number(found.right)}"
        f" right, which is {percent(found.right / found.images)} % [{interval}], and"
        f" {number(found.images - found.right)} wrong.\n\n"
    )
    if worst := [c for c in found.worst_first() if c.right < c.images][:MOST_FAILURES]:
        fewest = min(c.images for c in worst)
        text += "It fails most often in these classes. Recall is the share of a class's images that it recognises"
        text += f"; one image of the smallest class here is {percent(1 / fewest)} points of it.\n\n"
        lines = [[_plain(c.name), number(c.images), percent(c.recall), _plain(taken_for(c))] for c in worst]
        text += _table(["class", "test images", "recall %", "most often taken for"], lines, left=1) + "\n"
        text += "The classes that it confuses most often:\n\n"
        for true, predicted, count in found.pairs(MOST_FAILURES):
            of, other = _plain(found.names[true]), _plain(found.names[predicted])
            text += f"- It takes {number(count)} of {number(found.classes[true].images)} images of {of} for {other}.\n"
        text += "\n"
    return text + tried


def _elsewhere(record: RunRecord, paths: RunPaths) -> str:
    """A table of the evaluations of this run on other data that its store holds; empty without any."""
    lines = []
    for folder in sorted(paths.root.parent.glob("*-evaluate-*")):
        spec = read_spec(RunPaths(folder))
        settings = None if spec is None else spec.settings
        if spec is None or not isinstance(settings, EvaluateSettings) or settings.split != "test":
            continue
        if settings.source != f"run:{record.run_id}" or spec.dataset.fingerprint == record.spec.dataset.fingerprint:
            continue
        with contextlib.suppress(DataError):
            other, test = read_record(RunPaths(folder)), read_predictions(RunPaths(folder))["test"]
            if other is not None and other.status == "completed":
                found = confusion([test], class_names(other))
                accuracy = found.right / found.images
                interval = _interval(other, accuracy, found.images, test)
                worst = found.worst_first()[0]
                lines.append(
                    [
                        _plain(spec.dataset.name),
                        number(found.images),
                        f"{percent(accuracy)} [{interval}]",
                        f"{_plain(worst.name)} ({percent(worst.recall)} %)",
                    ]
                )
    header = ["data", "test images", "accuracy % [95 %]", "worst class, its recall"]
    return _table(header, lines, left=1) if lines else ""


def _per_class(found: Confusion | None) -> str:
    if found is None or len(found.names) > MANY_CLASSES:
        return ""
    lines = [
        [_plain(c.name), number(c.images), percent(c.precision), percent(c.recall), percent(c.f1)]
        for c in found.classes
    ]
    return _table(["class", "test images", "precision %", "recall %", "F1 %"], lines, left=1)


def _data(record: RunRecord) -> str:
    spec = record.spec
    rule = (
        "`val` (10 % of the training images, or the data set's own) was held out and every choice made on it; the test"
        " set was read once"
        if spec.protocol == "fair"
        else "a published study's own: trained on all training images, the test set read every epoch"
    )
    chosen = getattr(spec.settings, "selection", "last") == "best_on_test"
    lines = [
        ["data set", f"{_plain(spec.dataset.name)} ({spec.dataset.kind})"],
        ["fingerprint", f"`{spec.dataset.fingerprint}`"],
        ["trained on", f"{number(record.n_train)} images{_share(spec)}"],
        ["protocol", f"{spec.protocol}: {rule}"],
        ["epoch kept", "the best on the test set, which flatters the accuracy above" if chosen else "the last"],
    ]
    return _table(["", "value"], lines, left=2)


def _share(spec: RunSpec) -> str:
    """How they were chosen, where the run did not learn from all."""
    parts = [f"{spec.shots} of each class"] if spec.shots is not None else []
    parts += [f"a share of {spec.train_fraction:g}"] if spec.train_fraction is not None else []
    parts += [f"max_images {spec.dataset.max_images:,} per split"] if spec.dataset.max_images is not None else []
    return f" ({', '.join(parts)})" if parts else ""


def _network(record: RunRecord) -> str:
    lines = [[_part(b), f"`{b.weights.identity}`"] for b in record.spec.backbones]
    lines += [["parameters", number(record.parameters)], ["trained of them", number(record.trainable_parameters)]]
    lines += [["size, MB of float32", number(record.size_mb, digits=1)]]
    lines += [["GFLOPs per image (2 x MAC)", number(record.gflops_per_image, digits=3)]]
    return _table(["", "value"], lines, left=2)


def _part(backbone: BackboneSpec) -> str:
    return f"backbone {_plain(backbone.name)}, started from {_plain(backbone.weights.label)}"


def _settings(spec: RunSpec) -> str:
    lines = [["seed", hydra_value(spec.seed)], ["val_seed", str(spec.val_seed)]]
    lines += [[name, hydra_value(value)] for name, value in to_dict(spec.settings).items()]
    if spec.extract is not None:
        lines += [[f"extract.{name}", hydra_value(value)] for name, value in to_dict(spec.extract).items()]
    return _table(["setting", "value"], [[name, _plain(value)] for name, value in lines], left=2)


def _limits(record: RunRecord) -> str:
    spec, settings = record.spec, record.spec.settings
    assert isinstance(settings, TrainSettings)
    on_own_images = command(
        "run_phase.py", "phase=evaluate", f"run={record.run_id}", "dataset=image_folder", "dataset.folder=DIR"
    )
    texts = [
        f"For images of the kind of {_plain(spec.dataset.name)}, prepared as `preprocessing.json` says. Every picture"
        " gets one of the classes, even a picture that shows none of them.",
        "The accuracy was measured on the test set named above. Other cameras, crops, places or times can lower it, and"
        " no group of people or of pictures was tested separately. Try it on your own labelled images first:"
        f" `{on_own_images}`.",
        "A probability is the network's own; the calibration error says how far you can trust it.",
    ]
    on_features = isinstance(settings, ProbeSettings) and settings.source == "features" and spec.extract is not None
    precision = spec.extract.precision if on_features and spec.extract is not None else settings.precision
    if precision != "fp32":
        texts.append(f"The figures were computed in {precision}, the export computes in fp32: close, but not the same.")
    if settings.test_bn == "batch":
        texts.append(
            "The figures were read with BatchNorm by the batch at hand; the export uses its running statistics."
        )
    return "".join(f"- {text}\n" for text in texts)


def _licence(spec: RunSpec) -> str:
    lines = []
    for backbone in spec.backbones:
        where = {
            "tag": "pretrained weights of others: their publisher's licence holds for what is made from them, and the"
            " terms of the images they were trained on may (ImageNet: research, not commerce)",
            "file": "a file of the user's; its author decides about the licence",
            "builtin": "shipped with transfergrid (Apache-2.0)",
            "random": "random numbers at the start, so no licence of others",
        }[backbone.weights.kind]
        lines.append(f"- {_plain(backbone.name)}, {_plain(backbone.weights.label)}: {where}.\n")
    data = f"- {_plain(spec.dataset.name)}: the terms of the training images may also hold for the network.\n"
    return "".join(lines) + data


def _origin(record: RunRecord, paths: RunPaths, facts: CardFacts) -> str:
    commands = commands_of([record.spec], StorePaths(paths.root.parent.parent))
    export = command("predict.py", *facts.arguments)
    text = _fenced("sh", "".join(f"{command.line}\n" for command in commands) + f"{export}\n") + "\n"
    text += "- The first command needs the store that holds the run, which has its settings in `spec.json`.\n"
    text += "".join(f"- {_plain(hint)}\n" for command in commands for hint in command.to_fill_in)
    origin: dict[str, Any] = {"seconds of the phase": record.phase_s, **record.provenance}
    lines = [[name, _plain(str(value))] for name, value in origin.items() if value is not None]
    return text + "\n" + _table(["provenance", "value"], lines, left=2)


def _table(header: Sequence[str], lines: Sequence[Sequence[str]], *, left: int) -> str:
    return table_text(plain(header, lines, left=left))


def _fenced(language: str, code: str) -> str:
    """A code block that nothing in the code can end."""
    longest = max((len(ticks) for ticks in re.findall("`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{code}{fence}\n"


def _plain(text: str) -> str:
    """Names come from folders and files: on one line, and nothing in them is markup."""
    return html.escape(" ".join(text.split()), quote=False).replace("`", "'").replace("[", "\\[")
