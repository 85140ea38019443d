"""Groups -> SLURM: the job script, what is asked of sbatch, and what becomes of a submission without an answer."""

from __future__ import annotations

import os
import re
import shlex
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import submitit
from cluster_cases import executable, names_in
from replayed_slurm import CLUSTER, TOKEN, ReplayedSlurm
from submit_cases import CHILDREN, RUNS, SLURM, group_of, launch_of, of, options, sender_of, sending

from transfergrid.cluster import submit
from transfergrid.cluster.finish_job import finish_resources
from transfergrid.cluster.ledger import read_ledger
from transfergrid.cluster.possible import start_estimate
from transfergrid.cluster.submit import (
    Sender,
    dependency,
    finish_name,
    intended,
    sbatch_parameters,
    script_text,
    slurm_environment,
)
from transfergrid.cluster.task import TaskSettings, run_task
from transfergrid.errors import ConfigError
from transfergrid.paths import StorePaths
from transfergrid.resources import ClusterSettings, Resources


@pytest.fixture
def store(tmp_path: Path) -> StorePaths:
    return StorePaths(tmp_path / "results")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ReplayedSlurm:
    return sending(tmp_path, monkeypatch)


# ------------------------------------------------------------------------------------------------------ the job script
def script(store: StorePaths, settings: ClusterSettings, depends: str | None = None) -> list[str]:
    group, launch = group_of(RUNS, settings), launch_of(store, settings)
    sent = replace(intended(launch, group), token=TOKEN)
    parameters = sbatch_parameters(launch, group, sent, dependency=depends)
    return script_text(sent, settings, parameters).splitlines()


def finish_script(store: StorePaths, settings: ClusterSettings) -> list[str]:
    asked = finish_resources(settings)
    launch = launch_of(store, settings, finish=asked)
    sent = intended(launch, None)
    parameters = sbatch_parameters(launch, None, sent, dependency="afterany:41:42")
    return script_text(sent, settings, parameters).splitlines()


def with_resources(**asked: Any) -> ClusterSettings:
    return replace(SLURM, resources=Resources(**asked))


def test_of_a_cluster_of_which_nothing_is_said_only_the_defaults_are_asked(
    slurm: ReplayedSlurm, store: StorePaths
) -> None:
    name = group_of(RUNS).name
    folder = launch_of(store).folder / "slurm" / name
    assert options(script(store, SLURM)) == {
        "job-name": f"{name}-{TOKEN}",
        "array": "0-2%3",
        "gpus-per-node": "1",
        "cpus-per-task": "4",
        "mem": "16384M",
        "time": "240",
        "nodes": "1",
        "ntasks-per-node": "1",
        "signal": "USR2@120",
        "requeue": None,
        "open-mode": "append",
        "output": f"{folder}/%A_%a_0_log.out",
        "error": f"{folder}/%A_%a_0_log.err",
    }


RENDERED: list[tuple[ClusterSettings, dict[str, str | None], set[str]]] = [
    (with_resources(partition="gpu,long"), {"partition": "gpu,long"}, set()),
    (with_resources(account="lab"), {"account": "lab"}, set()),
    (with_resources(qos="high"), {"qos": "high"}, set()),
    (with_resources(constraint="a100&nvlink"), {"constraint": "a100&nvlink"}, set()),
    (with_resources(constraint="[rack1|rack2]"), {"constraint": "[rack1|rack2]"}, set()),
    (with_resources(gpus=2), {"gpus-per-node": "2"}, {"gres"}),
    (with_resources(gpus=2, gpu_type="a100"), {"gres": "gpu:a100:2"}, {"gpus-per-node"}),
    (with_resources(gpus=0), {}, {"gres", "gpus-per-node"}),
    (with_resources(gpus=0, gpu_type="a100"), {}, {"gres", "gpus-per-node"}),
    (with_resources(cpus=12), {"cpus-per-task": "12"}, set()),
    (with_resources(mem_gb=1.5), {"mem": "1536M"}, set()),
    (with_resources(mem_gb=None), {}, {"mem"}),
    (with_resources(mem_gb=0), {"mem": "0"}, set()),
    (with_resources(mem_gb=None, mem_per_cpu_gb=2), {"mem-per-cpu": "2048M"}, {"mem"}),
    (with_resources(mem_gb=None, mem_per_gpu_gb=8), {"mem-per-gpu": "8192M"}, {"mem"}),
    (with_resources(timeout_min=None), {}, {"time"}),
    (with_resources(timeout_min=-1), {"time": "-1"}, set()),
    (replace(SLURM, gpu_request="gpus"), {"gpus": "1"}, {"gpus-per-node", "gres"}),
    (
        replace(SLURM, gpu_request="gpus-per-node", resources=Resources(gpu_type="3090")),
        {"gpus-per-node": "3090:1"},
        {"gres", "gpus"},
    ),
    (
        replace(SLURM, gpu_request="gres", sbatch={"gres": "lscratch:1"}),
        {"gres": "gpu:1,lscratch:1"},
        {"gpus-per-node", "gpus"},
    ),
    (
        replace(SLURM, resources=Resources(gpu_type="a100"), sbatch={"gres": "lscratch:1"}),
        {"gres": "gpu:a100:1,lscratch:1"},
        {"gpus-per-node"},
    ),
    (replace(SLURM, sbatch={"gres": "lscratch:1"}), {"gres": "lscratch:1", "gpus-per-node": "1"}, set()),
    (replace(SLURM, sbatch={"comment": "lab1"}), {"comment": "lab1"}, set()),
    (with_resources(timeout_min=15), {"time": "15"}, set()),
    (replace(SLURM, array_parallelism=2), {"array": "0-2%2"}, set()),
    (replace(SLURM, array_parallelism=50), {"array": "0-2%3"}, set()),
    (replace(SLURM, signal_delay_s=300), {"signal": "USR2@300"}, set()),
    (replace(SLURM, wckey="project7"), {"wckey": "project7"}, set()),
    (replace(SLURM, exclude="n[1-3],n7"), {"exclude": "n[1-3],n7"}, set()),
    (
        replace(SLURM, sbatch={"mail-type": "END,FAIL", "hold": True, "comment": "lab1"}),
        {"mail-type": "END,FAIL", "hold": None, "requeue": None, "comment": "lab1"},
        set(),
    ),
    (replace(SLURM, by_phase={"scratch": Resources(cpus=7)}), {"cpus-per-task": "7"}, set()),
    (replace(SLURM, by_phase={"evaluate": Resources(cpus=7)}), {"cpus-per-task": "4"}, set()),
    (replace(SLURM, runs_per_job=3), {}, {"array"}),
]
ABSENT = {"partition", "account", "qos", "constraint", "gres", "exclude", "wckey", "dependency", "kill-on-invalid-dep"}


@pytest.mark.parametrize(
    ("settings", "expected", "absent"), RENDERED, ids=[str(sorted(e or a)) for _, e, a in RENDERED]
)
def test_each_setting_is_asked_of_sbatch_and_what_is_not_set_is_left_to_the_site(
    slurm: ReplayedSlurm,
    store: StorePaths,
    settings: ClusterSettings,
    expected: dict[str, str | None],
    absent: set[str],
) -> None:
    asked = options(script(store, settings))
    assert {name: asked[name] for name in expected} == expected
    assert not (absent | (ABSENT - set(expected))) & set(asked)


def test_every_setting_is_either_in_a_job_script_or_told_to_the_task() -> None:
    """A new field must be rendered, or be listed here."""
    changed = {f.name for s, _, _ in RENDERED for f in fields(s) if getattr(s, f.name) != getattr(SLURM, f.name)}
    asked = {
        f.name
        for s, _, _ in RENDERED
        for f in fields(Resources)
        if getattr(s.resources, f.name) != getattr(Resources(), f.name)
    }
    assert asked == {f.name for f in fields(Resources)} - {"defaults"}  # which is about the others
    not_options = {"name", "kind", "poll_s"}
    tested_below = {"finish_partition", "setup", "python", "max_requeues", "stage_folders", "scratch_dir"}
    assert changed | not_options | tested_below == {f.name for f in fields(ClusterSettings)}
    assert not changed & (not_options | tested_below)


def test_the_finish_job_asks_for_no_gpu_nor_for_a_node_that_has_one(slurm: ReplayedSlurm, store: StorePaths) -> None:
    asked_for = Resources(
        partition="gpu", account="lab", qos="high", constraint="a100", gpus=4, gpu_type="a100", cpus=32, mem_gb=256
    )
    settings = replace(SLURM, resources=asked_for, wckey="w", sbatch={"mail-type": "END", "gres": "gpu:4"})
    expected = {"partition": "gpu", "account": "lab", "qos": "high", "cpus-per-task": "2", "mem": "4096M", "time": "60"}
    expected |= {"wckey": "w", "mail-type": "END", "dependency": "afterany:41:42", "nodes": "1"}
    asked = options(finish_script(store, settings))
    assert {name: asked[name] for name in expected} == expected
    assert not {"gres", "gpus-per-node", "constraint", "array", "kill-on-invalid-dep"} & set(asked)
    asked = options(finish_script(store, replace(settings, finish_partition="cpu")))
    assert asked["partition"] == "cpu" and "qos" not in asked  # a QOS is of the partition it was given for
    small = replace(settings, resources=replace(asked_for, cpus=1, mem_gb=2.0))
    asked = options(finish_script(store, small))
    assert (asked["cpus-per-task"], asked["mem"]) == ("1", "2048M")


@pytest.mark.parametrize(("runs_per_job", "edge", "kill"), [(1, "afterok", True), (2, "afterany", False)])
def test_a_job_whose_dependency_can_never_be_met_is_ended_and_one_that_comes_in_any_case_is_not(
    slurm: ReplayedSlurm, store: StorePaths, runs_per_job: int, edge: str, kill: bool
) -> None:
    settings = replace(SLURM, runs_per_job=runs_per_job)
    assert group_of(RUNS, settings).edge == edge
    for depends in (None, f"{edge}:7:8_3"):
        asked = options(script(store, settings, depends))
        assert asked.get("dependency") == depends
        assert asked.get("kill-on-invalid-dep") == ("yes" if kill and depends else None)


def test_parents_are_named_once_each() -> None:
    assert dependency("afterok", ["7_1", "7_2", "7_1", "8"]) == "afterok:7_1:7_2:8"
    assert dependency("afterany", []) is None


def test_setup_lines_come_first_and_a_failing_one_ends_the_job(
    slurm: ReplayedSlurm, store: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/home/me/it's mine")
    settings = replace(SLURM, setup=("module load cuda/12", "export X='a b'"))
    for lines in (script(store, settings), finish_script(store, settings)):
        first = lines.index("set -eo pipefail")
        assert lines[first + 2 : first + 5 : 2] == ["module load cuda/12", "export X='a b'"]
        assert lines[first + 7] == "export PYTHONUNBUFFERED=1"
        assert re.fullmatch(r"export TRANSFERGRID_JOB_TOKEN=[0-9a-f]{12}", lines[first + 8])
        [variable] = shlex.split(lines[first + 6].removeprefix("export "))
        source = launch_of(store).source
        assert variable == f"PYTHONPATH={source}:/home/me/it's mine"
        assert first > max(i for i, line in enumerate(lines) if line.startswith("#SBATCH"))


@pytest.mark.parametrize(
    ("python", "expected"),
    [
        (None, [sys.executable]),
        ("singularity exec --nv tg.sif python3", "singularity exec --nv tg.sif python3".split()),
    ],
)
def test_python_is_this_interpreter_or_the_users_command_and_starts_with_signals_ignored(
    slurm: ReplayedSlurm, store: StorePaths, python: str | None, expected: list[str]
) -> None:
    settings = replace(SLURM, python=python, resources=Resources(cpus=6))
    [command] = [shlex.split(line) for line in script(store, settings) if line.startswith("srun ")]
    assert {"--cpus-per-task=6", "--export=ALL"} <= set(command)
    shell = command.index("sh")
    assert command[shell : shell + 3] == ["sh", "-c", 'trap "" USR2 TERM; exec "$0" "$@"']
    folder = launch_of(store).folder / "slurm" / group_of(RUNS, settings).name
    assert command[shell + 3 :] == [*expected, "-u", "-m", "submitit.core._submit", str(folder)]


def test_what_a_task_must_know_lies_in_its_groups_folder(slurm: ReplayedSlurm, store: StorePaths) -> None:
    settings = replace(SLURM, max_requeues=3, signal_delay_s=90, scratch_dir="$TMPDIR", runs_per_job=2)
    sender = sender_of(store, settings)
    group = group_of([RUNS[2], RUNS[0], RUNS[1]], settings)
    sender.send(group)
    told = TaskSettings.read(sender.launch.folder / "slurm" / group.name)
    assert (told.payload, told.tasks) == (str(sender.launch.payload), ((2, 0), (1,)))
    assert (told.signal_delay_s, told.max_requeues, told.stage_to, told.asks_for_gpu) == (90, 3, None, True)
    staging = replace(settings, stage_folders=True, resources=Resources(gpus=0))
    submit.write_orders(launch_of(store, staging), group_of(RUNS, staging), sender.indices)
    told = TaskSettings.read(sender.launch.folder / "slurm" / group_of(RUNS, staging).name)
    assert (told.stage_to, told.asks_for_gpu) == ("$TMPDIR", False)


# ---------------------------------------------------------------------------------------------------------- one sbatch
def test_a_group_is_sent_once_and_its_children_wait_for_their_own_parents(
    slurm: ReplayedSlurm, store: StorePaths
) -> None:
    sender = sender_of(store)
    sent = sender.send(group_of(RUNS))
    assert (sent.job_id, sent.tasks, sent.gpus) == ("41", tuple((p.run.run_id,) for p in RUNS), 1)
    assert read_ledger(store).submissions == [replace(sent, submitted=sent.submitted.replace(microsecond=0))]
    assert [n for n in names_in(sent.folder) if n.endswith(".pkl")] == [f"41_{i}_submitted.pkl" for i in range(3)]
    slurm.takes_jobs(42)
    child = sender.send(group_of(CHILDREN[1:2]))
    lines = (child.folder / "42_submission.sh").read_text().splitlines()
    assert (options(lines)["dependency"], options(lines)["kill-on-invalid-dep"]) == ("afterok:41_1", "yes")
    assert len(of(slurm, "sbatch")) == 2
    assert [call.split(" -O")[0].split()[-1] for call in of(slurm, "squeue")] == ["41", "42"]  # one each
    assert sender.sent == [sent, child]
    assert (sent.cluster, sent.uid) == (CLUSTER, os.getuid()) and sent.token != child.token


def test_a_child_waits_for_a_parent_of_an_earlier_launch_and_not_for_one_of_which_nothing_was_sent(
    slurm: ReplayedSlurm, store: StorePaths
) -> None:
    sender_of(store).send(group_of(RUNS[:2]))
    slurm.takes_jobs(50)
    later = sender_of(store)
    for child, expected in ((CHILDREN[1], "afterok:41_1"), (CHILDREN[2], None)):
        sent = later.send(group_of([child]))
        assert options((sent.folder / "50_submission.sh").read_text().splitlines()).get("dependency") == expected


def test_each_task_is_the_same_call_so_that_any_pickle_fits_any(slurm: ReplayedSlurm, store: StorePaths) -> None:
    sent = sender_of(store).send(group_of(RUNS))
    for i in range(3):
        call = submitit.core.utils.DelayedSubmission.load(sent.folder / f"41_{i}_submitted.pkl")
        assert (call.function, call.args, call.kwargs) == (run_task, (str(sent.folder),), {})


def test_the_finish_job_comes_after_all_others_and_is_told_what_to_do(slurm: ReplayedSlurm, store: StorePaths) -> None:
    launch = launch_of(store, notify="mail me")
    sender = Sender(launch, read_ledger(store), {})
    sent = sender.send_finish(run_task, ["41", "42", "41"])
    assert sent.name == finish_name(launch) == "tg-g-finish-0a1b2c3d"
    assert options((sent.folder / "41_submission.sh").read_text().splitlines())["dependency"] == "afterany:41:42"
    told = (sent.folder / "finish.json").read_text()
    assert '"notify": "mail me"' in told and f'"payload": "{launch.payload}"' in told
    assert read_ledger(store).of_grid("g", "finish")[0].job_id == "41"


# --------------------------------------------------------------------------------------------------------- environment
def test_sbatch_does_not_inherit_the_job_it_is_called_from(
    slurm: ReplayedSlurm, store: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_job = {"SLURM_JOB_ID": "5", "SLURM_CPUS_PER_TASK": "64", "SLURM_MEM_PER_NODE": "1", "SBATCH_PARTITION": "old"}
    of_job |= {"SRUN_CPUS_PER_TASK": "64", "SALLOC_X": "1", "PMI_RANK": "0", "PMIX_RANK": "0"}
    of_job |= {"SQUEUE_PARTITION": "cpu", "SCANCEL_STATE": "R", "SINFO_ALL": "1", "SACCT_FORMAT": "x"}
    of_job |= {"SCONTROL_ALL": "1", "SBATCH_CLUSTERS": "other"}
    mine = {"SLURM_CONF": "/etc/other.conf", "TZ": "Asia/Tokyo", "MY_SETTING": "a b", "SLURMISH": "mine"}
    for name, value in (of_job | mine).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("LC_ALL", raising=False)
    before = dict(os.environ)
    (slurm.folder / "sbatch").rename(slurm.folder / "taking")
    executable(slurm.folder / "sbatch", f"env > {slurm.folder}/env", f'exec {slurm.folder}/taking "$@"')
    sender_of(store).send(group_of(RUNS))
    seen = dict(line.partition("=")[::2] for line in (slurm.folder / "env").read_text().splitlines())
    assert not set(of_job) & set(seen)
    assert seen["SLURM_CLUSTERS"] == "other"  # which every command heeds, not sbatch alone
    assert {name: seen[name] for name in mine} == mine
    assert "LC_ALL" not in seen and seen["PATH"] == before["PATH"]
    assert dict(os.environ) == before


def test_what_calls_sbatch_by_itself_reads_latin_1_too() -> None:
    with slurm_environment():
        assert submitit.core.utils.CommandFunction(["printf", "M\\344rz"], verbose=False)() == "M\ufffdrz"
        with pytest.raises(submitit.core.utils.FailedJobError, match="M\ufffdrz"):
            submitit.core.utils.CommandFunction(["sh", "-c", "printf 'M\\344rz' >&2; exit 1"], verbose=False)()


def test_the_environment_is_put_back_also_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    before = dict(os.environ)
    with pytest.raises(ZeroDivisionError), slurm_environment():
        assert "SLURM_JOB_ID" not in os.environ
        os.environ["LEFT"] = "1"
        _ = 1 // 0
    assert dict(os.environ) == before


# ------------------------------------------------------------------------------------------------------------ estimate
@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("allocation failure: Invalid feature specification", "phase probe: SLURM refuses cluster.constraint: no node"),
        ("allocation failure: Invalid node name specified", "phase probe: SLURM refuses cluster.exclude: it names no"),
        ("sbatch: unrecognized option '--foo=bar'", "phase probe: SLURM refuses cluster.sbatch: sbatch --help"),
    ],
)
def test_what_sbatch_would_never_take_is_refused_with_its_setting(slurm: ReplayedSlurm, said: str, told: str) -> None:
    executable(slurm.folder / "sbatch", f'echo "{said}" >&2; exit 1')
    with pytest.raises(ConfigError, match=told):
        start_estimate(ClusterSettings(), ["probe", "finetune"])


def test_what_sbatch_refuses_for_now_is_shown_in_place_of_the_start(slurm: ReplayedSlurm) -> None:
    executable(slurm.folder / "sbatch", 'echo "allocation failure: Requested reservation is invalid" >&2; exit 1')
    expected = {"probe, finetune": "to be refused now: Requested reservation is invalid"}
    assert start_estimate(ClusterSettings(), ["probe", "finetune"]) == expected
    executable(slurm.folder / "sbatch", 'echo "allocation failure: Unable to contact slurm controller" >&2; exit 1')
    assert start_estimate(ClusterSettings(), ["probe"]) == {}
