"""python benchmarks/finetune_start.py FOLDER [tinynet_mnist tinynet_cifar shufflenet_v2_x0_5]

Where should fine-tuning start? Four ways to hand the probe's head over, on 2,000 images (digits: all) of three data
sets, each way from the same weights, with the same order of images; chosen on val. Seed s also draws val, so five seeds
hold out five tenths of the images. FOLDER/finetune_start.csv gets a line per training; a second call adds what is
missing.

    as_it_is    the head fits the weights' own BatchNorm statistics; training uses those of each batch (bn=train)
    eval        the same head; BatchNorm keeps the weights' own statistics (bn=eval)
    target      statistics of the training images (bn_statistics=target) under the head; training uses each batch's
    refitted    the head fits features that BatchNorm made with batch statistics; training goes on with them

The head is the optimum at C = 1 everywhere, so no search of the probe decides. shufflenet_v2_x0_5 is trained here
first, on CIFAR-10 images of 64 px: what it shows holds for no ImageNet weights.
"""

from __future__ import annotations

import csv
import sys
import time
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from transfergrid.attempts import begin_attempt
from transfergrid.config import Request, load_run
from transfergrid.device import prepare_process
from transfergrid.heads import fit_lbfgs, fit_standardiser
from transfergrid.metrics_log import read_metrics
from transfergrid.network import JoinedNetwork, evaluating, predict
from transfergrid.paths import store_paths
from transfergrid.phases import RunContext
from transfergrid.phases._on_images import (
    Setting,
    build_joined,
    depth_groups,
    modules_kept_in_eval,
    open_setting,
    train_and_record,
)
from transfergrid.results import read_state
from transfergrid.specs import FinetuneSettings, RunSpec, Runtime
from transfergrid.stopping import StopFlag

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
    began = time.monotonic()
    arguments = [*DATASETS[dataset], *IMAGE_SIZE.get(network, []), *WAYS[way]]
    if network == TRAINED_HERE:
        arguments.append(f"weights={trained_here(folder)}")
    asked = request(folder / way, network, [*arguments, f"seed={seed}", f"dataset.val_seed={seed}"], cache=folder)
    spec, runtime = asked.configurations[0].run, asked.runtime
    metrics_path = store_paths(runtime).run(spec.run_id).metrics
    start, record = fine_tune(spec, runtime, refitted=way == "refitted")
    lines = read_metrics(metrics_path)
    first = next(line for line in lines if line["kind"] == "step")
    epoch_1 = next(line for line in lines if line["kind"] == "epoch")
    figures = [start, first["train/loss"], first["train/accuracy"], epoch_1["val/accuracy"]]
    figures += [record["val_accuracy"], record["test_accuracy"], time.monotonic() - began]
    return [round(float(value), 5) for value in figures]


def request(store: Path, network: str, arguments: list[str], *, cache: Path) -> Request:
    import os

    data = os.environ["TRANSFERGRID_DATA_DIR"]
    places = [f"store.dir={store}", f"cache.dir={cache / 'cache'}"]
    filled = [a.replace("{data}", data) for a in arguments]
    return load_run(["phase=finetune", f"model={network}", *MACHINE, *places, *filled])


def fine_tune(spec: RunSpec, runtime: Runtime, *, refitted: bool) -> tuple[float, dict[str, float]]:
    """Val accuracy of the head before the first step (as it was fitted), and the scores at the end."""
    settings = spec.settings
    assert isinstance(settings, FinetuneSettings)
    prepare_process(runtime)
    with begin_attempt(store_paths(runtime).run(spec.run_id), spec, live_jobs=None) as attempt:
        context = RunContext(spec, runtime, attempt, StopFlag())
        setting = open_setting(context, tuple(b.preprocess for b in spec.backbones))
        network = build_joined(spec, runtime, setting, auxiliary=False)
        start = float("nan")
        if settings.head != "random":
            start = solve_head(network, setting, settings, batch_statistics=refitted)
        record = train_and_record(
            context,
            setting,
            network,
            depth_groups(spec, runtime, network, settings),
            kept_in_eval=modules_kept_in_eval(network, all_batch_norm=settings.bn == "eval"),
            details={},
            saved=lambda trained: trained.state_dict() if settings.head == "random" else None,
        )
    return start, dict(record.metrics)


def solve_head(
    network: JoinedNetwork, setting: Setting, settings: FinetuneSettings, *, batch_statistics: bool
) -> float:
    """Give the network the head that is best on its features; its val accuracy under the same statistics."""
    fold, val = setting.folds.train, setting.folds.val
    assert val is not None
    size = settings.batch_size
    test_bn = "batch" if batch_statistics else "running"
    order_N = torch.randperm(len(fold), generator=torch.Generator().manual_seed(0))
    order_N = order_N[: len(order_N) - len(order_N) % size]  # no short batch: its statistics are not training's
    features: list[Tensor] = []
    with evaluating(network, setting.device, precision="fp32", test_bn=test_bn):
        index_batches = torch.split(torch.from_numpy(fold.index_N)[order_N], size)
        for inputs in setting.inputs.batches(fold.split, index_batches):
            blocks = [trunk(images) for trunk, images in zip(network.backbones, inputs, strict=True)]
            features.append(torch.cat(blocks, dim=1).float())
    features_ND, labels_N = torch.cat(features).clone(), torch.from_numpy(fold.labels_N)[order_N]
    standardiser = fit_standardiser(features_ND)
    solved = fit_lbfgs(standardiser.apply(features_ND), labels_N, num_classes=network.head.out_features)
    weight_CD, bias_C = standardiser.fold(solved.weight_CD, solved.bias_C)
    network.load_state_dict({"head.weight": weight_CD, "head.bias": bias_C}, strict=False)
    logits_NC = predict(network, setting.inputs, val, precision="fp32", test_bn=test_bn, batch_size=size)
    return float((logits_NC.argmax(1) == val.labels_N).mean())


def trained_here(folder: Path) -> Path:
    """The file of a torchvision network trained from random weights on 10,000 CIFAR-10 images, made where it is not."""
    path = folder / f"{TRAINED_HERE}.pth"
    if not path.exists():
        arguments = [*DATASETS["cifar10-jpeg"][:2], "dataset.max_images=10000", *IMAGE_SIZE[TRAINED_HERE]]
        asked = request(
            folder / "pretraining", TRAINED_HERE, [*arguments, "weights=random", *PRETRAINING], cache=folder
        )
        spec = asked.configurations[0].run
        _, scores = fine_tune(spec, asked.runtime, refitted=False)
        state = read_state(store_paths(asked.runtime).run(spec.run_id).weights)
        names = {n: n.removeprefix("backbones.0.") if n.startswith("b") else f"fc.{n[5:]}" for n in state}
        torch.save({names[n]: value for n, value in state.items()}, path)
        print(f"{TRAINED_HERE}: test accuracy {scores['test_accuracy']:.4f}", flush=True)
    return path


if __name__ == "__main__":
    main()
