"""Every phase on a pretended CUDA device: the CPU's numbers, no wait for the device between two logging points, and how
many kernels a step launches. The device knows no time: that the waits cost it, only a real one can show."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pretended_cuda
import pytest
import small_runs
import torch
from pretended_cuda import Device, Wait

from transfergrid.networks import solved_head
from transfergrid.networks.heads import mean_loss
from transfergrid.training import loop

LOGGING_POINTS = {"flush", "evaluate", "save", "restore_newest"}


@pytest.fixture
def cuda() -> Iterator[Device]:
    with pytest.MonkeyPatch.context() as patch, pretended_cuda.pretended_cuda(patch) as device:
        yield device


def between_logging_points(device: Device) -> list[Wait]:
    return [wait for wait in device.waits if "fit" in wait.functions and not wait.functions & LOGGING_POINTS]


def both(folder: Path, *given: str) -> Device:
    """The run on the CPU and on the pretended device; they end alike."""
    made = []
    for name in ("cpu", "cuda"):
        with pytest.MonkeyPatch.context() as patch:
            if "phase.probe.solver=lbfgs" in given:
                patch.setattr(small_runs, "TWO_EPOCHS", [])
            asked = small_runs.request(folder / name, f"device={name}", *given)
            if name == "cuda":
                with pretended_cuda.pretended_cuda(patch) as device:
                    outcome = small_runs.carry_out(asked)
            else:
                outcome = small_runs.carry_out(asked)
        run = small_runs.final_run(asked)
        record = small_runs.record_of(run, asked.runtime)
        assert outcome == "completed", record.error
        made.append((record, small_runs.paths_of(run, asked.runtime)))
    (on_cpu, cpu_paths), (on_cuda, cuda_paths) = made
    assert on_cpu.provenance["device"] == "cpu" and on_cuda.provenance["device"] == "pretended"
    assert on_cuda.metrics == pytest.approx(on_cpu.metrics, rel=1e-4)
    with np.load(cpu_paths.predictions) as one, np.load(cuda_paths.predictions) as other:
        for name in one.files:
            assert np.allclose(one[name].astype(np.float64), other[name].astype(np.float64), rtol=1e-2, atol=1e-3), name
    assert between_logging_points(device) == []
    return device


SCRATCH = ("model=tinynet", "phase=scratch")
PROBE = ("model=tinynet_mnist", "phase=probe")
TRAININGS = {
    "scratch": SCRATCH,
    "augmented": (
        *SCRATCH,
        "phase.scratch.perspective=0.3",
        "phase.scratch.rotation_deg=15",
        "phase.scratch.flip=true",
    ),
    "averaged": (*SCRATCH, "phase.scratch.ema_decay=0.9", "phase.scratch.optimizer=adamw"),
    "lookahead": (
        *SCRATCH,
        "phase.scratch.lookahead=true",
        "phase.scratch.optimizer=adam",
        "phase.scratch.clip_norm=1",
    ),
    "micro_batches": (*SCRATCH, "phase.scratch.micro_batch=8", "phase.scratch.sampling=replacement"),
    "streamed": (*SCRATCH, "data.resident_gb=0"),
    "probe": PROBE,
    "probe_of_a_pair": ("model=tinynet_mnist+tinynet_cifar", "phase=probe"),
    "probe_on_images": (*PROBE, "phase.probe.source=images", "phase.probe.lrs=[0.01]", "phase.probe.weight_decays=[0]"),
    "finetune": ("model=tinynet_mnist", "phase=finetune", "phase.finetune.l2_sp=0.01"),
    "finetune_of_a_pair": ("model=tinynet_mnist+tinynet_cifar", "phase=finetune"),
}
QUICK = ("scratch",)


@pytest.mark.parametrize(
    "given",
    [pytest.param(g, id=name, marks=() if name in QUICK else pytest.mark.slow) for name, g in TRAININGS.items()],
)
def test_a_training_gives_the_cpus_numbers_and_waits_for_the_device_at_logging_points_alone(
    given: tuple[str, ...], tmp_path: Path
) -> None:
    device = both(tmp_path, *given)
    flushes = [wait for wait in device.waits if "flush" in wait.functions]
    assert 0 < len(flushes) <= 4 and device.launches > 100  # one an epoch: of the probe's, and of what follows it


@pytest.mark.slow
def test_a_solved_probe_gives_the_cpus_numbers_and_waits_five_times_an_iteration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    iterations = []
    real = solved_head._Memory.apply

    def counted(memory: Any, gradient: Any) -> Any:
        iterations.append(1)
        return real(memory, gradient)

    monkeypatch.setattr(solved_head._Memory, "apply", counted)
    device = both(tmp_path, *PROBE, "phase.probe.solver=lbfgs")
    waits = [wait for wait in device.waits if "minimise" in wait.functions]
    on_cuda = len(iterations) / 2  # the CPU takes as many
    assert on_cuda > 100 and 4 * on_cuda < len(waits) < 5.5 * on_cuda
    assert not [wait for wait in waits if "apply" in wait.functions]


@pytest.mark.slow
def test_an_evaluation_gives_the_cpus_numbers(tmp_path: Path) -> None:
    asked = small_runs.request(tmp_path, *SCRATCH)
    assert small_runs.carry_out(asked) == "completed"
    trained = small_runs.final_run(asked)
    scores = []
    for name in ("cpu", "cuda"):
        evaluated = small_runs.request(tmp_path, f"device={name}", "phase=evaluate", f"run={trained.run_id}")
        run = small_runs.final_run(evaluated)
        record = small_runs.paths_of(run, evaluated.runtime).record
        record.unlink(missing_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            if name == "cuda":
                with pretended_cuda.pretended_cuda(patch):
                    assert small_runs.carry_out(evaluated) == "completed"
            else:
                assert small_runs.carry_out(evaluated) == "completed"
        scores.append(small_runs.record_of(run, evaluated.runtime).metrics)
    assert scores[1] == pytest.approx(scores[0], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_a_resumed_training_waits_no_more_than_one_that_was_not_stopped(
    optimizer: str, tmp_path: Path, cuda: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adam reads its number of steps on the host: on the device, each parameter would cost a wait in each step."""
    asked = small_runs.request(tmp_path, "device=cuda", *SCRATCH, f"phase.scratch.optimizer={optimizer}")
    with monkeypatch.context() as patch:
        small_runs.stop_after(patch, 2)
        assert small_runs.carry_out(asked) == "interrupted"
    cuda.waits.clear()
    assert small_runs.carry_out(asked) == "completed"
    assert small_runs.record_of(small_runs.final_run(asked), asked.runtime).details["first_step"] == 3
    assert between_logging_points(cuda) == []
    assert [wait for wait in cuda.waits if "restore_newest" in wait.functions]  # the state went over


@pytest.mark.slow
def test_a_run_that_goes_on_on_another_kind_of_device_says_so_and_its_record_names_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = small_runs.request(tmp_path, *SCRATCH)
    with monkeypatch.context() as patch:
        small_runs.stop_after(patch, 2)
        assert small_runs.carry_out(asked) == "interrupted"
    at_once = []
    real = loop._optimizer_step

    def seen(trainee: Any, rows_B: Any, settings: Any, state: Any, *rest: Any) -> Any:
        at_once.append({group["foreach"] for group in state.optimizer.param_groups})
        return real(trainee, rows_B, settings, state, *rest)

    monkeypatch.setattr(loop, "_optimizer_step", seen)
    with pretended_cuda.pretended_cuda(monkeypatch):
        elsewhere = small_runs.request(tmp_path, "device=cuda", *SCRATCH)
        assert small_runs.carry_out(elsewhere) == "completed"
    assert at_once == [{True}] * 2  # the CPU updates one parameter after the other
    run = small_runs.final_run(asked)
    assert [a.device for a in small_runs.record_of(run, asked.runtime).attempts] == ["cpu", "pretended"]
    log = small_runs.paths_of(run, asked.runtime).log.read_text()
    assert "computed on cpu until now, on pretended from here on; last bits may differ" in log


# ------------------------------------------------------------------------------------------------------------ launches
def launches(given: tuple[str, ...], folder: Path, device: Device, patch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Of a step of the run's last training, and of its network alone: forward, loss, backward, clipping, optimizer."""
    ours: list[int] = []
    kept: dict[str, Any] = {}
    real = loop._optimizer_step

    def counted(trainee: Any, rows_B: Any, settings: Any, state: Any, *rest: Any) -> Any:
        before = device.launches
        result = real(trainee, rows_B, settings, state, *rest)
        ours.append(device.launches - before)
        kept.update(trainee=trainee, rows_B=rows_B, settings=settings, optimizer=state.optimizer)
        return result

    patch.setattr(loop, "_optimizer_step", counted)
    assert small_runs.carry_out(small_runs.request(folder, "device=cuda", *given)) == "completed"
    trainee, settings = kept["trainee"], kept["settings"]
    inputs = trainee._inputs.batch("train", trainee._index_N[kept["rows_B"]])
    labels_B = trainee._labels_N[kept["rows_B"]]
    trainee.train_mode()
    before = device.launches
    logits_BC, _ = trainee.module(*inputs)
    mean_loss(logits_BC, labels_B, label_smoothing=settings.label_smoothing).backward()  # type: ignore[no-untyped-call]
    if settings.clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(list(trainee.module.parameters()), settings.clip_norm)
    kept["optimizer"].step()
    return ours[-1], device.launches - before


@pytest.mark.slow
def test_a_step_of_resnet18_launches_at_most_a_tenth_more_than_the_network_alone(
    tmp_path: Path, cuda: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is more reads the images, resizes, shifts and normalises them, and counts what was right."""
    given = ("model=resnet18", "weights=random", "phase=finetune", "phase.finetune.epochs=1", "phase.probe.epochs=1")
    ours, bare = launches(given, tmp_path, cuda, monkeypatch)
    assert 200 < bare < ours <= 1.1 * bare


def test_around_a_small_network_a_step_launches_at_most_35(
    tmp_path: Path, cuda: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same as around a large one, and a cutout."""
    ours, bare = launches((*SCRATCH, "phase.scratch.epochs=1"), tmp_path, cuda, monkeypatch)
    assert bare < ours <= bare + 35


# ---------------------------------------------------------------------------------------------------- the device itself
def test_two_devices_in_one_operation_are_refused_as_torch_does(cuda: Device) -> None:
    there, here = torch.ones(3, device="cuda"), torch.ones(3)
    assert there.device == torch.device("cuda", 0) and there.is_cuda
    with pytest.raises(RuntimeError, match="found at least two devices, cuda:0 and cpu"):
        there + here
    with pytest.raises(RuntimeError, match="indices should be either on cpu"):
        here[torch.tensor([1]).to("cuda")]
    with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
        there.numpy()
    assert (there + torch.tensor(1.0)).tolist() == [2.0, 2.0, 2.0]  # a number is an argument of the kernel


def test_what_makes_the_host_wait_is_noted_and_what_does_not_is_not(cuda: Device) -> None:
    def waits(make: Any) -> list[str]:
        cuda.waits.clear()
        make()
        return [wait.what for wait in cuda.waits]

    there, host = torch.arange(4, device="cuda"), torch.arange(4)
    assert waits(lambda: host.to("cuda")) == ["copy from host"] == waits(lambda: torch.tensor([1], device="cuda"))
    assert waits(lambda: host.to("cuda", non_blocking=True)) == ["copy from host"]  # from pageable memory
    assert waits(lambda: host.pin_memory()[1:].to("cuda", non_blocking=True)) == []
    assert waits(lambda: there.cpu()) == waits(lambda: there.tolist()) == ["copy to host"]
    assert waits(lambda: float(there.sum())) == ["_local_scalar_dense"] == waits(lambda: bool(there[0] == 0))
    assert "index by a mask" in waits(lambda: there[there > 1])
    assert waits(lambda: there[torch.tensor([1])]) == ["copy of an index from host"]
    assert waits(lambda: torch.linalg.solve(torch.eye(2, device="cuda"), torch.ones(2, device="cuda"))) == [
        "_linalg_check_errors"
    ]
    assert waits(lambda: (there + 1).float().view(2, 2).T.sum()) == []


def test_views_launch_nothing_and_lists_are_launched_together(cuda: Device) -> None:
    there = [torch.ones(2, 2, device="cuda") for _ in range(40)]
    before = cuda.launches
    there[0].view(4)[1:].unsqueeze(0).T.detach()
    assert cuda.launches == before
    torch._foreach_add_(there, 1.0)
    assert cuda.launches == before + 2
