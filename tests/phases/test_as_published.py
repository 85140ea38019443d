"""The grids that replay a study do what the study's code did: asserted on the objects that train, at the first step.

What the studies did is written down here once more, from their code: not from report/studies/settings.py, which is
under test too.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import step_one
import torch
from numpy.typing import NDArray
from PIL import Image
from step_one import Row, StepOne, first_step
from torch import Tensor
from torch.nn import functional
from torchvision import transforms

from transfergrid.data.augment import AugmentPlan
from transfergrid.networks.joined import is_auxiliary
from transfergrid.report.studies.published import differs, lookup
from transfergrid.specs import RunSpec, ScratchSettings
from transfergrid.training.loop import epoch_order
from transfergrid.training.optimization import learning_rates, lr_factor, set_learning_rates

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
NUM_TRAIN = {"mnist": 60_000, "cifar10": 50_000}
BORDER, CUTOUT = "border of the shift", "fill of Cutout"
LOOKAHEAD = "start of Lookahead and which of its weights are tested"
SINGLES = ("vgg16", "resnet18", "googlenet")
PAIRS = ("resnet18+vgg16_gap", "resnet18+googlenet", "vgg16_gap+googlenet")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # store and cache lie where the command is given


def images_of(step: StepOne, epoch: int = 1) -> list[NDArray[np.uint8]]:
    """The images (H, W, C) of the first batch, before anything has been done to them."""
    assert step.run.seed is not None
    order_N = epoch_order(step.trainee.num_rows, step.settings, seed=step.run.seed, epoch=epoch)
    source = step_one.made_up(step.run.dataset.kind, "train")
    return list(source.read(order_N[: step.settings.batch_size].numpy()))


def fed_when_tested(step: StepOne, index: int) -> Tensor:
    """(3, H, W) of one test image, as it is fed in when the run is evaluated."""
    return step.trainee._inputs.batch("test", torch.tensor([index]))[0][0]


def image_when_tested(step: StepOne, index: int) -> NDArray[np.uint8]:
    return step_one.made_up(step.run.dataset.kind, "test").read([index])[0]


def pillow(image_HWC: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(image_HWC[:, :, 0] if image_HWC.shape[2] == 1 else image_HWC)


def rates_over_the_run(step: StepOne) -> list[dict[str, float]]:
    """The optimizer's own learning rates at the first step of every epoch."""
    steps = step.settings.count_steps(step.trainee.num_rows)
    found = []
    for epoch in range(step.settings.epochs):
        set_learning_rates(step.optimizer, lr_factor(step.settings, step=epoch * steps, steps_per_epoch=steps))
        found.append(learning_rates(step.optimizer))
    last = lr_factor(step.settings, step=step.settings.epochs * steps - 1, steps_per_epoch=steps)
    set_learning_rates(step.optimizer, last)
    assert learning_rates(step.optimizer) == found[-1]  # it moves between epochs alone
    return found


def assert_adam(step: StepOne, *, weight_decay: float = 0.0) -> None:
    optimizer = step.base_optimizer
    assert type(optimizer) is torch.optim.Adam
    for group in optimizer.param_groups:
        assert group["betas"] == (0.9, 0.999) and group["eps"] == 1e-8 and not group["amsgrad"]
        assert group["weight_decay"] == weight_decay


# ------------------------------------------------------------------------------------------- individual_vs_parallel
IVP_ROWS: list[Row] = [
    *((d, m, p, "") for d in ("mnist", "cifar10") for m in SINGLES for p in ("probe", "finetune")),
    *((d, m, "finetune", "") for d in ("mnist", "cifar10") for m in PAIRS),
]


def test_the_replay_of_individual_vs_parallel_has_the_rows_of_the_study() -> None:
    rows, _ = step_one.grid("individual_vs_parallel_as_published")
    assert set(rows) == set(IVP_ROWS) and len(IVP_ROWS) == 18


@pytest.mark.parametrize("row", IVP_ROWS, ids="-".join)
def test_only_the_border_of_the_crop_differs_from_individual_vs_parallel(row: Row) -> None:
    rows, _ = step_one.grid("individual_vs_parallel_as_published")
    assert differences("individual_vs_parallel_as_published", row, rows[row].run) == (
        (BORDER,) if is_augmented(row) else ()
    )


@pytest.mark.slow
@pytest.mark.parametrize("row", IVP_ROWS, ids="-".join)
def test_step_one_of_individual_vs_parallel(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, model, phase, _ = row
    rows, runtime = step_one.grid("individual_vs_parallel_as_published", "weights=random")
    step = first_step(rows[row].run, runtime, monkeypatch)
    pair = "+" in model

    # Batches: all images, shuffled, the last and smaller batch too.
    size, steps = (64, {"mnist": 938, "cifar10": 782}) if pair else (32, {"mnist": 1875, "cifar10": 1563})
    assert step.trainee.num_rows == NUM_TRAIN[dataset] and step.trainee._folds.val is None
    assert [tuple(x.shape) for x in step.batches[0]] == [(size, 3, 224, 224)] * (2 if pair else 1)
    assert step.settings.count_steps(step.trainee.num_rows) == steps[dataset]
    order_N = epoch_order(step.trainee.num_rows, step.settings, seed=0, epoch=1)
    assert order_N.sort().values.tolist() == list(range(NUM_TRAIN[dataset]))

    # Everything is in training mode, frozen BatchNorm layers and dropout too, in float32.
    assert step.modes and all(step.modes.values()) and not step.mixed_precision

    # The optimizer, what it holds, and at which rate; the same in every epoch.
    assert_adam(step)
    assert step.rates_by_parameter() == expected_rates(step, model, phase)
    trained = {name for name, p in step.network.named_parameters() if p.requires_grad}
    assert trained == set(step.rates_by_parameter())
    assert step.settings.epochs == (5 if phase == "probe" else 10)
    over_the_run = rates_over_the_run(step)
    assert all(rates == over_the_run[0] for rates in over_the_run) and len(over_the_run) == step.settings.epochs

    for index in (0, 1):
        expected = studied_transform(dataset)(pillow(image_when_tested(step, index)))
        assert torch.allclose(fed_when_tested(step, index), expected, atol=1e-6)
    for image_HWC, *fed in zip(images_of(step)[:2], *step.batches[0], strict=False):
        for made in fed:
            expected = studied_transform(dataset)(pillow(image_HWC))
            if is_augmented(row):
                assert_flipped_and_cropped(made, expected)
            else:
                assert torch.allclose(made, expected, atol=1e-6)

    auxiliary = sorted({name.split(".")[2] for name, _ in step.network.named_parameters() if is_auxiliary(name)})
    assert auxiliary == (["aux1", "aux2"] if model == "googlenet" else [])


def is_augmented(row: Row) -> bool:
    return row[0] == "cifar10" and "+" not in row[1]


def studied_transform(dataset: str) -> transforms.Compose:
    grey = [transforms.Grayscale(num_output_channels=3)] if dataset == "mnist" else []
    end = [transforms.ToTensor(), transforms.Normalize(*IMAGENET)]
    return transforms.Compose([transforms.Resize((224, 224)), *grey, *end])


def expected_rates(step: StepOne, model: str, phase: str) -> dict[str, float]:
    """The study's lists of parameters: `fc` (and the auxiliary heads' `fc2`) at 1e-3, in phase 2 the rest at 1e-5.

    Of VGG16 its phase 2 takes `features` alone; its pairs train both trunks at 1e-4.
    """
    rates = {}
    for name, _ in step.network.named_parameters():
        if name.startswith("head.") or name.split(".")[-2] == "fc2":
            rates[name] = 1e-3
        elif phase == "finetune" and not (model == "vgg16" and ".classifier." in name):
            rates[name] = 1e-4 if "+" in model else 1e-5
    return rates


def assert_flipped_and_cropped(made_3HW: Tensor, expected_3HW: Tensor) -> None:
    """One of two mirror images, moved by up to 4 pixels; what comes in from outside is not compared: see BORDER."""
    inner = slice(8, -8)
    for mirrored in (expected_3HW, expected_3HW.flip(2)):
        for down in range(-4, 5):
            for right in range(-4, 5):
                moved = mirrored.roll((down, right), (1, 2))
                if torch.allclose(made_3HW[:, inner, inner], moved[:, inner, inner], atol=1e-6):
                    kept = made_3HW[:, max(down, 0) : 224 + min(down, 0), max(right, 0) : 224 + min(right, 0)]
                    whole = moved[:, max(down, 0) : 224 + min(down, 0), max(right, 0) : 224 + min(right, 0)]
                    assert torch.allclose(kept, whole, atol=1e-6)
                    return
    raise AssertionError("not a flip and a shift of up to 4 pixels, after the enlargement to 224")


@pytest.mark.parametrize("phase", ["probe", "finetune"])
def test_googlenets_loss_is_its_own_and_three_tenths_of_each_auxiliary_heads(
    phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, runtime = step_one.grid("individual_vs_parallel_as_published", "weights=random")
    step = first_step(rows["mnist", "googlenet", phase, ""].run, runtime, monkeypatch)
    rows_B = torch.tensor([0, 1, 2])
    torch.manual_seed(1)  # of dropout
    loss, _ = step.trainee.losses(rows_B, 1)
    torch.manual_seed(1)
    logits_BC, (first_BC, second_BC) = step.network(*step.trainee._inputs.batch("train", rows_B))
    labels_B = torch.tensor([0, 1, 2])
    main, first, second = (
        float(functional.cross_entropy(x.detach(), labels_B)) for x in (logits_BC, first_BC, second_BC)
    )
    assert float(loss.detach()) == pytest.approx(main + 0.3 * first + 0.3 * second, rel=1e-5)
    assert first > 0 and second > 0


# -------------------------------------------------------------------------------------------------- scratch_cifar10
EPOCHS = {"lenet5": 21, "cifar_resnet18": 11, "cifar_resnext29_32x4d": 37, "cifar_densenet121": 14}
SCRATCH_ROWS: dict[Row, int] = {("cifar10", model, "scratch", ""): epochs for model, epochs in EPOCHS.items()} | {
    ("cifar10", "lenet5", "scratch", f"epochs_{last}"): last + 1 for last in (5, 10, 30, 40, 55, 70, 95)
}


def test_the_replay_of_scratch_cifar10_has_the_rows_of_the_study() -> None:
    rows, _ = step_one.grid("scratch_cifar10_as_published")
    assert {row: getattr(c.run.settings, "epochs", None) for row, c in rows.items()} == SCRATCH_ROWS
    drawn_twice = "augmentation of an image drawn twice in an epoch"
    beyond = (drawn_twice, "fill of the rotation", "interpolation of the rotation", "steps of the perspective")
    for row, configuration in rows.items():
        # The epoch of each network is the study's own choice, by no rule that it states.
        chosen = () if row[3] else ("selection",)
        assert differences("scratch_cifar10_as_published", row, configuration.run) == (*chosen, *beyond), row


@pytest.mark.parametrize("row", SCRATCH_ROWS, ids=lambda row: f"{row[1]}-{row[3]}")
def test_step_one_of_scratch_cifar10(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, runtime = step_one.grid("scratch_cifar10_as_published")
    step = first_step(rows[row].run, runtime, monkeypatch, passes=1)

    # 1,666 batches, each 24 of all 50,000 images, drawn with replacement.
    assert step.trainee.num_rows == 50_000 and step.trainee._folds.val is None
    assert step.settings.count_steps(50_000) == 1666 and step.settings.batch_size == 24
    order_N = epoch_order(50_000, step.settings, seed=0, epoch=1)
    assert len(order_N) == 1666 * 24 and len(set(order_N.tolist())) == pytest.approx(
        50_000 * (1 - math.exp(-0.79968)), rel=0.01
    )

    # One image at a time, by which BatchNorm, in training mode, normalises.
    assert all(x.shape == (1, 3, 32, 32) for (x,) in step.batches) and len(step.batches) == 2
    layers = sum(type(m) is torch.nn.BatchNorm2d for m in step.network.modules())
    assert step.bn_images == [1] * layers and (layers == 0) == (row[1] == "lenet5")
    assert all(step.modes.values()) and not step.mixed_precision

    # SGD on every parameter alike.
    (group,) = step.optimizer.param_groups
    assert type(step.optimizer) is torch.optim.SGD
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (1e-3, 0.9, 5e-4)
    assert (group["nesterov"], group["dampening"]) == (False, 0)
    assert [id(p) for p in group["params"]] == [id(p) for p in step.network.parameters()]
    assert set(map(lambda rates: rates["lr/network"], rates_over_the_run(step))) == {1e-3}

    assert step.trainee._plan == AugmentPlan(
        flip=True,
        perspective=0.3,
        perspective_share=0.2,
        rotation_deg=30.0,
        rotation_expand=True,
        rotation_fill=255,
    )
    assert isinstance(step.settings, ScratchSettings) and step.settings.augment_at == "native"
    assert step.batches[0][0].mean((2, 3)).abs().max() < 1e-5
    assert step.batches[0][0].std((2, 3), correction=0).sub(1).abs().max() < 0.01
    for index in (0, 1):
        scaled_3HW = image_when_tested(step, index).transpose(2, 0, 1).astype(np.float32) / 255
        mean, std = (f(scaled_3HW, axis=(1, 2), keepdims=True) for f in (np.mean, np.std))
        expected = torch.from_numpy((scaled_3HW - mean) / (std + 0.0001))
        assert torch.allclose(fed_when_tested(step, index), expected, atol=1e-5)


def test_a_step_of_scratch_cifar10_is_plain_sgd_on_the_mean_loss_of_its_24_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows, runtime = step_one.grid("scratch_cifar10_as_published")
    step = first_step(rows["cifar10", "lenet5", "scratch", ""].run, runtime, monkeypatch, passes=24)
    after = {name: p.detach().clone() for name, p in step.network.named_parameters()}
    images_B3HW = torch.cat([x for (x,) in step.batches[:24]])
    labels_B = torch.from_numpy(step.trainee._folds.train.labels_N)[
        epoch_order(50_000, step.settings, seed=0, epoch=1)[:24]
    ]
    with torch.no_grad():
        for name, p in step.network.named_parameters():
            p.copy_(step.start[name])
    step.network.zero_grad()
    theirs = torch.optim.SGD(step.network.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
    functional.cross_entropy(step.network(images_B3HW)[0], labels_B).backward()  # type: ignore[no-untyped-call]
    theirs.step()
    for name, p in step.network.named_parameters():
        assert torch.allclose(p, after[name], rtol=1e-4, atol=1e-7), name
        assert not torch.equal(p, step.start[name]), name


@pytest.mark.parametrize("model", ["cifar_resnet18"])
def test_scratch_cifar10_is_tested_one_image_at_a_time_in_training_mode(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, runtime = step_one.grid("scratch_cifar10_as_published")
    step = first_step(rows["cifar10", model, "scratch", ""].run, runtime, monkeypatch)
    seen, counted = in_testing(step, num_images=3)
    assert seen == [(True, 1)] * 3 * sum(type(m) is torch.nn.BatchNorm2d for m in step.network.modules())
    assert counted == [1, 1, 1]


def in_testing(step: StepOne, *, num_images: int) -> tuple[list[tuple[bool, int]], list[int]]:
    """Evaluate a few test images: (training mode, images) of each BatchNorm layer, and images of each pass."""
    seen: list[tuple[bool, int]] = []
    counted: list[int] = []
    hooks = [step.network.register_forward_pre_hook(lambda _, inputs: counted.append(len(inputs[0])))]
    for module in step.network.modules():
        if type(module) is torch.nn.BatchNorm2d:
            hooks.append(module.register_forward_hook(lambda m, inputs, _: seen.append((m.training, len(inputs[0])))))
    fold = step.trainee._folds.test
    few = type(fold)(fold.split, fold.index_N[:num_images], fold.labels_N[:num_images])
    before = {name: b.clone() for name, b in step.network.named_buffers()}
    step.trainee.predict(step.network, few)
    assert all(torch.equal(b, before[name]) for name, b in step.network.named_buffers())
    for hook in hooks:
        hook.remove()
    return seen, counted


# --------------------------------------------------------------------------------------------------- small_resnet18
def small(batch: int, epochs: int, *, lr: float = 1e-2, **other: Any) -> dict[str, Any]:
    return {"batch": batch, "epochs": epochs, "lr": lr, "kind": "adam", "lookahead": True, "cosine": True} | other


ONE_CYCLE: dict[str, Any] = {"lr": 4e-4, "lookahead": False, "cosine": False}
SMALL_ROWS: dict[str, dict[str, Any]] = {
    "": small(256, 51),
    "batch_128": small(128, 51),
    "batch_512": small(512, 51),
    "lr_0.1": small(256, 51, lr=1e-1),
    "lr_0.001": small(256, 51, lr=1e-3),
    "lr_0.000001": small(256, 51, lr=1e-6),
    "batch_512_no_lookahead": small(512, 51, lookahead=False),
    "sgd_batch_128": small(128, 30, kind="sgd"),
    "onecycle_batch_128": small(128, 31, **ONE_CYCLE),
    "onecycle_batch_512": small(512, 31, **ONE_CYCLE),
    "batch_128_epochs_30": small(128, 30),
    "epochs_31": small(256, 31),
}
END = {128: 0.96, 256: 0.85, 512: 0.48}  # of the first rate, in the 51st epoch


def test_the_replay_of_small_resnet18_has_the_rows_of_the_study_and_names_what_differs() -> None:
    rows, _ = step_one.grid("small_resnet18_as_published")
    assert set(rows) == {("cifar10", "resnet10_wide", "scratch", variant) for variant in SMALL_ROWS}
    expected: dict[str, tuple[str, ...]] = dict.fromkeys(SMALL_ROWS, (BORDER, CUTOUT, LOOKAHEAD))
    expected["batch_512_no_lookahead"] = (BORDER, CUTOUT)
    expected["onecycle_batch_128"] = expected["onecycle_batch_512"] = (BORDER, CUTOUT, "beta1 of Adam")
    expected["batch_128_epochs_30"] = ("epochs", *expected["batch_128"])  # the study read on along the run of 51
    expected["epochs_31"] = ("settings not stated",)
    assert {row[3]: differences("small_resnet18_as_published", row, c.run) for row, c in rows.items()} == expected


@pytest.mark.parametrize("variant", SMALL_ROWS)
def test_step_one_of_small_resnet18(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, runtime = step_one.grid("small_resnet18_as_published")
    step = first_step(rows["cifar10", "resnet10_wide", "scratch", variant].run, runtime, monkeypatch)
    study = SMALL_ROWS[variant]

    assert sum(p.numel() for p in step.network.parameters()) == 4_903_242
    assert step.trainee.num_rows == 50_000 and step.trainee._folds.val is None
    assert step.batches[0][0].shape == (study["batch"], 3, 32, 32)
    assert step.settings.count_steps(50_000) == math.ceil(50_000 / study["batch"])
    assert epoch_order(50_000, step.settings, seed=0, epoch=1).sort().values.tolist() == list(range(50_000))
    assert all(step.modes.values()) and not step.mixed_precision

    (group,) = step.optimizer.param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in step.network.parameters()]
    if study["kind"] == "adam":
        assert_adam(step)
    else:
        assert type(step.base_optimizer) is torch.optim.SGD
        assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.9, False, 5e-4)
    assert (type(step.optimizer).__name__ == "Lookahead") == study["lookahead"]
    if study["lookahead"]:
        assert (group["lookahead_k"], group["lookahead_alpha"]) == (5, 0.5)

    found = [rates["lr/network"] for rates in rates_over_the_run(step)]
    assert found == pytest.approx(studied_rates(study)) and len(found) == study["epochs"]
    if study["cosine"] and study["epochs"] == 51:
        assert found[-1] / found[0] == pytest.approx(END[study["batch"]], abs=0.005)

    end = transforms.Compose([transforms.ToTensor(), transforms.Normalize(*CIFAR)])
    for index in (0, 1):
        assert torch.allclose(fed_when_tested(step, index), end(pillow(image_when_tested(step, index))), atol=1e-6)
    for image_HWC, made in zip(images_of(step)[:8], step.batches[0][0], strict=False):
        assert_cropped_flipped_and_cut_out(made, end(pillow(image_HWC)))


def studied_rates(study: dict[str, Any]) -> list[float]:
    """torch's own scheduler as the notebooks made it, moved once per epoch."""
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1e-2 if not study["cosine"] else study["lr"])
    scheduler: Any
    if study["cosine"]:
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=math.floor(50_000 / study["batch"]))
    else:
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, 30 * 50_000)
        assert optimizer.param_groups[0]["betas"] == (0.95, 0.999)  # which is named as a difference
    rates = []
    for _ in range(study["epochs"]):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return rates


def assert_cropped_flipped_and_cut_out(made_3HW: Tensor, expected_3HW: Tensor) -> None:
    """Moved by up to 4 pixels and maybe mirrored, but for the border and one square of at most 8 pixels."""
    grey = torch.tensor([(128 / 255 - mean) / std for mean, std in zip(*CIFAR, strict=True)])
    hole_HW = (made_3HW - grey[:, None, None]).abs().amax(0) < 1e-5
    rows, columns = (hole_HW.any(axis).nonzero().flatten() for axis in (1, 0))
    assert 16 <= int(hole_HW.sum()) <= 64 and len(rows) <= 8 and len(columns) <= 8
    assert int(hole_HW.sum()) == len(rows) * len(columns)
    for mirrored in (expected_3HW, expected_3HW.flip(2)):
        for down in range(-4, 5):
            for right in range(-4, 5):
                moved = mirrored.roll((down, right), (1, 2))
                same_HW = (moved - made_3HW).abs().amax(0) < 1e-5
                inside = slice(max(down, 0), 32 + min(down, 0)), slice(max(right, 0), 32 + min(right, 0))
                if bool((same_HW | hole_HW)[inside].all()):
                    return
    raise AssertionError("not a shift of up to 4 pixels, a flip and a hole")


def test_small_resnet18_is_tested_in_eval_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, runtime = step_one.grid("small_resnet18_as_published")
    step = first_step(rows["cifar10", "resnet10_wide", "scratch", ""].run, runtime, monkeypatch)
    seen, counted = in_testing(step, num_images=4)
    assert set(seen) == {(False, 4)} and counted == [4]


def differences(grid: str, row: Row, run: RunSpec) -> tuple[str, ...]:
    dataset, model, phase, variant = row
    figure = lookup(grid=grid, dataset=dataset, model=model, phase=phase, variant=variant)
    assert figure is not None, row
    return differs(figure, run)
