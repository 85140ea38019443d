"""What a run used of what it was given: measured while it runs, and shown for the next launch's settings."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from cluster_cases import DIGITS, console, executable, extract_run, said, scratch_run

from transfergrid.cli.screen import show_usage
from transfergrid.paths import StorePaths
from transfergrid.specs import DatasetSpec, RunSpec
from transfergrid.store.records import RunRecord, write_record
from transfergrid.training import usage
from transfergrid.training.usage import UsageMeter


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_MEM_PER_NODE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fake one: it prints the lines of `says`, one per call, then fails. `calls` holds its arguments."""
    folder = tmp_path / "gpu"
    executable(
        folder / "nvidia-smi",
        f'echo "$*" >> {folder}/calls',
        f"line=$(head -n 1 {folder}/says)",
        f"sed -i 1d {folder}/says",
        '[ -n "$line" ] || exit 9',
        'echo "$line"',
    )
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(usage, "SAMPLE_S", 0.02)
    return folder


def measured(folder: Path, says: str) -> tuple[dict[str, Any], list[str]]:
    """The summary of a run on a GPU of which nvidia-smi says this, and the arguments of its calls."""
    (folder / "says").write_text(says)
    calls = folder / "calls"
    with UsageMeter(gpu=True) as meter:
        deadline = time.monotonic() + 30
        while not calls.exists() or len(calls.read_text().splitlines()) <= len(says.splitlines()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    return meter.summary(), calls.read_text().splitlines()


# ------------------------------------------------------------------------------------------------------------ measured
def test_a_gpus_load_is_the_mean_and_its_memory_the_peak_of_the_samples(nvidia_smi: Path) -> None:
    summary, calls = measured(nvidia_smi, "40, 1000\n80, 3000\n15, 2000\n")
    assert summary["gpu_utilisation"] == 0.45
    assert summary["gpu_memory_mib"] == 3000.0
    assert calls[0] == "--query-gpu=utilization.gpu,memory.used --format=csv,noheader,nounits"


def test_lines_of_a_run_on_a_gpu_can_say_how_busy_it_is_now(nvidia_smi: Path) -> None:
    (nvidia_smi / "says").write_text("40, 1000\n")
    with UsageMeter(gpu=True) as meter:
        deadline = time.monotonic() + 30
        while not (now := meter.gpu_now()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert now == {"gpu/utilisation": 0.4, "gpu/memory_mib": 1000.0}
    assert meter.gpu_now() == {}
    assert UsageMeter(gpu=False).gpu_now() == {}  # another run's meter knows nothing of it


def test_it_is_the_first_gpu_that_the_run_may_use(nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-5ab,3")
    summary, calls = measured(nvidia_smi, "100, 12.5\n")
    assert calls[0].endswith(" -i GPU-5ab")
    assert (summary["gpu_utilisation"], summary["gpu_memory_mib"]) == (1.0, 12.5)


def test_what_nvidia_smi_cannot_tell_is_no_sample(nvidia_smi: Path) -> None:
    summary, _ = measured(nvidia_smi, "[N/A], [N/A]\nNo devices were found\n50, 7\n")
    assert (summary["gpu_utilisation"], summary["gpu_memory_mib"]) == (0.5, 7.0)


def test_without_a_sample_nothing_is_known_of_the_gpu(nvidia_smi: Path) -> None:
    summary, calls = measured(nvidia_smi, "")
    assert len(calls) >= 1
    assert (summary["gpu_utilisation"], summary["gpu_memory_mib"]) == (None, None)


def test_a_run_on_the_cpu_never_asks_for_a_gpu(nvidia_smi: Path) -> None:
    with UsageMeter(gpu=False) as meter:
        time.sleep(0.1)
    assert not (nvidia_smi / "calls").exists()
    assert meter.summary()["gpu_utilisation"] is None


def test_on_a_machine_without_nvidia_smi_a_run_on_a_gpu_is_measured_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with UsageMeter(gpu=True) as meter:
        pass
    assert meter.summary()["gpu_memory_mib"] is None and meter.summary()["max_rss_mib"] > 10


def test_sampling_ends_with_the_run(nvidia_smi: Path) -> None:
    measured(nvidia_smi, "1, 1\n")
    time.sleep(0.1)  # a call that was under way
    before = (nvidia_smi / "calls").read_text()
    time.sleep(0.2)
    assert (nvidia_smi / "calls").read_text() == before


def test_wall_time_and_cpu_time_of_this_process_are_told_apart() -> None:
    with UsageMeter(gpu=False) as asleep:
        time.sleep(0.2)
    assert asleep.summary()["wall_s"] >= 0.2 and asleep.summary()["cpu_s"] <= 0.1
    with UsageMeter(gpu=False) as busy:
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
    with UsageMeter(gpu=False) as meter:
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
