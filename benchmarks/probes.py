"""python benchmarks/probes.py few_images digits mnist cifar10-jpeg=FOLDER [cache=DIR] > FILE, or table FILE, or time

few_images: the solved head, and what stands beside it, on 5, 20 and 100 images of each class; 10 draws, which all heads
share, and a val no larger than the images trained on. Every choice is made on that val. A line of CSV per draw.
time: the whole path beside one head at C = 1 as the release before solved it, in turn, in CPU seconds.
"""

from __future__ import annotations

import csv
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from transfergrid.config import load_run
from transfergrid.config.schema import DEFAULTS
from transfergrid.data import load
from transfergrid.data.folds import Fold, Folds
from transfergrid.data.splits import rows_per_class
from transfergrid.networks.head_path import HeadPath, OnVal, best_of
from transfergrid.networks.heads import fit_standardiser
from transfergrid.networks.solved_head import LogisticRegression, SoftmaxProblem, fit_lbfgs
from transfergrid.paths import store_paths
from transfergrid.phases import RunContext
from transfergrid.phases._heads_beside import references
from transfergrid.phases._heads_on_features import Bench, MadeHead, solve_beside, train_by_sgd
from transfergrid.phases.probe import load_features
from transfergrid.report.analysis.statistics import t_interval
from transfergrid.specs import ProbeSettings, seed_for
from transfergrid.store.attempts import begin_attempt
from transfergrid.training.stopping import StopFlag
from transfergrid.training.usage import UsageMeter

MODELS = ("tinynet_mnist", "tinynet_cifar", "tinynet_mnist+tinynet_cifar")
SHOTS, DRAWS = (5, 20, 100), 10
SIZES = {"threads": "1", "rows": "54000", "dims": "512"}
HEADS = ("sgd", "c1", "solved", "knn", "lda", "qda")
# The default probe of the release before.
FORMER = ["phase.probe.solver=sgd", "phase.probe.lrs=[3e-4,1e-3,3e-3,1e-2]", "phase.probe.weight_decays=[0,1e-4]"]
FORMER += ["phase.probe.epochs=5", "phase.probe.batch_size=256"]


# ---------------------------------------------------------------------------------------------------------- few images
def few_images(named: list[str], cache: str) -> None:
    """Features must be there: `run_phase.py phase=extract` for each network and data set makes them."""
    datasets = []
    for name, _, folder in (each.partition("=") for each in named):
        of_folder = ["dataset=image_folder", f"dataset.folder={folder}", f"dataset.name={name}"]
        datasets.append(of_folder if folder else [f"dataset={name}"])
    out = csv.writer(sys.stdout)
    out.writerow(["dataset", "model", "shots", "draw", "n_val", "C", "at_edge", *HEADS])
    for dataset in datasets:
        for model in MODELS:
            for line in _draws(dataset, model, cache):
                out.writerow(line)
                sys.stdout.flush()


def _draws(dataset: list[str], model: str, cache: str) -> Iterator[list[object]]:
    with tempfile.TemporaryDirectory() as folder:
        places = [f"cache.dir={cache}", f"store.dir={folder}", "device=cpu", "tracking=disabled"]
        request = load_run(["phase=probe", f"model={model}", *dataset, *FORMER, *places])
        spec, runtime = request.configurations[0].run, request.runtime
        assert isinstance(spec.settings, ProbeSettings)
        features, whole = load_features(spec, runtime)
        train, test = features["train"], features["test"]
        for shots in SHOTS:
            for draw in range(DRAWS):
                drawn_N = rows_per_class(train.labels_N, count=2 * shots, seed=seed_for("study", draw))
                rows_N = rows_per_class(train.labels_N[drawn_N], count=shots, seed=seed_for("share", draw))
                rest_N = np.setdiff1d(np.arange(len(drawn_N)), rows_N)
                parts = {"train": drawn_N[rows_N], "val": drawn_N[rest_N]}
                folds = {name: Fold("train", at_N, train.labels_N[at_N]) for name, at_N in parts.items()}
                raw = {name: torch.from_numpy(train.features_ND[at_N]) for name, at_N in parts.items()}
                raw["test"] = torch.from_numpy(test.features_ND)
                standardiser = fit_standardiser(raw["train"])
                store = store_paths(replace(runtime, store_dir=f"{folder}/{shots}-{draw}"))
                with begin_attempt(store.run("x"), spec) as attempt:
                    bench = Bench(
                        RunContext(replace(spec, seed=draw), runtime, attempt, StopFlag(), UsageMeter()),
                        spec.settings,
                        {name: standardiser.apply(rows_ND) for name, rows_ND in raw.items()},
                        Folds(folds["train"], folds["val"], (folds["val"],), whole.test, whole.unlabelled),
                        torch.device("cpu"),
                    )
                    accuracies, search = _heads(bench)
                names = [spec.dataset.name, model, shots, draw, len(rest_N), search["chosen"], search["at_edge"]]
                yield [*names, *(f"{accuracies[h]:.6f}" if h in accuracies else "" for h in HEADS)]


def _heads(bench: Bench) -> tuple[dict[str, float], dict[str, object]]:
    labels_N, test_ND = bench.folds.test.labels_N, bench.features["test"]
    head, details = solve_beside(bench)
    alone = fit_lbfgs(bench.features["train"], bench.labels(bench.folds.train), num_classes=bench.num_classes)
    trained = train_by_sgd(bench)
    predicted = {
        "solved": head.logits(test_ND).argmax(1).numpy(),
        "c1": alone.logits(test_ND).argmax(1).numpy(),
        "sgd": _logits(trained, test_ND).argmax(1).numpy(),
    }
    found = {name: float((predicted_N == labels_N).mean()) for name, predicted_N in predicted.items()}
    beside, _ = references(bench, predicted["solved"])
    return found | {name.removesuffix("_test_accuracy"): value for name, value in beside.items()}, details["search"][0]


def _logits(made: MadeHead, features_ND: Tensor) -> Tensor:
    return features_ND @ made.weight_CD.T + made.bias_C


def table(path: str) -> None:
    """The CSV of few_images as markdown: means over draws, and the solved head minus two others, paired by draw.

    Last, for each number of images, the mean of all data sets and networks that have every draw.
    """
    with open(path, encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    gains = ["− SGD [95 %]", "− C = 1 [95 %]"]
    header = ["images per class", "network", "SGD before", "C = 1", "solved", *gains, "kNN", "LDA", "QDA"]
    print(f"| {' | '.join(header)} |\n|---|---|{'---:|' * 8}")
    cells: dict[str, list[list[dict[str, str]]]] = {}
    for key in dict.fromkeys((x["dataset"], x["shots"], x["model"]) for x in lines):
        own = [x for x in lines if (x["dataset"], x["shots"], x["model"]) == key]
        if len(own) == DRAWS:
            cells.setdefault(key[1], []).append(own)
            print(_line(f"{key[0]}, {key[1]}", key[2], [[x] for x in own]))
    for shots, found in cells.items():
        print(_line(f"all, {shots}", f"{len(found)} rows", list(map(list, zip(*found, strict=True)))))


def _line(name: str, model: str, draws: list[list[dict[str, str]]]) -> str:
    """draws: of each, the lines that are averaged."""
    heads = [h for h in HEADS if all(x[h] for draw in draws for x in draw)]
    means = {h: [fmean(float(x[h]) for x in draw) for draw in draws] for h in heads}
    shown = [f"{100 * fmean(means[h]):.2f}" if h in means else "" for h in HEADS]
    pairs = [zip(means["solved"], means[other], strict=True) for other in ("sgd", "c1")]
    gains = [_gain([ours - theirs for ours, theirs in pair]) for pair in pairs]
    return f"| {name} | {model} | " + " | ".join([*shown[:3], *gains, *shown[3:]]) + " |"


def _gain(differences: list[float]) -> str:
    low, high = t_interval(differences)
    return f"{100 * fmean(differences):+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"


# ---------------------------------------------------------------------------------------------------------------- time
def measure_time(threads: int, rows: int, dims: int) -> None:
    """CPU seconds, on random ReLU features of the real MNIST pixels; 6,000 images to choose on."""
    torch.set_num_threads(threads)
    images = load("mnist", split="train", data_dir=Path(os.environ["TRANSFERGRID_DATA_DIR"]))
    pixels_ND = torch.from_numpy(images.read(np.arange(60000))).reshape(60000, -1).float() / 255
    mixing_DD = torch.randn(pixels_ND.shape[1], dims, generator=torch.Generator().manual_seed(0)) / 10
    features_ND = torch.relu((pixels_ND - pixels_ND.mean(0)) @ mixing_DD)
    labels_N = torch.from_numpy(images.labels_N)
    standardiser = fit_standardiser(features_ND[:rows])
    train_ND, val_ND = standardiser.apply(features_ND[:rows]), standardiser.apply(features_ND[54000:])
    val_N = labels_N[54000:]

    def score(head: LogisticRegression) -> OnVal:
        logits_NC = head.logits(val_ND)
        shares_V = (logits_NC.argmax(1) == val_N).double() / len(val_N)
        accuracy = float(shares_V.sum())
        return OnVal(accuracy, float(functional.cross_entropy(logits_NC, val_N)), accuracy, shares_V)

    for _ in range(2):
        began = time.process_time()
        iterations, norm = _former(train_ND, labels_N[:rows])
        former_s = time.process_time() - began
        began = time.process_time()
        alone = fit_lbfgs(train_ND, labels_N[:rows], num_classes=10)
        alone_s = time.process_time() - began
        began = time.process_time()
        problem, path = SoftmaxProblem(train_ND, labels_N[:rows], num_classes=10), HeadPath(DEFAULTS["probe"]["cs"])
        while path.advance(problem, score, check=lambda: None) is not None:
            pass
        head = path.finish(problem, check=lambda: None)
        path_s = time.process_time() - began
        steps = sum(t.iterations for t in path.trials) + head.iterations - best_of(path.trials).iterations
        print(f"C = 1 before: {former_s:.1f} s ({iterations} iterations, gradient norm {norm:.1e})")
        print(f"C = 1 now: {alone_s:.1f} s ({alone.iterations} iterations), ratio {alone_s / former_s:.2f}")
        print(
            f"path of {len(path.trials)} strengths: {path_s:.1f} s ({steps}), ratio {path_s / former_s:.2f}", flush=True
        )


def _former(features_ND: Tensor, labels_N: Tensor) -> tuple[int, float]:
    """fit_lbfgs of the release before: torch's own, in float64 throughout."""
    rows_ND = features_ND.double()
    weight_CD = torch.zeros(10, rows_ND.shape[1], dtype=torch.float64, requires_grad=True)
    bias_C = torch.zeros(10, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight_CD, bias_C],
        max_iter=10,
        history_size=20,
        line_search_fn="strong_wolfe",
        tolerance_grad=0.0,
        tolerance_change=0.0,
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(rows_ND @ weight_CD.T + bias_C, labels_N)
        loss = loss + weight_CD.square().sum() / (2 * len(rows_ND))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    iterations, norm = 0, float("inf")
    while iterations < 2000 and norm >= 1e-5:
        optimizer.step(objective)  # type: ignore[no-untyped-call]
        objective()
        assert weight_CD.grad is not None and bias_C.grad is not None
        norm = float(torch.cat([weight_CD.grad.flatten(), bias_C.grad]).norm())
        iterations += 10
    return iterations, norm


if __name__ == "__main__":
    what, *others = sys.argv[1:]
    options = dict(other.split("=", 1) for other in others if other.startswith(("cache=", *(f"{s}=" for s in SIZES))))
    if what == "few_images":
        few_images([o for o in others if not o.startswith("cache=")], options.get("cache", "cache"))
    elif what == "table":
        table(others[0])
    elif what == "time":
        measure_time(*(int(options.get(name, default)) for name, default in SIZES.items()))
