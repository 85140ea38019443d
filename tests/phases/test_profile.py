"""profile=true: what using an evaluated network costs, measured once per machine, beside a record that stays."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import report_cases as cases
import small_runs

from transfergrid.cli.launch import measured_in_jobs
from transfergrid.cluster import local
from transfergrid.config import Request, load_grid
from transfergrid.errors import ConfigError, MachineError
from transfergrid.paths import StorePaths, store_paths
from transfergrid.phases import _profile, evaluate
from transfergrid.phases._profile_child import profiles_of
from transfergrid.planning import job
from transfergrid.planning.plan import Plan, PlannedRun, make_plan
from transfergrid.specs import EvaluateSettings, RunSpec, Runtime, to_dict
from transfergrid.store import durable
from transfergrid.store.profiles import Passes, Profile, add_profiles, read_profiles
from transfergrid.store.provenance import cpu_name
from transfergrid.training import profiling
from transfergrid.training.stopping import StopFlag

PASSES = Passes(batch_size=1, median_s=0.002, q1_s=0.001, q3_s=0.003, passes=20, first_s=0.1, warm_up=3, memory_mib=5.0)
PROFILE = Profile(
    kind="cpu",
    device=cpu_name(),
    threads=1,
    precision="fp32",
    sizes_px=(32,),
    passes=(PASSES, replace(PASSES, batch_size=4)),
    sought_gpu=False,
    host="here",
    cores=2,
    load=0.5,
    torch="2.13.0",
    job=None,
    measured="2026-01-01T00:00:00+00:00",
)


def evaluated(tmp_path: Path) -> tuple[RunSpec, RunSpec, Runtime]:
    """(a fine-tuning in bf16, its finished evaluation in fp32, how profile=true runs it on this CPU)"""
    trained = cases.spec("finetune", "resnet18")
    settings = EvaluateSettings(source=f"run:{trained.run_id}", split="test", precision="fp32", preprocess=None)
    run = replace(trained, phase="evaluate", settings=settings, seed=None, needs=(trained.run_id,))
    names = ("store_dir", "cache_dir", "data_dir", "weights_dir")
    folders: dict[str, Any] = {name: str(tmp_path / name) for name in names}
    runtime = Runtime(**folders, device="cpu", num_threads=1, profile="here")
    for each in (trained, run):
        cases.completed(store_paths(runtime), each)
        durable.write_json(store_paths(runtime).run(each.run_id).spec, to_dict(each))
    return trained, run, runtime


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> list[RunSpec]:
    """What the child was asked; it measures in both precisions at once."""
    asked: list[RunSpec] = []

    def ask(spec: RunSpec, runtime: Runtime, stop: Any) -> list[Profile]:
        asked.append(spec)
        threads, job_id = runtime.num_threads, "7" if runtime.profile == "in a job" else None
        precisions = _profile.precisions(spec, runtime)
        return [replace(PROFILE, precision=p, threads=threads, job=job_id) for p in precisions]

    monkeypatch.setattr(_profile, "_ask_child", ask)
    return asked


def all_files(store: StorePaths, run: RunSpec, *but: str) -> dict[str, bytes]:
    folder = store.run(run.run_id).root
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name not in but}


def test_a_completed_evaluation_gets_its_profile_once_and_stays_as_it_was(tmp_path: Path, child: list[RunSpec]) -> None:
    trained, run, runtime = evaluated(tmp_path)
    store = store_paths(runtime)
    before = [all_files(store, each) for each in (trained, run)]
    assert job.carry_out(run, replace(runtime, profile="no")) == "reused" and child == []
    plan = make_plan([run.run_id], {r.run_id: r for r in (trained, run)}, runtime)
    assert {p.run.run_id: (p.state, p.why) for p in plan.runs} == {
        trained.run_id: ("reuse", "completed before"),
        run.run_id: ("run", "completed before: using its network is measured"),
    }
    assert job.carry_out(run, runtime) == "completed" and job.carry_out(run, runtime) == "reused" and child == [run]
    assert [all_files(store, e, "log.txt", "profile.json", ".lock") for e in (trained, run)] == before
    found = read_profiles(store.run(trained.run_id))
    assert [profile.precision for profile in found] == ["bf16", "fp32"]  # the run's own accuracy, and the evaluation's
    assert "2.000 ms per image" in store.run(run.run_id).log.read_text()
    assert [p.state for p in make_plan([run.run_id], {run.run_id: run}, runtime).runs] == ["reuse"]


def test_it_is_measured_again_where_processor_or_threads_are_others_and_the_first_stays(
    tmp_path: Path, child: list[RunSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, run, runtime = evaluated(tmp_path)
    paths = store_paths(runtime).run(trained.run_id)
    assert job.carry_out(run, runtime) == "completed"
    monkeypatch.setattr(_profile, "cpu_name", lambda: "another")
    assert not evaluate.is_done(run, runtime)
    monkeypatch.undo()
    monkeypatch.setattr(_profile, "_ask_child", lambda *_: [replace(PROFILE, threads=2)])
    assert not evaluate.is_done(run, replace(runtime, num_threads=2)) and evaluate.is_done(run, runtime)
    assert not evaluate.is_done(run, replace(runtime, device="auto"))  # nobody looked for a GPU
    assert job.carry_out(run, replace(runtime, num_threads=2)) == "completed"
    assert [(p.precision, p.threads) for p in read_profiles(paths)] == [("bf16", 1), ("fp32", 1), ("fp32", 2)]
    add_profiles(paths, [replace(PROFILE, host="later")])
    assert [(p.threads, p.host) for p in read_profiles(paths)] == [(1, "here"), (2, "here"), (1, "later")]


def test_jobs_measure_once_on_whatever_node_and_not_what_was_measured_by_hand(
    tmp_path: Path, child: list[RunSpec]
) -> None:
    _, run, runtime = evaluated(tmp_path)
    assert job.carry_out(run, runtime) == "completed"
    in_job = replace(runtime, profile="in a job")
    assert job.carry_out(run, in_job) == "completed" and len(child) == 2
    assert evaluate.is_done(run, replace(in_job, device="cuda", num_threads=64))


def test_a_damaged_profile_is_none_and_is_made_again(tmp_path: Path, child: list[RunSpec]) -> None:
    trained, run, runtime = evaluated(tmp_path)
    path = store_paths(runtime).run(trained.run_id).profile
    for damaged in ("", "[]", "{}", '{"format": 9, "profiles": []}', '{"format": 1, "profiles": [{}]}'):
        path.write_text(damaged)
        assert not evaluate.is_done(run, runtime)
    assert job.carry_out(run, runtime) == "completed" and evaluate.is_done(run, runtime)


def test_what_cannot_be_measured_leaves_the_record_and_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of the run were not kept: the child says so, and the launch ends with exit code 1."""
    trained, run, runtime = evaluated(tmp_path)
    store, record = store_paths(runtime), store_paths(runtime).run(run.run_id).record.read_bytes()

    def fails(*_: Any) -> list[Profile]:
        raise MachineError("the weights were not kept")

    monkeypatch.setattr(_profile, "_ask_child", fails)
    assert job.carry_out(run, runtime) == "not measured"
    assert store.run(run.run_id).record.read_bytes() == record and not store.run(trained.run_id).profile.exists()
    assert "ERROR the weights were not kept" in store.run(run.run_id).log.read_text()
    ended = local.Ended(run, "not measured", local.NOT_MEASURED)
    assert ended.failure is not None and "log.txt" in ended.failure.line


def test_a_signal_ends_the_child_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained, run, runtime = evaluated(tmp_path)
    monkeypatch.setattr(sys, "executable", "/bin/cat")  # ends by itself for want of such an option
    monkeypatch.setattr(_profile, "POLL_S", 0.01)
    assert job.carry_out(run, runtime) == "not measured"
    waiting = tmp_path / "waiting"
    waiting.write_text("#!/bin/sh\nexec sleep 60\n")
    waiting.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(waiting))
    assert job.carry_out(run, runtime, stop=cast(StopFlag, small_runs.StopAfter(2))) == "interrupted"
    assert not store_paths(runtime).run(trained.run_id).profile.exists()


# ---------------------------------------------------------------------------------------------------- the command line
def test_it_belongs_to_no_identity_and_to_evaluations_alone(tmp_path: Path) -> None:
    plain = small_runs.request(tmp_path, "phase=evaluate", "model=tinynet_mnist", "dataset=mnist", "weights=random")
    asked = small_runs.request(
        tmp_path, "phase=evaluate", "model=tinynet_mnist", "dataset=mnist", "weights=random", "profile=true"
    )
    assert asked.configurations == plain.configurations and asked.runtime == replace(plain.runtime, profile="here")
    assert "profile" not in to_dict(plain.runtime) and measured_in_jobs(plain) is plain
    assert measured_in_jobs(asked).runtime.profile == "in a job"
    with pytest.raises(ConfigError, match="profile=true goes with phase=evaluate, not with scratch"):
        small_runs.request(tmp_path, "phase=scratch", "model=tinynet", "profile=true")
    with pytest.raises(ConfigError, match="profile=true measures the networks of evaluations, and grid.phases has"):
        load_grid(["grid=quickstart", "profile=true"])


# ---------------------------------------------------------------------------------------------------- a real network
def shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SINGLE", "BATCHES"):
        monkeypatch.setattr(profiling, name, profiling.Rule(3, 0.0, 1, 0.0))


def carried_out(tmp_path: Path, *arguments: str) -> Request:
    asked = small_runs.request(tmp_path, *arguments, "dataset.max_images=60")
    assert small_runs.carry_out(asked) == "completed"
    return asked


@pytest.mark.slow
def test_a_join_is_measured_with_all_its_backbones_and_a_probe_with_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shortened(monkeypatch)
    tuned = carried_out(tmp_path, "model=tinynet_mnist+tinynet_cifar", "phase=finetune", "phase.finetune.epochs=1")
    sizes: list[Sequence[int]] = []
    for run in tuned.runs.values():  # the probe, and the fine-tuning
        asked = carried_out(tmp_path, "phase=evaluate", f"run={run.run_id}")
        for found in profiles_of(small_runs.final_run(asked), asked.runtime):
            sizes.append(found.sizes_px)
            assert found.single.memory_mib is not None and found.fastest.images_per_s > 0
    assert sizes and all(len(size) == 2 for size in sizes)


@pytest.mark.slow
def test_a_real_evaluation_is_measured_by_a_process_of_its_own_through_the_pool(tmp_path: Path) -> None:
    scratch = small_runs.final_run(carried_out(tmp_path, "model=tinynet", "phase=scratch"))
    done = carried_out(tmp_path, "phase=evaluate", f"run={scratch.run_id}")
    asked = small_runs.request(
        tmp_path, "phase=evaluate", f"run={scratch.run_id}", "dataset.max_images=60", "profile=true"
    )
    run = small_runs.final_run(asked)
    before = small_runs.paths_of(run, done.runtime).record.read_bytes()
    (ended,) = local.run_plan(Plan((PlannedRun(run, "run", ""),)), asked.runtime, local.Watcher())
    assert ended.ending == "completed", small_runs.paths_of(run, asked.runtime).log.read_text()
    assert small_runs.paths_of(run, done.runtime).record.read_bytes() == before
    (found,) = read_profiles(small_runs.paths_of(scratch, asked.runtime))
    assert (found.threads, found.precision, found.single.batch_size) == (1, "fp32", 1) and found.single.passes >= 20
    assert found.single.memory_mib is not None and found.single.median_s < found.single.first_s
    content = json.loads(small_runs.paths_of(scratch, asked.runtime).profile.read_text())
    assert content["format"] == 1 and len(content["profiles"]) == 1
