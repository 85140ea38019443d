"""What remains to be done, in which order, and on what it waits."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from transfergrid.config import Request, load_grid
from transfergrid.paths import cache_paths
from transfergrid.planning.plan import Plan, PlannedRun, make_plan
from transfergrid.specs import PHASES, RunSpec, Split
from transfergrid.store import durable, feature_store
from transfergrid.store.provenance import code_hash
from transfergrid.store.records import RunRecord, write_record


def grid(folder: Path, *more: str) -> Request:
    """Probe and finetune of two singles and their pair, one seed: 6 rows, 2 extractions."""
    places = [f"store.dir={folder / 'store'}", f"cache.dir={folder / 'cache'}"]
    defaults = [
        "grid.models=[resnet18,googlenet,resnet18+googlenet]",
        "grid.phases=[probe,finetune]",
        "grid.seeds=[0]",
        "grid.variants={}",
        "weights=random",
    ]
    given = {a.split("=", 1)[0] for a in more}
    return load_grid([*places, *(d for d in defaults if d.split("=", 1)[0] not in given), *more])


def plan_of(request: Request) -> Plan:
    return make_plan([c.run.run_id for c in request.configurations], request.runs, request.runtime)


@pytest.mark.parametrize("can_wait", [True, False])
def test_what_needs_a_run_that_slurm_has_is_sent_only_where_it_can_wait_for_it(tmp_path: Path, can_wait: bool) -> None:
    """It cannot for a job of another cluster, nor for one of which nothing is sure."""
    request = grid(tmp_path, "grid.models=[resnet18]")
    probe = find(request, "probe", "resnet18")
    rows = [c.run.run_id for c in request.configurations]
    waited = {probe.run_id} if can_wait else set()
    queued = {probe.run_id: "unknown: its job 7 is on cluster beta"}
    plan = make_plan(rows, request.runs, request.runtime, queued=queued, can_wait=waited)
    assert planned(plan, "probe", "resnet18").state == "in flight"
    finetune = planned(plan, "finetune", "resnet18")
    assert finetune.state == ("run" if can_wait else "blocked")
    assert finetune.needs == ((probe.run_id,) if can_wait else ())


def find(request: Request, phase: str, model: str) -> RunSpec:
    return next(r for r in request.runs.values() if (r.phase, r.model) == (phase, model))


def planned(plan: Plan, phase: str, model: str) -> PlannedRun:
    return next(p for p in plan.runs if (p.run.phase, p.run.model) == (phase, model))


def complete(request: Request, run: RunSpec) -> None:
    write_record(request.store.run(run.run_id), RunRecord(run_id=run.run_id, spec=run, status="completed"))


def fail(request: Request, run: RunSpec, failure_class: str, *, code: str | None = None) -> None:
    record = RunRecord(
        run_id=run.run_id,
        spec=run,
        status="failed",
        failure_class=failure_class,
        error="it broke",
        provenance={"code_hash": code or code_hash()},
    )
    write_record(request.store.run(run.run_id), record)


def cache_features(request: Request, extraction: RunSpec, splits: tuple[Split, ...] = ("train", "test")) -> None:
    """Feature files as an extraction leaves them, with four features to a row."""
    for split in splits:
        rows_N = np.arange({"train": 1437, "test": 360}[split])
        with feature_store.writing(
            cache_paths(request.runtime),
            extraction.feature_key(extraction.backbones[0], split),
            feature_dim=4,
            labels_N=rows_N % 10,
            index_N=rows_N,
            provenance={},
        ) as writer:
            writer.write(0, np.ones((len(rows_N), 4), np.float32))


# -------------------------------------------------------------------------------------------------------------- states
def test_a_new_grid_runs_extractions_before_probes_before_finetunings(tmp_path: Path) -> None:
    plan = plan_of(grid(tmp_path))
    assert plan.counts() == {"run": 8}
    phases = [p.run.phase for p in plan.runs]
    assert phases == ["extract"] * 2 + ["probe"] * 3 + ["finetune"] * 3
    position = {p.run.run_id: i for i, p in enumerate(plan.runs)}
    assert all(position[need] < position[p.run.run_id] for p in plan.runs for need in p.needs)
    assert phases == sorted(phases, key=PHASES.index)


def test_a_pair_waits_for_the_two_extractions_of_the_singles_and_its_finetune_for_its_probe(tmp_path: Path) -> None:
    request = grid(tmp_path)
    plan = plan_of(request)
    pair = planned(plan, "probe", "resnet18+googlenet")
    singles = [planned(plan, "extract", name).run.run_id for name in ("resnet18", "googlenet")]
    assert list(pair.needs) == singles
    assert planned(plan, "finetune", "resnet18+googlenet").needs == (pair.run.run_id,)
    assert planned(plan, "extract", "resnet18").needs == ()


def test_a_completed_run_is_reused_and_what_needs_it_waits_for_nothing(tmp_path: Path) -> None:
    request = grid(tmp_path)
    complete(request, find(request, "probe", "googlenet"))
    plan = plan_of(request)
    assert planned(plan, "probe", "googlenet").state == "reuse"
    assert planned(plan, "finetune", "googlenet") == PlannedRun(
        find(request, "finetune", "googlenet"), "run", "not done yet", ()
    )


def test_nothing_is_extracted_for_probes_that_are_done(tmp_path: Path) -> None:
    request = grid(tmp_path)
    for model in ("resnet18", "googlenet", "resnet18+googlenet"):
        complete(request, find(request, "probe", model))
    plan = plan_of(request)
    assert plan.counts() == {"reuse": 3, "run": 3}
    assert not [p for p in plan.runs if p.run.phase == "extract"]


def test_one_remaining_probe_plans_its_own_extraction_alone(tmp_path: Path) -> None:
    request = grid(tmp_path)
    for model in ("resnet18", "resnet18+googlenet"):
        complete(request, find(request, "probe", model))
    assert [p.run.model for p in plan_of(request).runs if p.run.phase == "extract"] == ["googlenet"]


def test_a_needed_probe_that_is_no_row_is_left_out_where_its_finetune_is_done(tmp_path: Path) -> None:
    request = grid(tmp_path, "grid.models=[resnet18]", "grid.phases=[finetune]")
    assert [p.run.phase for p in plan_of(request).runs] == ["extract", "probe", "finetune"]
    complete(request, find(request, "finetune", "resnet18"))
    assert [(p.run.phase, p.state) for p in plan_of(request).runs] == [("finetune", "reuse")]


def test_cached_features_are_reused(tmp_path: Path) -> None:
    request = grid(tmp_path)
    extraction = find(request, "probe", "resnet18").extractions[0]
    cache_features(request, extraction)
    plan = plan_of(request)
    assert planned(plan, "extract", "resnet18").state == "reuse"
    assert planned(plan, "probe", "resnet18").needs == ()
    assert planned(plan, "extract", "googlenet").state == "run"


def test_features_of_one_split_only_or_cut_short_are_extracted_again(tmp_path: Path) -> None:
    request = grid(tmp_path, "grid.models=[resnet18]", "grid.phases=[probe]")
    extraction = find(request, "probe", "resnet18").extractions[0]
    cache_features(request, extraction, ("train",))
    assert planned(plan_of(request), "extract", "resnet18").state == "run"
    cache_features(request, extraction, ("test",))
    assert planned(plan_of(request), "extract", "resnet18").state == "reuse"
    file = cache_paths(request.runtime).features(extraction.feature_key(extraction.backbones[0], "test"))
    file.write_bytes(file.read_bytes()[:-100])
    assert planned(plan_of(request), "extract", "resnet18").state == "run"


def test_a_run_whose_lock_is_held_is_in_flight_and_what_needs_it_is_blocked_by_it(tmp_path: Path) -> None:
    request = grid(tmp_path, "grid.models=[resnet18]")
    probe = find(request, "probe", "resnet18")
    with durable.lock(request.store.run(probe.run_id).lock, wait=False) as obtained:
        assert obtained
        plan = plan_of(request)
        assert planned(plan, "probe", "resnet18").state == "in flight"
        finetune = planned(plan, "finetune", "resnet18")
        assert finetune.state == "blocked" and finetune.why == f"waits for {probe.run_id}, which is in flight"
    assert planned(plan_of(request), "probe", "resnet18").state == "run"


@pytest.mark.parametrize("failure_class", ["code", "data"])
def test_what_failed_by_code_or_data_is_blocked_until_the_code_changes(tmp_path: Path, failure_class: str) -> None:
    request = grid(tmp_path, "grid.models=[resnet18]")
    probe = find(request, "probe", "resnet18")
    fail(request, probe, failure_class)
    plan = plan_of(request)
    assert planned(plan, "probe", "resnet18").state == "blocked"
    assert planned(plan, "probe", "resnet18").why.startswith("failed before, nothing has changed: it broke; delete ")
    assert planned(plan, "finetune", "resnet18").why == f"waits for {probe.run_id}, which is blocked"
    assert plan.to_run == (), "features that nothing would read are not extracted"
    fail(request, probe, failure_class, code="another version")
    assert plan_of(request).counts() == {"run": 3}


@pytest.mark.parametrize("failure_class", ["host_oom", "cuda_oom", "environment", "timeout", "lost"])
def test_what_failed_by_circumstance_is_run_again(tmp_path: Path, failure_class: str) -> None:
    request = grid(tmp_path, "grid.models=[resnet18]")
    fail(request, find(request, "probe", "resnet18"), failure_class)
    again = planned(plan_of(request), "probe", "resnet18")
    assert again.state == "run" and again.why.startswith(f"failed before ({failure_class}): ")


def test_changed_settings_are_another_run_which_no_failure_blocks(tmp_path: Path) -> None:
    request = grid(tmp_path, "grid.models=[resnet18]", "grid.phases=[probe]")
    fail(request, find(request, "probe", "resnet18"), "code")
    changed = grid(tmp_path, "grid.models=[resnet18]", "grid.phases=[probe]", "phase.probe.cs=[1]")
    assert plan_of(changed).counts() == {"run": 2}


def test_a_checkpoint_is_continued_and_said_so(tmp_path: Path) -> None:
    request = grid(tmp_path, "grid.models=[baseline_cnn]", "grid.phases=[scratch]")
    (run,) = request.runs.values()
    durable.write_bytes(request.store.run(run.run_id).checkpoints / "step-000000001.pt", b"")
    assert [p.why for p in plan_of(request).runs] == ["continues from its checkpoint"]


def test_a_damaged_record_counts_as_not_done(tmp_path: Path) -> None:
    request = grid(tmp_path, "grid.models=[baseline_cnn]", "grid.phases=[scratch]")
    (run,) = request.runs.values()
    durable.write_bytes(request.store.run(run.run_id).record, b'{"status": "compl')
    assert plan_of(request).counts() == {"run": 1}


def test_two_variants_that_share_a_parent_plan_it_once(tmp_path: Path) -> None:
    variants = "grid.variants={slow:{phase.finetune.lr:0.001},slower:{phase.finetune.lr:0.0001}}"
    plan = plan_of(grid(tmp_path, "grid.models=[resnet18]", variants))
    assert [p.run.phase for p in plan.runs] == ["extract", "probe", "finetune", "finetune", "finetune"]


# ------------------------------------------------------------------------------------------------------ cost and traces
def test_ten_thousand_configurations_are_planned_in_seconds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seeds = f"grid.seeds=[{','.join(map(str, range(2500)))}]"
    began = time.perf_counter()
    request = grid(tmp_path, "grid.models=[resnet18,googlenet]", "phase.probe.solver=sgd", seeds)
    plan = plan_of(request)
    seconds = time.perf_counter() - began
    assert len(request.configurations) == 10_000
    assert plan.counts() == {"run": 10_002}
    assert len({p.run.run_id for p in plan.runs}) == 10_002
    assert seconds < 10, "benchmarks/plan.py measures it; this only catches a plan that grows faster than its grid"


def test_a_dry_run_shows_the_plan_writes_nothing_and_loads_nothing_heavy(tmp_path: Path) -> None:
    """In a process of its own; its modules are listed as it ends."""
    heavy = ("torch", "torchvision", "timm", "sklearn", "pandas", "wandb")
    arguments = ["grid=individual_vs_parallel", "cluster=local", "dry_run=true"]
    code = (
        "import sys; from transfergrid.cli.launch import main\n"
        f"sys.argv[1:] = {arguments}\n"
        f"assert main() == 0; print(sorted(set({heavy}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == "grid individual_vs_parallel: 120 configurations; with what they need: 126 run"
    assert lines[-2:] == ["dry run: nothing was started or written", "[]"]
    assert done.stderr == ""
    assert list(tmp_path.rglob("*")) == []


def test_the_plan_of_a_folder_hashes_its_images_but_a_dry_run_keeps_no_hash(tmp_path: Path) -> None:
    import tiny_data

    folder = tiny_data.write_folder(tmp_path / "pets")
    own = ["grid.models=[baseline_cnn]", "grid.phases=[scratch]", "dataset=image_folder", f"dataset.folder={folder}"]
    before = sorted(tmp_path.rglob("*"))
    dry = grid(tmp_path, *own, "dry_run=true")
    assert sorted(tmp_path.rglob("*")) == before
    kept = grid(tmp_path, *own)
    assert [c.run.run_id for c in kept.configurations] == [c.run.run_id for c in dry.configurations]
    assert [p.suffix for p in (tmp_path / "cache").rglob("*") if p.is_file()] == [".json"]
