"""`run_phase.py -m`: every combination is checked before anything happens; then one run per combination."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from replayed_slurm import ReplayedSlurm, queue_line, submit
from small_runs import DATASET, MACHINE, TWO_EPOCHS

from transfergrid.cli import run_phase
from transfergrid.cli import sweep as command
from transfergrid.cluster import slurm
from transfergrid.cluster.limits import Limits
from transfergrid.cluster.ownership import Here
from transfergrid.config import load_grid
from transfergrid.config.sweep import launch_line, load_sweep, run_sweep
from transfergrid.errors import ConfigError, MachineError
from transfergrid.paths import StorePaths
from transfergrid.planning.plan import make_plan

JOBS = Path(__file__).resolve().parents[2] / "jobs"
SMALL = [*DATASET, *MACHINE, *TWO_EPOCHS]
SLURM = ["cluster=slurm", "hydra/launcher=slurm"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def answer(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str]:
    """(exit code, what was said on stderr) of `run_phase.py -m` in this process."""
    monkeypatch.setattr(sys, "argv", ["run_phase.py", "-m", *arguments])
    return run_phase.main(), capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "telling"),
    [
        ("phase=finetune model=resnet18,tinynet_mnits", "did you mean 'tinynet_mnist'?"),
        ("phase=finetune model=resnet18 phase.finetune.lr=1e-2,abc", "phase.finetune.lr=abc is not a number"),
        ("phase=finetune model=resnet18 phase.finetune.lr=1e-2,1e3", "out of range"),
        ("phase=finetune model=resnet18 phase.finetune.lrr=1,2", "did you mean 'phase.finetune.lr'?"),
        ("phase=probe,scratch model=resnet18", "phase=scratch does not take 'resnet18'"),
        ("phase=probe", "model= is needed"),
        ("phase=probe model=resnet18 model=googlenet", "'model' is given twice"),
        ("phase=probe model=resnet18 seed=interval(0,1)", "takes values written out, seed=a,b"),
        ("phase=probe model=resnet18 seed=range(0,20000)", "20000 combinations are too many"),
        ("phase=probe model=resnet18 store.dir=a,b", "store.dir is one for the whole sweep"),
        ("phase=probe model=resnet18 cluster.mem_gb=4,8", "cluster.mem_gb is one for the whole sweep"),
        ("phase=probe model=resnet18 wait=false", "a sweep waits for its runs"),
        ("phase=probe model=resnet18 hydra/launcher=slrum", "did you mean 'slurm'?"),
        ("phase=probe model=resnet18 hydra.launcher.partition=a", "resources are cluster.*"),
        ("phase=probe model=resnet18 hydra/launcher=slurm", "cluster=auto is not one, give cluster=slurm"),
        ("phase=probe model=resnet18 hydra/launcher=slurm cluster=local", "cluster=local is not one"),
        ("phase=probe model=resnet18 cluster=slurm", "needs hydra/launcher=slurm"),
    ],
)
def test_one_bad_combination_is_told_before_anything_is_written(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    telling: str,
) -> None:
    code, said = answer(capsys, monkeypatch, *arguments.split())
    assert code == 2 and said.count("\n") == 1 and telling in said, said
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "telling"),
    [
        (["needs=run"], "needs=run: the jobs of a sweep do not wait for each other; python jobs/launch_grid.py"),
        (["cluster.python=podman run x python"], "cluster.python cannot be handed on"),
        (["phase=probe,finetune", "cluster.by_phase={probe: {gpus: 0}}"], "sweep over one phase at a time"),
    ],
)
def test_what_the_launcher_cannot_do_is_refused(arguments: list[str], telling: str) -> None:
    with pytest.raises(ConfigError, match=telling):
        load_sweep([*SLURM, "model=resnet18", *arguments])


def test_a_cluster_without_accounting_is_sent_to_launch_grid(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The launcher would wait for ever for a job that dies there."""
    bare = Limits(here=Here("here"), max_array_size=1001, max_jobs=None, partitions={}, accounting=False)
    monkeypatch.setattr(slurm, "answers", lambda: True)
    monkeypatch.setattr(command, "read_limits", lambda **asked: bare)
    code, said = answer(capsys, monkeypatch, *SLURM, "model=resnet18", "phase=probe")
    assert code == 2 and "needs SLURM's accounting, but sacct does not answer" in said and "jobs/launch_grid.py" in said
    assert list(folder.iterdir()) == []


def test_without_a_controller_that_answers_nothing_is_submitted(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(folder))
    code, said = answer(capsys, monkeypatch, *SLURM, "model=resnet18", "phase=probe")
    assert code == 2 and "SLURM does not answer here" in said


def test_a_sweep_is_the_product_of_its_values_each_with_its_variant() -> None:
    asked = load_sweep(["model=resnet18,vgg16+resnet18", "phase=finetune", "seed=range(0,2)", "phase.finetune.lr=1,2"])
    rows = {(c.run.model, c.run.seed, c.variant) for c in asked.request.configurations}
    assert rows == {
        (model, seed, f"finetune.lr-{lr}")
        for model in ("resnet18", "vgg16+resnet18")
        for seed in (0, 1)
        for lr in (1, 2)
    }
    assert len(asked.request.runs) == 8 + 2  # and their solved probes, which know no fine-tuning rate and no seed
    assert asked.request.needs_only_checked and asked.request.grid == "adhoc" and not asked.request.replaces_grid


def test_a_variant_too_long_to_be_spelled_out_is_still_its_own() -> None:
    many = ["final_lr_fraction=0.123456", "label_smoothing=0.123456", "momentum=0.81234", "warmup_fraction=0.1,0.2"]
    asked = load_sweep(
        [
            "model=resnet18",
            "phase=probe",
            "dataset.max_images=1000",
            *(f"phase.probe.{m}" for m in ("solver=sgd", *many)),
        ]
    )
    variants = {c.variant for c in asked.request.configurations}
    assert len(variants) == 2 and {len(v) for v in variants} == {120}


def test_a_job_uses_the_gpu_it_asked_for_and_no_other() -> None:
    on_gpu = load_sweep([*SLURM, "model=resnet18", "phase=probe"])
    on_cpu = load_sweep([*SLURM, "model=resnet18", "phase=probe", "cluster.gpus=0"])
    told = load_sweep([*SLURM, "model=resnet18", "phase=probe", "device=cpu"])
    asked_for = (on_gpu, on_cpu, told)
    devices = [command._with_its_device(asked, on_slurm=True).request.runtime.device for asked in asked_for]
    assert devices == ["cuda", "cpu", "cpu"]
    devices = [command._with_its_device(asked, on_slurm=False).request.runtime.device for asked in asked_for]
    assert devices == ["auto", "cpu", "cpu"]


@pytest.mark.parametrize(
    "arguments",
    [
        "model=resnet18,googlenet phase=probe seed=0,1",
        "model=resnet18 phase=finetune phase.finetune.lr=1e-2,1e-3 seed=range(0,3)",
        "model=resnet18 phase=finetune phase.probe.cs=[1],[2] dataset.max_images=100,200 dataset=digits",
        "model=resnet18+googlenet phase=probe,finetune dataset=digits,mnist weights=random weights_seed=0,1",
        "model=baseline_cnn phase=evaluate phase.scratch.epochs=3 seed=0,1 phase.evaluate.split=test,val",
        "model=resnet18,vgg16 phase=finetune grid=individual_vs_parallel_as_published protocol=published dataset=mnist",
        "model=resnet18 phase=finetune phase.probe.solver=sgd phase.probe.lrs=[0.1,0.2],[0.3] 'phase.probe.cs=[0.1]'",
    ],
)
def test_the_line_for_what_is_missing_makes_all_of_it(folder: Path, arguments: str) -> None:
    asked = load_sweep(shlex.split(arguments))
    request = asked.request
    rows = [c.run.run_id for c in request.configurations]
    missing = command._missing(make_plan(rows, request.runs, request.runtime))
    line = launch_line(asked, missing)
    assert missing != [] and line is not None and line.startswith("python jobs/launch_grid.py grid=")
    made = load_grid(shlex.split(line)[2:])
    plan = make_plan([c.run.run_id for c in made.configurations], made.runs, made.runtime)
    assert {run.run_id for run in missing} <= {p.run.run_id for p in plan.to_run}
    assert re.fullmatch("adhoc_needs-[0-9a-f]{6}", made.grid)


def test_what_runs_need_is_named_with_the_command_that_makes_it_and_nothing_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, said = answer(capsys, monkeypatch, *SMALL, "model=tinynet_mnist,tinynet_cifar", "phase=finetune")
    assert code == 2 and said.count("\n") == 1 and "and 1 more must complete first" in said
    assert "python jobs/launch_grid.py grid=compare grid_name=adhoc_needs-" in said
    assert "'grid.models=[tinynet_mnist,tinynet_cifar]' 'grid.phases=[probe]' 'grid.seeds=[0]'" in said
    assert "dataset.max_images=100" in said and "phase.finetune" not in said
    assert list(folder.iterdir()) == []


def test_a_dry_run_of_a_sweep_writes_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["x", "-m", *SMALL, "model=baseline_cnn", "phase=scratch", "seed=0,1", "dry_run=true"]
    )
    assert run_phase.main() == 0
    assert "2 configurations; with what they need: 2 run" in capsys.readouterr().out
    assert list(folder.iterdir()) == []


def test_what_a_task_raises_ends_a_sweep_here_and_leaves_the_command_line_as_it_was(folder: Path) -> None:
    asked = load_sweep([*SMALL, "model=baseline_cnn", "phase=scratch", "seed=0,1,2"])
    asked = replace(asked, request=replace(asked.request, runtime=replace(asked.request.runtime, store_dir="store")))
    called = []

    def task(payload: str, run_id: str) -> None:
        called.append((payload, run_id))
        if len(called) == 2:
            raise KeyboardInterrupt

    payload = Path("store/launches/x/specs.json")
    typed = list(sys.argv)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(task, ["a+b-1", "c.d-2", "e-3"], sweep=asked, payload=payload, name="n", folder=payload.parent)
    assert called == [("store/launches/x/specs.json", "a+b-1"), ("store/launches/x/specs.json", "c.d-2")]
    assert sys.argv == typed and [p.name for p in Path("store/sweeps/x").iterdir()] == ["multirun.yaml"]


@pytest.mark.slow
def test_a_sweep_here_runs_every_combination_and_joins_the_table(tmp_path: Path) -> None:
    """As a user runs it. Seeds of one setting are one row; the same again is nothing to do."""
    small = [*SMALL, "model=tinynet_mnist", "phase=probe", "seed=0,1"]

    def sweep(*more: str) -> str:
        done = subprocess.run(
            [sys.executable, JOBS / "run_phase.py", "--multirun", *small, *more],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=300,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "[3/3] completed" in sweep("needs=run")  # the extraction first
    with open(tmp_path / "results/reports/adhoc/comparison.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["status"], r["n_seeds"]) for r in rows] == [("completed", "2")]
    records = [json.loads(p.read_text()) for p in (tmp_path / "results/runs").glob("*probe*/record.json")]
    assert len(records) == 2 and all(r["status"] == "completed" for r in records)
    assert "2 reuse" in sweep()
    assert not list((tmp_path / "results/launches").iterdir())


def test_a_sweep_whose_sbatch_lost_its_answer_leaves_no_job_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replayed = ReplayedSlurm(tmp_path / "bin", monkeypatch)
    sent = submit(StorePaths(tmp_path / "results"), ("a",), job_id=None)
    theirs = queue_line("7", "RUNNING", name="theirs")
    replayed.answers("squeue", queue_line("41_0", "PENDING", name=sent.job_name) + theirs)

    def lost(*_: object, **__: object) -> None:
        raise RuntimeError("sbatch: error: Unexpected message received")

    monkeypatch.setattr(command, "run_sweep", lost)
    with pytest.raises(MachineError, match="SLURM did not take the sweep: RuntimeError: sbatch: error: Unexpected"):
        command._launch(["a"], None, sent.launch / "specs.json", sent, tmp_path)  # type: ignore[arg-type]
    assert [call for call in replayed.calls if call.startswith("scancel")] == ["scancel 41_0"]
    assert not sent.launch.exists()
