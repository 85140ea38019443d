"""Few or uneven images: batch and epochs that learn, weights of classes, val, and what plan and record say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report_cases as cases
import torch
from numpy.typing import NDArray
from PIL import Image
from small_runs import MACHINE, carry_out, final_run, record_of
from torch import Tensor, nn
from torch.nn import functional

from transfergrid import data
from transfergrid.cli.launch import launch
from transfergrid.config import load_grid, load_run
from transfergrid.data import DatasetFacts
from transfergrid.data.batches import NetworkInputs
from transfergrid.data.folds import Fold, Folds, class_weights, count_rows, make_folds
from transfergrid.errors import ConfigError
from transfergrid.phases._heads_on_features import FeatureTrainee, head_without_val
from transfergrid.specs import FinetuneSettings, ProbeSettings, ScratchSettings, Split, TrainSettings
from transfergrid.store.records import RunRecord
from transfergrid.training.loop import _forward_backward
from transfergrid.training.on_images import ImageTrainee

CPU = torch.device("cpu")
DIGITS = {split: data.load("digits", split=split, data_dir=Path()) for split in ("train", "test")}  # type: ignore[arg-type]


def digits_folder(folder: Path, *counts: int, test: int = 4) -> Path:
    """Handwritten digits as PNG files of 32 px: so many of each class to train on."""
    for split, wanted in (("train", counts), ("test", (test,) * len(counts))):
        images = DIGITS[split]
        for digit, count in enumerate(wanted):
            place = folder / split / f"digit_{digit}"
            place.mkdir(parents=True)
            for row in np.flatnonzero(images.labels_N == digit)[:count]:
                pixels_HW = images.read([row])[0][:, :, 0].repeat(4, 0).repeat(4, 1)
                Image.fromarray(pixels_HW).save(place / f"{row}.png")
    return folder


def settings(*arguments: str) -> TrainSettings:
    found = load_run(["dataset=digits", *arguments]).configurations[0].run.settings
    assert isinstance(found, TrainSettings)
    return found


# --------------------------------------------------------------------------------------------------- batch and epochs
@pytest.mark.parametrize(
    ("phase", "max_images", "batch_size", "epochs", "steps"),
    [
        ("finetune", 90, 16, 20, 100),  # 81 to train on, 5 whole batches
        ("scratch", 90, 16, 30, 150),
        ("finetune", 14, 13, 100, 100),  # fewer than 16: all of them in each step
        ("finetune", 600, 32, 10, 160),  # 540: at 64 ten epochs would be 80 steps
        ("scratch", 600, 128, 30, 120),
        ("finetune", 1437, 128, 10, 100),
        ("finetune", 100_000, 128, 10, 100),
    ],
)
def test_little_data_gets_a_batch_and_epochs_that_make_100_steps(
    phase: str, max_images: int, batch_size: int, epochs: int, steps: int
) -> None:
    model = "baseline_cnn" if phase == "scratch" else "tinynet_mnist"
    arguments = (f"model={model}", f"phase={phase}", f"dataset.max_images={max_images}")
    asked = load_run(["dataset=digits", *arguments]).configurations[0].run
    found = asked.settings
    assert isinstance(found, (FinetuneSettings, ScratchSettings))
    rows = round(0.9 * min(max_images, 1437))
    assert (found.batch_size, found.epochs, found.epochs * found.count_steps(rows)) == (batch_size, epochs, steps)
    if isinstance(found, ScratchSettings):
        assert found.lr == pytest.approx(0.1 * batch_size / 128)
    else:
        assert (found.lr, found.head_lr, found.stem_lr) == (1e-2, 2e-2, 1e-3)


@pytest.mark.parametrize(
    ("given", "batch_size", "epochs"),
    [
        (["phase.finetune.batch_size=128"], 128, 100),  # one step an epoch
        (["phase.finetune.batch_size=40"], 40, 50),
        (["phase.finetune.epochs=10"], 16, 10),
        (["phase.finetune.epochs=10", "phase.finetune.batch_size=128"], 128, 10),
        (["phase.finetune.micro_batch=64"], 64, 100),
        (["phase.finetune.steps_per_epoch=2"], 128, 10),
        (["dataset.shots=3"], 16, 100),
    ],
)
def test_what_is_set_stands_and_what_is_left_open_fits_it(given: list[str], batch_size: int, epochs: int) -> None:
    found = settings("model=tinynet_mnist", "phase=finetune", "dataset.max_images=90", *given)
    assert (found.batch_size, found.epochs) == (batch_size, epochs)


def test_a_variant_and_a_rule_set_them_as_the_command_line_does() -> None:
    variants = "grid.variants={usual:{phase.finetune:{epochs:10,batch_size:128}},few:{dataset.max_images:20}}"
    rules = "grid.rules=[{models:[googlenet],set:{phase.finetune.epochs:7}}]"
    models = ["grid.models=[resnet18,googlenet]", "grid.phases=[finetune]", "grid.seeds=[0]", "weights=random"]
    asked = load_grid(["grid=compare", "dataset=digits", "dataset.max_images=90", *models, variants, rules])
    found = {}
    for row in asked.configurations:
        assert isinstance(row.run.settings, FinetuneSettings)
        found[row.run.model, row.variant] = (row.run.settings.batch_size, row.run.settings.epochs)
    assert found == {
        ("resnet18", ""): (16, 20),
        ("googlenet", ""): (16, 7),
        ("resnet18", "usual"): (128, 10),
        ("googlenet", "usual"): (128, 10),
        ("resnet18", "few"): (16, 100),
        ("googlenet", "few"): (16, 7),
    }


def test_a_study_as_published_keeps_what_it_says_of_however_few_images() -> None:
    for grid in ("individual_vs_parallel_as_published", "scratch_cifar10_as_published"):
        few, whole = (load_grid([f"grid={grid}", *more]) for more in (["dataset.max_images=40"], []))
        assert [c.run.settings for c in few.configurations] == [c.run.settings for c in whole.configurations]


# ------------------------------------------------------------------------------------------- folds known without labels
@pytest.mark.parametrize("protocol", ["fair", "published"])
def test_the_plan_counts_the_very_images_that_a_job_then_trains_on(protocol: Any) -> None:
    rng = np.random.default_rng(1)
    for case in range(60):
        counts = rng.integers(1, 40, rng.integers(2, 9))
        labels: dict[Split, NDArray[np.int64]] = {
            "train": rng.permutation(np.repeat(np.arange(len(counts)), counts)),
            "test": np.arange(len(counts)),
        }
        if case % 3 == 0:
            labels["val"] = np.repeat(np.arange(len(counts)), 3)
        facts = DatasetFacts(
            kind="digits",
            fingerprint="",
            num_classes=len(counts),
            class_names=tuple(map(str, counts)),
            image_size_px=8,
            mirror_ok=True,
            num_images={split: len(labels_N) for split, labels_N in labels.items()},
            train_counts=tuple(counts.tolist()),
        )
        for max_images, fraction, shots in ((None, None, None), (len(counts) + 3, None, None), (None, 0.3, None)):
            spec = cases.spec("probe", "resnet18", protocol=protocol)
            dataset = replace(spec.dataset, max_images=max_images)
            spec = replace(spec, dataset=dataset, train_fraction=fraction, shots=shots)
            made = make_folds(spec, labels)
            counted = count_rows(facts, max_images=max_images, protocol=protocol, train_fraction=fraction, shots=shots)
            assert np.bincount(made.train.labels_N, minlength=len(counts)).tolist() == counted.train_C.tolist()
            assert counted.val == (0 if made.val is None else len(made.val)) and counted.test == len(made.test)
            assert counted.gate == sum(map(len, made.gate))


def test_the_digits_have_the_counts_that_their_facts_say() -> None:
    assert data.facts("digits").train_counts == tuple(np.bincount(DIGITS["train"].labels_N).tolist())


@pytest.mark.realdata
def test_mnist_has_the_counts_that_its_facts_say(real_data_dir: Path) -> None:
    labels_N = data.load("mnist", split="train", data_dir=real_data_dir).labels_N
    assert data.facts("mnist").train_counts == tuple(np.bincount(labels_N).tolist())


# -------------------------------------------------------------------------------------------------------------- weights
def uneven() -> Fold:
    """36 digits of three classes: 24, 8 and 4."""
    labels_N = DIGITS["train"].labels_N
    rows = np.sort(np.concatenate([np.flatnonzero(labels_N == c)[:n] for c, n in enumerate((24, 8, 4))]))
    return Fold("train", rows, labels_N[rows])


def folds_of(train: Fold) -> Folds:
    return Folds(train, None, (train,), train, train)


def test_an_images_weight_is_that_of_scikit_learn() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    train, balanced = uneven(), settings("model=baseline_cnn", "phase=scratch", "class_weights=balanced")
    weights_C = class_weights(balanced, train)
    assert weights_C is not None and weights_C.tolist() == [0.5, 1.5, 3.0]
    expected_C = compute_class_weight("balanced", classes=np.arange(3), y=train.labels_N)
    assert weights_C.tolist() == pytest.approx(expected_C.tolist())
    assert class_weights(replace(balanced, class_weights="none"), train) is None


class TwoHeads(nn.Module):
    """A network with an auxiliary head, as GoogLeNet has."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head, self.aux = nn.Linear(192, 3), nn.Linear(192, 3)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        flat = images.flatten(1)
        return self.head(flat), [self.aux(flat)]


def image_trainee(network: nn.Module, *, label_smoothing: float = 0.1) -> ImageTrainee:
    chosen = load_run(["dataset=digits", "model=tinynet_mnist", "phase=finetune", "class_weights=balanced"])
    spec = chosen.configurations[0].run
    fed = replace(spec.backbones[0].preprocess, mode="direct", crop_px=8)
    inputs = NetworkInputs(
        {"train": DIGITS["train"]}, (fed,), device=CPU, resident_gb=1.0, rows={"train": uneven().index_N}
    )
    assert isinstance(spec.settings, FinetuneSettings)
    plain = replace(spec.settings, precision="fp32", shift_px=0, label_smoothing=label_smoothing)
    return ImageTrainee(
        network,
        inputs,
        folds_of(uneven()),
        plain,
        seed=0,
        kept_in_eval=frozenset(),
        aux_loss_weight=0.3,
        watch_test=False,
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_on_images_is_the_weighted_mean_that_plain_torch_gives(smoothing: float) -> None:
    network = TwoHeads()
    trainee = image_trainee(network, label_smoothing=smoothing)
    rows = torch.arange(36)
    loss, _ = trainee.losses(rows, epoch=1)

    labels_N = torch.from_numpy(uneven().labels_N)
    [images] = trainee._inputs.batch("train", torch.from_numpy(uneven().index_N), draws=None, augment_at="native")
    weight_C, expected = torch.tensor([0.5, 1.5, 3.0]), torch.zeros(())
    for logits_NC, share in zip((network(images)[0], *network(images)[1]), (1.0, 0.3), strict=True):
        log_p_NC = functional.log_softmax(logits_NC, dim=1)
        own_N = log_p_NC.gather(1, labels_N[:, None])[:, 0]
        loss_N = -(1 - smoothing) * own_N - smoothing * log_p_NC.mean(1)
        expected = expected + share * (weight_C[labels_N] * loss_N).sum() / 36
        if not smoothing:  # over all rows the weights' mean is 1, so torch's own weighted mean is the same number
            torch_own = functional.cross_entropy(logits_NC, labels_N, weight=weight_C)
            assert (weight_C[labels_N] * loss_N).mean().item() == pytest.approx(torch_own.item(), rel=1e-5)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_micro_batches_add_up_to_the_gradient_of_the_whole_batch() -> None:
    gradients = []
    for micro_batch in (None, 5):
        network = TwoHeads()
        trainee = image_trainee(network)
        loss, _ = _forward_backward(trainee, torch.arange(36), micro_batch, 1)
        assert network.head.weight.grad is not None
        gradients.append((float(loss.detach()), network.head.weight.grad.clone()))
    assert gradients[0][0] == pytest.approx(gradients[1][0], rel=1e-5)
    assert torch.allclose(gradients[0][1], gradients[1][1], atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_a_head_on_features_is_weighted_alike(smoothing: float) -> None:
    train = uneven()
    probe = settings("model=tinynet_mnist", "phase=probe", "class_weights=balanced")
    assert isinstance(probe, ProbeSettings)
    probe = replace(probe, label_smoothing=smoothing)
    features_ND = torch.from_numpy(np.stack(list(DIGITS["train"].read(train.index_N))).reshape(36, 64)).float() / 255
    folds = folds_of(train)
    trainee = FeatureTrainee(
        {"train": features_ND}, folds, probe, num_classes=3, num_heads=2, seed=0, device=CPU, watch_test=False
    )
    loss_H, _ = trainee.losses(torch.arange(36), epoch=1)
    labels_N = torch.from_numpy(train.labels_N)
    weight_C = torch.tensor([0.5, 1.5, 3.0])
    logits_HNC = trainee.module(features_ND)
    for head in range(2):
        loss_N = functional.cross_entropy(logits_HNC[head], labels_N, label_smoothing=smoothing, reduction="none")
        expected = (weight_C[labels_N] * loss_N).mean()
        assert loss_H[head].item() == pytest.approx(expected.item(), rel=1e-6)


def test_one_key_weighs_every_phase_and_a_phases_own_key_wins() -> None:
    both = ["grid=compare", "dataset=digits", "grid.models=[tinynet_mnist]", "grid.seeds=[0]"]
    asked = load_grid([*both, "class_weights=balanced", "phase.probe.class_weights=none"])
    assert {c.run.phase: c.run.settings.class_weights for c in asked.configurations} == {  # type: ignore[union-attr]
        "probe": "none",
        "finetune": "balanced",
    }
    varied = load_grid([*both, "grid.variants={weighted:{class_weights:balanced}}"])
    assert {(c.variant, c.run.settings.class_weights) for c in varied.configurations} == {  # type: ignore[union-attr]
        ("", "none"),
        ("weighted", "balanced"),
    }
    assert len({c.run.run_id for c in varied.configurations}) == 4
    hand = load_run(["dataset=digits", "model=tinynet_mnist", "phase=probe", "class_weights=balanced"])
    assert hand.configurations[0].variant == "class_weights-balanced"
    with pytest.raises(ConfigError, match="class_weights='even' is not one of none, balanced"):
        load_grid([*both, "class_weights=even"])


@pytest.mark.slow
def test_weights_raise_the_recall_of_the_rare_class(tmp_path: Path) -> None:
    """Threes and eights, 100 to 8: as a network from scratch learns them in a hundred steps."""
    folder = tmp_path / "rare"
    for split, counts in (("train", (100, 8)), ("test", (30, 30))):
        for digit, count in zip((3, 8), counts, strict=True):
            place = folder / split / str(digit)
            place.mkdir(parents=True)
            for row in np.flatnonzero(DIGITS[split].labels_N == digit)[:count]:
                pixels_HW = DIGITS[split].read([row])[0][:, :, 0].repeat(4, 0).repeat(4, 1)
                Image.fromarray(pixels_HW).save(place / f"{row}.png")
    recall = {}
    for weights in ("none", "balanced"):
        record = trained(tmp_path, folder, "scratch", f"class_weights={weights}", "phase.scratch.epochs=15")
        assert record.details["class_counts"] == {"largest": 90, "smallest": 7}
        recall[weights] = record.metrics["test_macro_recall"]
    assert recall["balanced"] > recall["none"] + 0.03


# ----------------------------------------------------------------------------------------------------------------- runs
def trained(tmp_path: Path, folder: Path, phase: str, *arguments: str, model: str = "tinynet") -> RunRecord:
    """The record of one run on a folder, with everything left open that the defaults decide."""
    model = model if phase == "scratch" else f"{model}_mnist"
    places = [f"store.dir={tmp_path / 'store'}", f"cache.dir={tmp_path / 'cache'}"]
    images = ["dataset=image_folder", f"dataset.folder={folder}"]
    asked = load_run([*MACHINE, *places, *images, f"model={model}", f"phase={phase}", *arguments])
    assert carry_out(asked) == "completed", record_of(final_run(asked), asked.runtime).error
    return record_of(final_run(asked), asked.runtime)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("counts", "n_train", "n_val", "batch_size", "finetune_epochs"),
    [((7, 7), 13, 1, 13, 100), ((1,) * 6, 6, 0, 6, 100), ((9,) * 10, 81, 9, 16, 20)],
    ids=["2 x 7", "6 x 1", "90"],
)
def test_a_folder_of_few_pictures_is_trained_on_for_100_steps_by_default(
    counts: tuple[int, ...], n_train: int, n_val: int, batch_size: int, finetune_epochs: int, tmp_path: Path
) -> None:
    folder = digits_folder(tmp_path / "pics", *counts)
    for phase, arguments in (("finetune", ["phase.finetune.head=random"]), ("scratch", [])):
        record = trained(tmp_path, folder, phase, *arguments)
        found = record.spec.settings
        assert isinstance(found, TrainSettings) and record.n_train == n_train
        assert found.batch_size == batch_size
        assert found.epochs == (finetune_epochs if phase == "finetune" else max(30, finetune_epochs))
        assert record.details["optimizer_steps"] == found.epochs * (n_train // batch_size) >= 100
        assert record.details["n_val"] == n_val and ("val_accuracy" in record.metrics) is (n_val > 0)


@pytest.mark.slow
def test_one_picture_per_class_goes_through_all_phases_and_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = digits_folder(tmp_path / "single", *(1,) * 6)
    where = ["dataset=image_folder", f"dataset.folder={folder}", f"store.dir={tmp_path}/store"]
    where.append(f"cache.dir={tmp_path}/cache")
    arguments = [
        *("grid=compare", "grid.models=[tinynet_mnist,tinynet]", "grid.phases=[probe,finetune,scratch]"),
        *("grid.seeds=[0]", "phase.finetune.epochs=2", "phase.scratch.epochs=2", "cluster=local", "device=cpu"),
        *("tracking=disabled", *where),
    ]
    assert launch(arguments) == 0
    told = capsys.readouterr().out
    assert "single: no class has two training images, so val is empty and nothing is chosen on it" in told
    assert "single: finetune takes 2 optimizer steps on 6 images, fewer than 50" in told
    asked = load_grid([*arguments, "dry_run=true"])
    for row in asked.configurations:
        record = record_of(row.run, asked.runtime)
        assert (record.n_train, record.details["n_val"]) == (6, 0) and "val_accuracy" not in record.metrics
        assert record.details["class_counts"] == {"largest": 1, "smallest": 1}
        assert record.metrics["train_accuracy"] == 1.0 or row.run.phase != "probe"
    with pytest.raises(ConfigError, match="no class of single has two images, so none was held out"):
        load_run([f"run={row.run.run_id}", "phase=evaluate", "phase.evaluate.split=val", *where])


def test_without_val_the_middle_rate_and_the_largest_decay_are_taken() -> None:
    probe = settings(
        "model=tinynet_mnist", "phase=probe", "phase.probe.solver=sgd", "phase.probe.lrs=[0.1,0.001,0.01,0.03]"
    )
    assert isinstance(probe, ProbeSettings)
    probe = replace(probe, weight_decays=(1e-4, 0.0))
    assert head_without_val(probe) == 4  # of 0.1, 0.001, 0.01, 0.03, each with two decays: 0.01 with 1e-4
    assert head_without_val(replace(probe, lrs=(0.5,), weight_decays=(0.0,))) == 0


def test_only_where_other_images_are_held_out_does_a_scratch_run_get_another_name(tmp_path: Path) -> None:
    def rules(*counts: int, protocol: str = "fair") -> int:
        folder = digits_folder(tmp_path / "-".join(map(str, counts)), *counts)
        arguments = ["dataset=image_folder", f"dataset.folder={folder}", "model=baseline_cnn", "phase=scratch"]
        return load_run([*arguments, f"cache.dir={tmp_path}/cache"]).configurations[0].run.rules

    assert rules(9, 1, 1) == rules(2, 2) == 1  # val is one image of a class that can spare it, as it was
    assert rules(1, 1, 1) == 2


# --------------------------------------------------------------------------------------------------------- what is said
def plan_of(tmp_path: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """The cautions of a plan: what stands between its runs and its end."""
    places = [f"store.dir={tmp_path / 'store'}", f"cache.dir={tmp_path / 'cache'}", "cluster=local", "dry_run=true"]
    assert launch(["tracking=disabled", *arguments, *places]) == 0
    lines = capsys.readouterr().out.splitlines()
    if lines[1].startswith("model "):  # a table of models and data sets, and its legend
        lines = lines[next(i for i, line in enumerate(lines) if line.endswith(" to run")) :]
    return [line for line in lines[1:-1] if not line.startswith(("  ", "expected: ", "writes about "))]


def test_the_plan_names_few_val_images_few_steps_and_uneven_classes_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = digits_folder(tmp_path / "pics", 70, 10, 20)
    arguments = [
        *("grid=compare", "dataset=image_folder", f"dataset.folder={folder}"),
        *("grid.models=[tinynet_mnist,tinynet_cifar,baseline_cnn]", "grid.phases=[finetune,scratch]"),
        *("grid.variants={shorter:{phase.finetune.epochs:8}}", "phase.finetune.epochs=10"),
    ]
    assert plan_of(tmp_path, capsys, *arguments, "phase.finetune.batch_size=64") == [
        "pics: train 100 images (10 to 70 per class), test 12 images (4 per class)",
        "pics: 10 val images, fewer than 30: one image moves val accuracy, which decides choices, by 10.0 points",
        "pics: the largest class has 63 images to train on, the smallest 9: class_weights=balanced trains for it,"
        " select_by=balanced_accuracy chooses for it",
        "pics: finetune takes 8 to 10 optimizer steps on 90 images, fewer than 50; raise phase.finetune.epochs or lower"
        " phase.finetune.batch_size, or leave both unset",
    ]
    weighted = plan_of(tmp_path, capsys, *arguments, "class_weights=balanced")
    assert weighted[2].endswith("to train on, the smallest 9: select_by=balanced_accuracy chooses for it")
    assert len(weighted) == 4  # batches of 16 are 50 steps in ten epochs, 40 in eight
    assert "finetune takes 40 optimizer steps" in weighted[3]


def test_the_plan_says_nothing_but_what_was_found_where_there_is_enough(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan_of(tmp_path, capsys, "grid=quickstart") == []
    # Three times as many is not more than three times.
    folder = digits_folder(tmp_path / "thirds", 100, 34, 100, 100)
    arguments = ["dataset=image_folder", f"dataset.folder={folder}", "grid.models=[tinynet_mnist]"]
    found = "thirds: train 334 images (34 to 100 per class), test 16 images (4 per class)"
    assert plan_of(tmp_path, capsys, "grid=compare", *arguments) == [found]


@pytest.mark.realdata
def test_ninety_photographs_are_fine_tuned_for_100_steps(real_data_dir: Path, tmp_path: Path) -> None:
    for split, count in (("train", 30), ("test", 10)):
        for name in ("cat", "dog", "ship"):
            (tmp_path / "pics" / split / name).mkdir(parents=True)
            for path in sorted((real_data_dir / "cifar10-jpeg" / split / name).iterdir())[:count]:
                (tmp_path / "pics" / split / name / path.name).write_bytes(path.read_bytes())
    record = trained(tmp_path, tmp_path / "pics", "finetune", "phase.finetune.head=random")
    assert (record.n_train, record.details["n_val"], record.details["optimizer_steps"]) == (81, 9, 100)
    assert (record.epochs, record.details["class_counts"]) == (20, {"largest": 27, "smallest": 27})
