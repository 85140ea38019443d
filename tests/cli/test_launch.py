"""Where a grid is carried out: `cluster=auto` looks for a SLURM that answers, and for whether this is a job already."""

from __future__ import annotations

import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cluster_cases import as_job, console, executable, planned, runtime_in, said, scratch_run

from transfergrid.cli.launch import launch, runs_on_slurm
from transfergrid.cli.screen import show_endings
from transfergrid.cluster import local
from transfergrid.errors import MachineError
from transfergrid.planning.plan import Plan
from transfergrid.resources import ClusterSettings

AUTO = ClusterSettings(name="auto", kind="auto")


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on the PATH: empty. No job around it."""
    as_job(monkeypatch, None)
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def slurm(commands: Path, *sinfo: str) -> None:
    executable(commands / "sbatch", "exit 1")
    executable(commands / "sinfo", f'echo "$*" >> {commands}/calls', *sinfo)


def test_without_sbatch_it_runs_here(commands: Path) -> None:
    printed = console()
    assert runs_on_slurm(printed, AUTO) is False
    assert said(printed) == []


def test_a_slurm_that_answers_is_taken_and_it_says_so(commands: Path) -> None:
    slurm(commands, "echo gpu*")
    printed = console()
    assert runs_on_slurm(printed, AUTO) is True
    assert said(printed) == ["SLURM answers: submitting to it; cluster=local runs here"]
    assert (commands / "calls").read_text() == "-h -o %P\n"


def test_inside_a_job_it_runs_there_and_it_says_so(commands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher in a job would wait for jobs that wait for its end."""
    slurm(commands, "echo gpu*")
    as_job(monkeypatch, "7")
    printed = console()
    assert runs_on_slurm(printed, AUTO) is False
    assert said(printed) == ["inside a SLURM job: running here; cluster=slurm submits"]


def test_a_controller_that_hangs_is_given_up_after_two_seconds_and_it_says_so(commands: Path) -> None:
    slurm(commands, "exec /bin/sleep 60")
    printed, began = console(), time.monotonic()
    assert runs_on_slurm(printed, AUTO) is False
    assert 1.9 <= time.monotonic() - began <= 4
    assert said(printed) == ["SLURM does not answer: running here; cluster=slurm submits once it does"]


def test_a_controller_that_cannot_be_reached_is_told(commands: Path) -> None:
    slurm(commands, "echo 'slurm_load_partitions: Unable to contact slurm controller' >&2", "exit 1")
    printed = console()
    assert runs_on_slurm(printed, AUTO) is False
    assert said(printed) == ["SLURM does not answer: running here; cluster=slurm submits once it does"]


@pytest.mark.parametrize(("kind", "expected"), [("slurm", True), ("local", False)])
def test_a_cluster_that_was_named_is_taken_without_a_look_also_inside_a_job(
    commands: Path, monkeypatch: pytest.MonkeyPatch, kind: str, expected: bool
) -> None:
    slurm(commands, "echo gpu*")
    for job_id in (None, "7"):
        as_job(monkeypatch, job_id)
        printed = console()
        assert runs_on_slurm(printed, ClusterSettings(name="mine", kind=kind)) is expected
        assert said(printed) == []
    assert not (commands / "calls").exists()


def test_a_run_that_was_told_to_stop_names_its_next_step(tmp_path: Path) -> None:
    """As a run's process is told by `kill`, while the launcher goes on with the next one."""

    process: Any = SimpleNamespace(exitcode=local._EXIT["interrupted"])
    asked = planned(scratch_run())
    child = local._Child(planned=asked, process=process, slot=0)
    printed = console()
    assert show_endings(printed, Plan(runs=(asked,)), [local._judge(child, runtime_in(tmp_path))]) == 1
    run_id = asked.run.run_id
    assert said(printed) == [f"interrupted: {run_id}: it was told to stop; launch again to continue"]


def test_the_plan_tells_apart_what_a_runs_readable_name_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["grid.models=[tinynet_mnist]", "grid.phases=[probe]", "grid.seeds=[0]", "cluster=local", "dry_run=true"]
    assert launch([*asked, f"store.dir={tmp_path / 'store'}", f"cache.dir={tmp_path / 'cache'}"]) == 0
    named = re.findall(r"-(extract|probe)(?:-s0)?-[0-9a-f]{12}(?: \((\w+)\))?  not done yet", capsys.readouterr().out)
    assert named == [("extract", "builtin"), ("extract", "random"), ("probe", ""), ("probe", "random_weights")]


# ------------------------------------------------------------------------------------------------------ without a SLURM
def toy(folder: Path, *more: str) -> list[str]:
    grid = ["grid.models=[baseline_cnn]", "grid.phases=[scratch]", "grid.seeds=[0]", "cluster=slurm", "device=cpu"]
    return [*grid, "cluster.gpus=0", f"store.dir={folder}/results", f"cache.dir={folder}/cache", *more]


def what_was_not_checked(printed: str) -> str:
    [line] = [line for line in printed.splitlines() if line.startswith("SLURM does not answer")]
    said, _, rest = line.partition(": the request ")
    assert rest == "was not checked against the cluster"
    return said


@pytest.mark.slow
def test_without_slurms_commands_a_launch_is_written_as_files(
    commands: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch(toy(tmp_path, f"emit={tmp_path}/out")) == 0
    printed = capsys.readouterr().out
    assert "scontrol is not on the PATH" in what_was_not_checked(printed) and "wrote 2 job scripts" in printed
    assert sorted(p.suffix for p in (tmp_path / "out").iterdir()) == [".json", ".json", ".sbatch", ".sbatch", ".sh"]
    with pytest.raises(MachineError, match="SLURM does not answer .*; nothing was sent, launch again when it does"):
        launch(toy(tmp_path))


@pytest.mark.parametrize("words", ["Unable to contact slurm controller (connect failure)", "only on login nodes"])
def test_where_no_controller_answers_the_plan_is_shown(
    commands: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    executable(commands / "scontrol", f'echo "error: {words}" >&2; exit 1')
    assert launch(toy(tmp_path, "dry_run=true")) == 0
    printed = capsys.readouterr().out
    assert words in what_was_not_checked(printed) and "SLURM expects" not in printed
    assert "dry run: nothing was submitted or written" in printed and not (tmp_path / "results").exists()
