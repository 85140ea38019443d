"""python benchmarks/finetune_start.py FOLDER [tinynet_mnist tinynet_cifar shufflenet_v2_x0_5]

Where should fine-tuning start? Four ways to hand the probe's head over, on 2,000 images (digits: all) of three data
sets, each way from the same weights, with the same order of images; chosen on val. Seed s also draws val, so five seeds
hold out five tenths of the images. FOLDER/finetune_start.csv gets a line per training; a second call adds what is
missing.

    as_it_is    the head fits the weights' own BatchNorm statistics; training uses those of each batch (bn=train)
    eval        the same head; BatchNorm keeps the weights' own statistics (bn=eval)
    target      statistics of the training images (bn_statistics=target) under the head; training uses each batch's
    refitted    the head fits features that BatchNorm made with batch statistics; training goes on (the default)

Each is a run as a user gives it, with the probe that it needs: the head's strength is the probe's choice on val.
shufflenet_v2_x0_5 is trained here first, on CIFAR-10 images of 64 px: what it shows holds for no ImageNet weights.
"""

from __future__ import annotations

import csv
import os
import sys
from itertools import product
from pathlib import Path

import torch

from transfergrid.config import load_run
from transfergrid.networks.finished import load_weights
from transfergrid.paths import RunPaths, store_paths
from transfergrid.planning.job import carry_out
from transfergrid.store.metrics_log import read_metrics
from transfergrid.store.records import RunRecord, read_record

WAYS = {
    "as_it_is": ["phase.finetune.head=probe"],
    "eval": ["phase.finetune.head=probe", "phase.finetune.bn=eval"],
    "target": ["phase.finetune.head=probe", "phase.extract.bn_statistics=target"],
    "refitted": ["phase.finetune.head=refitted"],
}
MACHINE = ["device=cpu", "cluster.num_threads=1", "tracking=disabled", "phase.finetune.precision=fp32"]
DATASETS = {
    "digits": [
        "dataset=digits",
        "phase.finetune.epochs=8",
        "phase.finetune.batch_size=32",
        "phase.finetune.shift_px=1",
    ],
    "mnist": ["dataset=mnist", "dataset.max_images=2000"],
    "cifar10-jpeg": ["dataset=image_folder", "dataset.folder={data}/cifar10-jpeg", "dataset.max_images=2000"],
}
TRAINED_HERE = "shufflenet_v2_x0_5"
IMAGE_SIZE = {TRAINED_HERE: ["dataset.image_size_px=64"]}
PRETRAINING = ["phase.finetune.head=random", "phase.finetune.lr=0.05", "phase.finetune.head_lr=0.05"]
PRETRAINING += ["phase.finetune.stem_lr=0.05", "phase.finetune.epochs=8", "phase.finetune.batch_size=64"]
COLUMNS = ["dataset", "network", "way", "seed", "start_val_accuracy", "first_step_loss", "first_step_accuracy"]
COLUMNS += ["val_accuracy_epoch_1", "val_accuracy", "test_accuracy", "seconds"]


def main() -> None:
    folder = Path(sys.argv[1])
    networks = sys.argv[2:] or ["tinynet_mnist", "tinynet_cifar", TRAINED_HERE]
    results = folder / "finetune_start.csv"
    folder.mkdir(parents=True, exist_ok=True)
    if not results.exists():
        results.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
    with open(results, encoding="utf-8", newline="") as file:
        done = {tuple(row[name] for name in COLUMNS[:4]) for row in csv.DictReader(file)}
    for seed, network, dataset, way in product(range(5), networks, DATASETS, WAYS):
        if (dataset, network, way, str(seed)) in done:
            continue
        line = measure(folder, dataset, network, way, seed)
        with open(results, "a", encoding="utf-8", newline="") as file:
            csv.writer(file).writerow([dataset, network, way, seed, *line])


def measure(folder: Path, dataset: str, network: str, way: str, seed: int) -> list[float]:
    """The columns after the first four: one fine-tuning of one network, started in one way."""
    arguments = [*DATASETS[dataset], *IMAGE_SIZE.get(network, []), *WAYS[way]]
    if network == TRAINED_HERE:
        arguments.append(f"weights={trained_here(folder)}")
    probe, (paths, record) = run(folder, network, [*arguments, f"seed={seed}", f"dataset.val_seed={seed}"])
    lines = read_metrics(paths.metrics)
    first = next(line for line in lines if line["kind"] == "step")
    epoch_1 = next(line for line in lines if line["kind"] == "epoch")
    start = record.details["start"]["batch_accuracy"] if way == "refitted" else probe[1].metrics["val_accuracy"]
    figures = [start, first["train/loss"], first["train/accuracy"], epoch_1["val/accuracy"]]
    figures += [record.metrics["val_accuracy"], record.metrics["test_accuracy"], record.phase_s]
    return [round(float(value), 5) for value in figures]


def run(folder: Path, network: str, arguments: list[str]) -> list[tuple[RunPaths, RunRecord]]:
    """Carry out a fine-tuning and what it needs, here: its last two runs, the probe if there is one and itself."""
    places = [f"store.dir={folder / 'store'}", f"cache.dir={folder / 'cache'}"]
    filled = [a.replace("{data}", os.environ["TRANSFERGRID_DATA_DIR"]) for a in arguments]
    request = load_run(["phase=finetune", f"model={network}", *MACHINE, *places, *filled])
    done = []
    for spec in request.runs.values():
        for each in (*spec.extractions, spec):
            carry_out(each, request.runtime)
        paths = store_paths(request.runtime).run(spec.run_id)
        record = read_record(paths)
        if record is None or record.status != "completed":
            raise SystemExit(f"{spec.run_id}: {record and record.error}")
        done.append((paths, record))
    return done[-2:]


def trained_here(folder: Path) -> Path:
    """The file of a torchvision network trained from random weights on 10,000 CIFAR-10 images, made where it is not."""
    path = folder / f"{TRAINED_HERE}.pth"
    if not path.exists():
        arguments = [*DATASETS["cifar10-jpeg"][:2], "dataset.max_images=10000", *IMAGE_SIZE[TRAINED_HERE]]
        ((paths, record),) = run(folder, TRAINED_HERE, [*arguments, "weights=random", *PRETRAINING])
        state = load_weights(paths)
        names = {n: n.removeprefix("backbones.0.") if n.startswith("b") else f"fc.{n[5:]}" for n in state}
        torch.save({names[n]: value for n, value in state.items()}, path)
        print(f"{TRAINED_HERE}: test accuracy {record.metrics['test_accuracy']:.4f}", flush=True)
    return path


if __name__ == "__main__":
    main()
