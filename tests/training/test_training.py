"""The training loop: what a step is, and what is logged and saved."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import (
    StopAfter,
    carry_out,
    final_run,
    paths_of,
    record_of,
    request,
)
from torch import Tensor, nn

from transfergrid.data.batches import NetworkInputs
from transfergrid.data.folds import Fold
from transfergrid.errors import Interrupted, Superseded, TrainingDiverged
from transfergrid.networks import joined
from transfergrid.paths import RunPaths
from transfergrid.specs import RunSpec, ScratchSettings
from transfergrid.store import checkpoints
from transfergrid.store.attempts import begin_attempt
from transfergrid.store.checkpoints import checkpoint_files
from transfergrid.store.metrics_log import read_metrics
from transfergrid.training import loop, on_images, progress
from transfergrid.training.loop import FitResult, epoch_order, fit
from transfergrid.training.optimization import ParameterGroup, make_anchors, pull_to_start
from transfergrid.training.stopping import StopFlag
from transfergrid.training.usage import UsageMeter

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> RunSpec:
    return final_run(request(tmp_path_factory.mktemp("spec"), "model=tinynet", "phase=scratch"))


class Points:
    """A trainee of a few points in four dimensions; `spoil` may change the loss of a step."""

    num_heads = 1
    rows_on = torch.device("cpu")

    def __init__(self, num_rows: int, *, spoil: Callable[[int, Tensor], Tensor] | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        self.features_ND = torch.randn(num_rows, 4, generator=generator)
        self.labels_N = torch.randint(0, 3, (num_rows,), generator=generator)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.module: nn.Module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        self.num_rows = num_rows
        self.batches: list[list[int]] = []
        self._spoil = spoil

    def train_mode(self) -> None:
        self.module.train()

    def losses(self, rows_B: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        self.batches.append(rows_B.tolist())
        logits_BC = self.module(self.features_ND[rows_B])
        loss = nn.functional.cross_entropy(logits_BC, self.labels_N[rows_B])
        if self._spoil is not None:
            loss = self._spoil(len(self.batches), loss)
        return loss.unsqueeze(0), (logits_BC.argmax(1) == self.labels_N[rows_B]).sum().unsqueeze(0)

    def evaluate(self, module: nn.Module) -> dict[str, Any]:
        return {"val/accuracy": 0.5}


def settings_of(spec: RunSpec, **changes: Any) -> ScratchSettings:
    assert isinstance(spec.settings, ScratchSettings)
    plain: dict[str, Any] = {"schedule": "constant", "warmup_fraction": 0.0, "batch_size": 8, "drop_last": False}
    return replace(spec.settings, **(plain | changes))


def fit_points(
    points: Points,
    spec: RunSpec,
    folder: Path,
    *,
    interval_s: float = 60.0,
    lr: float = 0.1,
    stop: Any = None,
    usage: UsageMeter | None = None,
    **changes: Any,
) -> FitResult:
    groups = [ParameterGroup("all", lr, 0.0, list(points.module.parameters()))]
    with begin_attempt(RunPaths(folder), spec) as attempt:
        return fit(
            points,
            settings_of(spec, **changes),
            groups,
            attempt=attempt,
            seed=3,
            device=CPU,
            checkpoint_min_interval_s=interval_s,
            stop=stop or StopFlag(),
            usage=usage or UsageMeter(),
        )


# --------------------------------------------------------------------------------------------------------------- order
def test_the_order_of_an_epoch_follows_seed_and_epoch_alone(spec: RunSpec) -> None:
    plain = settings_of(spec)
    first = epoch_order(100, plain, seed=0, epoch=1)
    torch.manual_seed(99)
    assert torch.equal(first, epoch_order(100, plain, seed=0, epoch=1))
    assert sorted(first.tolist()) == list(range(100))
    for other in (epoch_order(100, plain, seed=1, epoch=1), epoch_order(100, plain, seed=0, epoch=2)):
        assert int((first == other).sum()) < 10
    assert epoch_order(8, plain, seed=0, epoch=1).tolist() == [0, 2, 1, 5, 7, 6, 3, 4]  # resumed runs rest on it


@pytest.mark.parametrize(
    ("num_rows", "batch_size", "drop_last", "steps"),
    [(100, 32, True, 3), (100, 32, False, 4), (96, 32, False, 3), (20, 32, True, 1), (20, 32, False, 1)],
)
def test_steps_per_epoch(spec: RunSpec, num_rows: int, batch_size: int, drop_last: bool, steps: int) -> None:
    assert settings_of(spec, batch_size=batch_size, drop_last=drop_last).count_steps(num_rows) == steps


def test_every_row_is_visited_once_per_epoch_and_drop_last_leaves_out_the_rest(spec: RunSpec, tmp_path: Path) -> None:
    for drop_last, sizes in ((False, [8, 8, 4]), (True, [8, 8])):
        points = Points(20)
        fit_points(points, spec, tmp_path / str(drop_last), epochs=2, drop_last=drop_last)
        assert [len(b) for b in points.batches] == sizes * 2
        for epoch in (1, 2):
            rows = sum(points.batches[(epoch - 1) * len(sizes) : epoch * len(sizes)], [])
            assert rows == epoch_order(20, settings_of(spec), seed=3, epoch=epoch)[: sum(sizes)].tolist()


def test_rows_drawn_with_replacement_fill_as_many_steps_as_asked_for(spec: RunSpec, tmp_path: Path) -> None:
    settings = settings_of(spec, batch_size=24, sampling="replacement", steps_per_epoch=50)
    order_N = epoch_order(100, settings, seed=0, epoch=1)
    assert len(order_N) == 50 * 24 and settings.count_steps(100) == 50
    counts = torch.bincount(order_N, minlength=100)
    assert int(counts.sum()) == 1200
    assert 8 < float(counts.double().var()) < 17  # about 12, as of independent draws; whole rounds would have 0
    points = Points(20)
    fit_points(points, spec, tmp_path, epochs=1, batch_size=8, sampling="replacement", steps_per_epoch=5)
    assert [len(b) for b in points.batches] == [8] * 5
    assert settings_of(spec, batch_size=10, steps_per_epoch=4).count_steps(100) == 4
    assert settings_of(spec, batch_size=10, steps_per_epoch=40).count_steps(100) == 10  # a shuffled row comes once


def test_l2_sp_pulls_the_weights_back_to_where_they_started() -> None:
    start = nn.Parameter(torch.tensor([2.0, -1.0]))
    anchors = make_anchors([ParameterGroup("trunk", 0.1, 0.0, [start], l2_sp=0.5)])
    with torch.no_grad():
        start.add_(torch.tensor([1.0, 4.0]))
    start.grad = torch.tensor([10.0, 20.0])
    pull_to_start(anchors)
    assert start.grad.tolist() == [10.5, 22.0]
    assert make_anchors([ParameterGroup("head", 0.1, 0.0, [start])]) == []


# -------------------------------------------------------------------------------------------------------------- metrics
def test_every_step_is_logged_with_its_number_and_every_epoch_with_its_means(spec: RunSpec, tmp_path: Path) -> None:
    fit_points(Points(20), spec, tmp_path, epochs=30)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    steps = [line for line in lines if line["kind"] == "step"]
    epochs = [line for line in lines if line["kind"] == "epoch"]
    assert [line["step"] for line in steps] == list(range(1, 91))
    assert [line["epoch"] for line in steps] == [1 + i // 3 for i in range(90)]
    assert [line["line"] for line in lines] == list(range(1, 121))
    assert [line["step"] for line in epochs] == list(range(3, 91, 3))
    assert all(line["lr/all"] == 0.1 for line in steps)
    of_first = np.array([(s["train/loss"], s["train/accuracy"]) for s in steps[:3]])
    expected = (of_first * np.array([[8], [8], [4]])).sum(0) / 20
    assert (epochs[0]["train/loss"], epochs[0]["train/accuracy"]) == pytest.approx(tuple(expected))
    assert epochs[-1]["train/loss"] < 0.5 * epochs[0]["train/loss"] and epochs[-1]["val/accuracy"] == 0.5


def test_the_line_of_an_epoch_says_how_busy_the_gpu_of_its_own_run_is(spec: RunSpec, tmp_path: Path) -> None:
    class Busy(UsageMeter):
        def gpu_now(self) -> dict[str, float]:
            return {"gpu/utilisation": 0.4, "gpu/memory_mib": 1000.0}

    fit_points(Points(20), spec, tmp_path / "busy", epochs=1, usage=Busy())
    fit_points(Points(20), spec, tmp_path / "beside", epochs=1)
    busy, beside = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("busy", "beside"))
    assert [line.get("gpu/utilisation") for line in busy] == [None, None, None, 0.4]
    assert busy[-1]["gpu/memory_mib"] == 1000.0 and "gpu/memory_mib" not in beside[-1]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_with_its_step(spec: RunSpec, tmp_path: Path, value: float) -> None:
    points = Points(20, spoil=lambda step, loss: loss * value if step == 7 else loss)
    with pytest.raises(TrainingDiverged, match=f"loss is {value} at step 7; a smaller learning rate") as caught:
        fit_points(points, spec, tmp_path, epochs=3)
    assert caught.value.step == 7
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl") if line["kind"] == "step"][-1] == 6
    assert checkpoint_files(RunPaths(tmp_path)) == []  # nothing spoilt is ever saved


def test_images_per_second_and_seconds_go_on_counting_over_an_interruption(
    spec: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """20 rows make 3 steps of a second each; an evaluation takes ten; the first attempt ends after step 4 of 6."""
    caplog.set_level(logging.INFO, logger="transfergrid")
    clock_s = [0.0]
    for module in (loop, progress):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock_s[0]))

    class Timed(Points):
        def losses(self, rows_B: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
            clock_s[0] += 1
            return super().losses(rows_B, epoch)

        def evaluate(self, module: nn.Module) -> dict[str, Any]:
            clock_s[0] += 10
            return super().evaluate(module)

    whole = fit_points(Timed(20), spec, tmp_path / "whole", epochs=2)
    with pytest.raises(Interrupted):
        fit_points(Timed(20), spec, tmp_path / "parted", epochs=2, stop=StopAfter(4))
    clock_s[0] += 1_000  # in the queue
    parted = fit_points(Timed(20), spec, tmp_path / "parted", epochs=2)
    assert (whole.first_step, parted.first_step) == (1, 5)
    assert whole.images_per_s == parted.images_per_s == pytest.approx(40 / 6)
    assert (whole.elapsed_before_s, parted.elapsed_before_s) == (0.0, 3 + 10 + 1)
    told = [re.sub(r"loss \d\.\d{4}", "loss X", message) for message in caplog.messages]
    one, two = (f"epoch {epoch}/2: train loss X, val accuracy 50.00%, 7 images/s, " for epoch in (1, 2))
    of_whole = [f"{one}13.0 s, 0:00:13 remaining", f"{two}26.0 s, 0:00:00 remaining"]
    assert told == [*of_whole, of_whole[0], "continues after step 4; whole epochs done: 1", of_whole[1]]


def test_the_log_of_a_long_training_is_thinned_by_a_fixed_rule() -> None:
    logged = {epochs: [e for e in range(1, epochs + 1) if progress.is_logged(e, epochs)] for epochs in (1, 100, 250)}
    assert logged[1] == [1] and logged[100] == list(range(1, 101))
    assert logged[250] == [1, *range(3, 250, 3), 250]
    assert all(len(list(filter(lambda e: progress.is_logged(e, n), range(1, n + 1)))) <= 102 for n in range(1, 1000))


def test_a_diverged_run_has_a_record_of_class_code_with_its_step(tmp_path: Path) -> None:
    wild = ["lr=100", "weight_decay=1", "schedule=constant", "warmup_fraction=0", "epochs=15"]
    asked = request(tmp_path, "model=tinynet", "phase=scratch", *(f"phase.scratch.{w}" for w in wild))
    assert carry_out(asked) == "failed"
    record = record_of(final_run(asked), asked.runtime)
    assert (record.status, record.failure_class) == ("failed", "code")
    assert record.error is not None and record.error.startswith("loss is ") and " at step " in record.error
    last_step = read_metrics(paths_of(final_run(asked), asked.runtime).metrics)[-1]["step"]
    assert record.error.endswith(f" at step {last_step + 1}")


# ---------------------------------------------------------------------------------------------------------------- steps
def test_micro_batches_add_up_to_the_gradient_of_the_batch(spec: RunSpec, tmp_path: Path) -> None:
    whole, parts = Points(20), Points(20)
    fit_points(whole, spec, tmp_path / "whole", epochs=2)
    fit_points(parts, spec, tmp_path / "parts", epochs=2, micro_batch=3)
    assert [len(b) for b in parts.batches[:7]] == [3, 3, 2, 3, 3, 2, 3]
    for a, b in zip(whole.module.parameters(), parts.module.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    of_whole, of_parts = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts"))
    assert [line["train/loss"] for line in of_whole] == pytest.approx([line["train/loss"] for line in of_parts])
    assert [line["train/accuracy"] for line in of_whole] == [line["train/accuracy"] for line in of_parts]


def test_training_leaves_the_callers_random_numbers_alone(spec: RunSpec, tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit_points(Points(20), spec, tmp_path, epochs=2)
    assert torch.equal(torch.rand(3), expected)


def test_the_statistics_of_the_batch_are_used_for_testing_and_leave_no_trace() -> None:
    torch.manual_seed(0)
    model = joined.Plain(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(3)))
    model(torch.randn(4, 3, 8, 8))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images_BCHW = torch.randn(40, 3, 8, 8) * 5 + 2

    class Inputs:
        device = CPU

        def batches(self, split: str, index_batches: Sequence[Tensor]) -> Iterator[list[Tensor]]:
            return ([images_BCHW[index_B]] for index_B in index_batches)

    inputs: NetworkInputs = Inputs()  # type: ignore[assignment]
    fold = Fold("test", np.arange(40), np.zeros(40, np.int64))
    with torch.no_grad():
        expected_NC = torch.cat([model.train()(part)[0] for part in torch.split(images_BCHW, 16)])
    model.load_state_dict(before)
    by_batch_NC = on_images.predict(model, inputs, fold, precision="fp32", test_bn="batch", batch_size=16)
    torch.testing.assert_close(torch.from_numpy(by_batch_NC), expected_NC)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training and not np.allclose(by_batch_NC, on_images.predict(model, inputs, fold, precision="fp32"))


# ---------------------------------------------------------------------------------------------------------- checkpoints
def test_checkpoints_are_as_frequent_as_asked_for(
    spec: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    real = checkpoints.write_checkpoint

    def watched(*arguments: Any, step: int, **options: Any) -> None:
        saved.append(step)
        real(*arguments, step=step, **options)

    monkeypatch.setattr(progress, "write_checkpoint", watched)
    fit_points(Points(20), spec, tmp_path / "never", epochs=3)
    assert saved == []
    fit_points(Points(20), spec, tmp_path / "always", epochs=3, interval_s=0)
    assert saved == [1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9, 9]  # after every step, and after every epoch's figures
    saved.clear()

    def slowly(step: int, loss: Tensor) -> Tensor:
        time.sleep(0.02)
        return loss

    slow = Points(20, spoil=slowly)
    monkeypatch.setattr(progress, "SAVE_COST_SHARE", 0)
    fit_points(slow, spec, tmp_path / "some", epochs=5, interval_s=0.1)
    assert 1 <= len(saved) <= 4
    saved.clear()
    monkeypatch.setattr(progress, "SAVE_COST_SHARE", 10**6)  # a save that costs much is made seldom
    fit_points(slow, spec, tmp_path / "seldom", epochs=5, interval_s=0.01)
    assert len(saved) == 1


def test_an_attempt_that_was_superseded_stops_and_adds_no_line(spec: RunSpec, tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)

    def take_over(step: int, loss: Tensor) -> Tensor:
        if step == 2:
            paths.lock.unlink()
            with begin_attempt(paths, spec):
                pass
        return loss

    with pytest.raises(Superseded, match="attempt 1 is superseded by attempt 2"):
        fit_points(Points(20, spoil=take_over), spec, tmp_path, epochs=3)
    assert read_metrics(paths.metrics) == []
