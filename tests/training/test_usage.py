"""What a run used of what it was given: measured while it runs, and shown for the next launch's settings."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cluster_cases import DIGITS, console, extract_run, said, scratch_run

from transfergrid.cli.screen import show_usage
from transfergrid.paths import StorePaths
from transfergrid.planning import machine
from transfergrid.specs import DatasetSpec, RunSpec
from transfergrid.store.records import RunRecord, write_record
from transfergrid.training import usage
from transfergrid.training.device import gpus_given
from transfergrid.training.usage import UsageMeter


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_MEM_PER_NODE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


class Driver:
    """NVML of GPUs by their UUIDs: in each round of asking, the next of `says` of each, (percent busy, MiB in use);
    None is what it cannot tell. After the last round it fails."""

    class NVMLError(Exception):
        pass

    def __init__(self, says: dict[str, list[tuple[float | None, float | None]]], *, is_there: bool = True) -> None:
        self.says, self.is_there, self.asked = says, is_there, dict.fromkeys(says, 0)

    def nvmlInit(self) -> None:
        if not self.is_there:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid not in self.says:
            raise self.NVMLError("Not Found")
        return uuid

    def nvmlDeviceGetCount(self) -> int:
        return len(self.says)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return list(self.says)[index]

    def nvmlDeviceGetName(self, handle: str) -> str:
        return f"the card {handle}"

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:
        return SimpleNamespace(gpu=self._told(handle, 0))

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:
        self.asked[handle] += 1
        return SimpleNamespace(used=self._told(handle, 1, before=1) * 2**20)

    def _told(self, handle: str, which: int, *, before: int = 0) -> float:
        rounds = self.says[handle]
        at = self.asked[handle] - before
        value = rounds[at][which] if at < len(rounds) else None
        if value is None:
            raise self.NVMLError("Not Supported")
        return value


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Driver]:
    """Makes the driver that a meter asks, every 20 ms."""
    monkeypatch.setattr(usage, "SAMPLE_S", 0.02)

    def made(says: dict[str, list[tuple[float | None, float | None]]], **options: Any) -> Driver:
        driver = Driver(says, **options)
        monkeypatch.setitem(sys.modules, "pynvml", driver)
        return driver

    return made


def measured(driver: Driver, *gpus: str) -> dict[str, Any]:
    """The summary of a run that was given these GPUs, once the driver has told all it has to say."""
    with UsageMeter(gpus=gpus) as meter:
        until(lambda: all(driver.asked[gpu] > len(driver.says[gpu]) for gpu in gpus))
    return meter.summary()


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ------------------------------------------------------------------------------------------------------------ measured
def test_a_gpus_load_is_the_mean_and_its_memory_the_peak_of_the_samples(pretend: Callable[..., Driver]) -> None:
    summary = measured(pretend({"GPU-1": [(40, 1000), (80, 3000), (15, 2000)]}), "GPU-1")
    assert (summary["gpu_utilisation"], summary["gpu_memory_mib"]) == (0.45, 3000.0)


def test_all_gpus_of_a_run_count_and_no_other(pretend: Callable[..., Driver]) -> None:
    """One that nobody uses shows as half of the load."""
    driver = pretend({"GPU-1": [(80, 3000), (60, 3000)], "GPU-2": [(0, 500), (0, 4000)], "GPU-3": [(100, 9000)]})
    summary = measured(driver, "GPU-1", "GPU-2")
    assert (summary["gpu_utilisation"], summary["gpu_memory_mib"]) == (0.35, 4000.0)
    assert driver.asked["GPU-3"] == 0


def test_of_a_slice_of_a_gpu_the_memory_is_known_and_the_load_is_not(pretend: Callable[..., Driver]) -> None:
    driver = pretend({"MIG-7": [(None, 12.5)] * 50})
    with UsageMeter(gpus=["MIG-7"]) as meter:
        until(lambda: meter.gpu_now())
        assert meter.gpu_now() == {"gpu/memory_mib": 12.5}
    assert (meter.summary()["gpu_utilisation"], meter.summary()["gpu_memory_mib"]) == (None, 12.5)
    assert driver.asked["MIG-7"] > 0


def test_lines_of_a_run_on_a_gpu_can_say_how_busy_it_is_now(pretend: Callable[..., Driver]) -> None:
    pretend({"GPU-1": [(40, 1000)]})
    with UsageMeter(gpus=["GPU-1"]) as meter:
        until(lambda: len(meter.gpu_now()) == 2)
        now = meter.gpu_now()
    assert now == {"gpu/utilisation": 0.4, "gpu/memory_mib": 1000.0}
    assert meter.gpu_now() == {}
    assert UsageMeter().gpu_now() == {}  # another run's meter knows nothing of it


def test_what_the_driver_cannot_tell_is_no_sample(pretend: Callable[..., Driver]) -> None:
    summary = measured(pretend({"GPU-1": [(None, None), (50, None), (None, 7)]}), "GPU-1")
    assert (summary["gpu_utilisation"], summary["gpu_memory_mib"]) == (0.5, 7.0)


@pytest.mark.parametrize(("is_there", "gpu"), [(False, "GPU-1"), (True, "GPU-2")])
def test_without_a_driver_or_with_a_gpu_that_it_does_not_know_a_run_is_measured_all_the_same(
    is_there: bool, gpu: str, pretend: Callable[..., Driver]
) -> None:
    pretend({"GPU-1": [(50, 7)] * 50}, is_there=is_there)
    with UsageMeter(gpus=[gpu]) as meter:
        meter._thread.join(30)  # it gives up at once
    assert not meter._thread.is_alive() and meter.gpu_now() == {}
    assert meter.summary()["gpu_memory_mib"] is None and meter.summary()["max_rss_mib"] > 10


def test_a_machine_without_the_drivers_library_gives_no_samples() -> None:
    """With the real pynvml: here there is no GPU, or none of this name."""
    with UsageMeter(gpus=["GPU-00000000-0000-0000-0000-000000000000"]) as meter:
        meter._thread.join(30)
    assert meter.summary()["gpu_utilisation"] is None


@pytest.mark.parametrize(
    ("visible", "names"),
    [(None, ("the card GPU-1", "the card GPU-2")), ("0", ("the card GPU-1",)), ("", ()), ("GPU-1,GPU-2", None)],
)
def test_the_plan_knows_the_gpus_that_runs_may_see(
    visible: str | None, names: tuple[str, ...] | None, pretend: Callable[..., Driver], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = pretend({"GPU-1": [], "GPU-2": []})
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine._gpus() == (usage.gpu_names() if names is None else names)
    driver.is_there = False
    assert machine._gpus() == ()


def test_a_run_on_the_cpu_never_asks_for_a_gpu(pretend: Callable[..., Driver]) -> None:
    driver = pretend({"GPU-1": [(50, 7)] * 50})
    with UsageMeter() as meter:
        time.sleep(0.1)
    assert driver.asked == {"GPU-1": 0} and not meter._thread.is_alive()


def test_sampling_ends_with_the_run(pretend: Callable[..., Driver]) -> None:
    driver = pretend({"GPU-1": [(1, 1)] * 1000})
    with UsageMeter(gpus=["GPU-1"]) as meter:
        until(lambda: driver.asked["GPU-1"])
    meter._thread.join(30)
    assert not meter._thread.is_alive()


@pytest.mark.parametrize(
    ("visible", "expected"),
    [(None, ("GPU-a",)), ("0,1", ("GPU-a", "GPU-b")), ("MIG-7", ("MIG-7",)), ("GPU-a,GPU-b", ("GPU-a", "GPU-b"))],
)
def test_the_gpus_of_a_run_are_those_shared_out_to_it_or_the_one_that_it_uses(
    visible: str | None, expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1 if visible == "MIG-7" else 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid="ab"[index]))
    assert gpus_given(torch.device("cuda")) == expected
    assert gpus_given(torch.device("cpu")) == ()


def test_wall_time_and_cpu_time_of_this_process_are_told_apart() -> None:
    with UsageMeter() as asleep:
        time.sleep(0.2)
    assert asleep.summary()["wall_s"] >= 0.2 and asleep.summary()["cpu_s"] <= 0.1
    with UsageMeter() as busy:
        began = time.process_time()
        while time.process_time() - began < 0.1:
            pass
    assert 0.08 <= busy.summary()["cpu_s"] <= busy.summary()["wall_s"] + 0.02


@pytest.mark.parametrize(
    ("environment", "cpus", "memory_mib"),
    [
        ({"SLURM_CPUS_PER_TASK": "3", "SLURM_MEM_PER_NODE": "4096"}, 3, 4096),
        ({"SLURM_CPUS_PER_TASK": "", "SLURM_MEM_PER_NODE": ""}, None, None),
        ({"SLURM_CPUS_PER_TASK": "0", "SLURM_MEM_PER_NODE": "4G"}, None, None),
        ({}, None, None),
    ],
)
def test_what_slurm_gave_is_told_beside_it(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], cpus: int | None, memory_mib: int | None
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with UsageMeter() as meter:
        pass
    assert meter.summary()["cpus"] == (cpus or len(os.sched_getaffinity(0)))
    assert meter.summary()["memory_mib"] == memory_mib
    assert usage.slurm_cpus() == cpus


# --------------------------------------------------------------------------------------------------------------- shown
def recorded(store: StorePaths, run: RunSpec, gpu_s: float = 0.0, **used: Any) -> str:
    figures: dict[str, Any] = {"wall_s": 100.0, "cpu_s": 150.0, "cpus": 4, "max_rss_mib": 1024.0, "memory_mib": 16384}
    figures |= {"gpu_utilisation": None, "gpu_memory_mib": None}
    record = RunRecord(
        run_id=run.run_id, spec=run, status="completed", phase_s=gpu_s, on_gpu=gpu_s > 0, usage={**figures, **used}
    )
    write_record(store.run(run.run_id), record)
    return run.run_id


def test_runs_of_one_kind_share_a_row_with_means_peaks_and_what_was_given(tmp_path: Path) -> None:
    store, shown = StorePaths(tmp_path), console()
    run_ids = [
        recorded(store, scratch_run(0), 1800, cpu_s=50.0, gpu_utilisation=0.5, gpu_memory_mib=2048.0),
        recorded(store, scratch_run(1), 3600, wall_s=300.0, cpu_s=450.0, gpu_utilisation=0.9, gpu_memory_mib=3072.0),
        recorded(store, scratch_run(2), 0, wall_s=200.0, max_rss_mib=2560.0),
    ]
    show_usage(shown, run_ids, store)
    head, rule, row, total = said(shown)
    assert head.split("  ")[0] == "phase" and set(rule) == {"─"}
    titles = [head.index(t) for t in ("phase", "model", "dataset", "runs", "own wall s", "CPU", "memory", "GPU busy")]
    assert titles == sorted(titles)
    assert " ".join(row.split()) == "scratch tinynet digits 3 200.0 0.9 of 4 2.5 of 16.0 GiB 70% 3.0 GiB"
    assert total == "GPU time used by these runs alone: 1.50 h"


def test_without_a_gpu_its_figures_are_a_dash_and_there_is_no_gpu_time(tmp_path: Path) -> None:
    store, shown = StorePaths(tmp_path), console()
    show_usage(shown, [recorded(store, scratch_run(), cpus=2, memory_mib=None)], store)
    assert len(said(shown)) == 3
    assert " ".join(said(shown)[2].split()) == "scratch tinynet digits 1 100.0 1.5 of 2 1.0 GiB - -"


def test_each_phase_model_and_data_set_is_a_kind(tmp_path: Path) -> None:
    store, shown = StorePaths(tmp_path), console()
    other = DatasetSpec(name="mnist", kind="mnist", fingerprint="f1", num_classes=10)
    runs = [scratch_run(), scratch_run(model="baseline_cnn"), scratch_run(dataset=other), extract_run()]
    show_usage(shown, [recorded(store, run) for run in runs], store)
    assert [line.split()[:3] for line in said(shown)[2:]] == [
        ["scratch", "tinynet", DIGITS.name],
        ["scratch", "baseline_cnn", DIGITS.name],
        ["scratch", "tinynet", "mnist"],
        ["extract", "resnet18", DIGITS.name],
    ]


def test_runs_that_failed_or_ended_in_no_time_or_left_no_figures_do_no_harm(tmp_path: Path) -> None:
    store, shown = StorePaths(tmp_path), console()
    failed, old = scratch_run(1), scratch_run(2)
    write_record(store.run(failed.run_id), RunRecord(run_id=failed.run_id, spec=failed, status="failed"))
    write_record(store.run(old.run_id), RunRecord(run_id=old.run_id, spec=old, status="completed"))
    show_usage(shown, [failed.run_id, old.run_id, "never-begun"], store)
    assert said(shown) == []
    at_once = recorded(store, scratch_run(3), wall_s=0.0, cpu_s=0.0)
    show_usage(shown, [failed.run_id, old.run_id, "never-begun", at_once], store)
    assert " ".join(said(shown)[2].split()) == "scratch tinynet digits 1 0.0 0.0 of 4 1.0 of 16.0 GiB - -"
