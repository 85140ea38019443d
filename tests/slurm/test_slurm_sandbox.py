"""The throwaway SLURM itself: it is a real one, its options mean what they say, and it leaves nothing behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import processes
import pytest
import slurm_conf
from sandbox import Options, Sandbox, SandboxError, Unsupported, parser
from slurm_conf import Ports

from transfergrid.cluster.slurm_words import Answer, answer

SCRIPT = Path(__file__).parents[2] / "slurm" / "sandbox" / "sandbox.py"
PATIENCE_S = 60.0  # for what takes a second or two where nobody else uses the machine
PORTS = Ports(slurmctld=20001, slurmdbd=20002, slurmd=(20003, 20004))

in_slurm = pytest.mark.slurm
Variant = Callable[..., Sandbox]


def script(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=240, check=False
    )


def submit(sandbox: Sandbox, *arguments: str) -> str:
    """The job's id. Its output goes to the sandbox's folder."""
    files = (f"--output={sandbox.dir}/out-%A_%a", f"--error={sandbox.dir}/err-%A_%a")
    return sandbox.run("sbatch", "--parsable", *files, *arguments).strip()


def output(sandbox: Sandbox, job: str) -> str:
    return "".join(path.read_text() for path in sorted(sandbox.dir.glob(f"out-{job}_*")))


def state(sandbox: Sandbox, job: str) -> str:
    return sandbox.run("squeue", "-h", "-t", "all", "-j", job, "-o", "%T").strip()


def naming(text: str) -> list[str]:
    """Every process but this one whose command line or environment has this text in it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            told = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
        if text.encode() in told and int(entry.name) != os.getpid():
            found.append(f"{entry.name}: {told[:200]!r}")
    return found


# What needs no SLURM


def conf(**options: object) -> str:
    made = Options(**options)  # type: ignore[arg-type]
    return slurm_conf.files(made, PORTS, Path("/box"), None)["slurm.conf"]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({}, "MaxArraySize=1001"),
        ({}, "AuthInfo=socket=/box/run/munge.socket,cred_expire=120"),
        ({}, "AccountingStorageTRES=gres/gpu"),
        ({}, "TaskPlugin=task/none"),
        ({}, "PartitionName=short Nodes=ALL MaxTime=60 State=UP"),
        ({"max_array_size": 11}, "MaxArraySize=11"),
        ({"accounting": False}, "AccountingStorageType=accounting_storage/none"),
        ({"cgroup_memory": True}, "TaskPlugin=task/cgroup"),
        ({"cgroup_memory": True}, "FirstJobId=20001000"),
        ({"preempt": "signal"}, "SlurmctldParameters=preempt_send_user_signal"),
        ({"preempt": "signal"}, "PartitionName=low Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime=15 State=UP"),
        (
            {"preempt": "no-signal"},
            "PartitionName=low Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime=0 State=UP",
        ),
        ({"max_time_min": 3}, "PartitionName=short Nodes=ALL MaxTime=3 State=UP"),
        ({"kill_wait_s": 9}, "KillWait=9"),
        ({"slurmd_timeout_s": 15}, "SlurmdTimeout=15"),
        ({"min_job_age_s": 20}, "MinJobAge=20"),
        ({"requeue_wait_s": 10}, "AuthInfo=socket=/box/run/munge.socket,cred_expire=10"),
        ({"cluster_name": "beta"}, "ClusterName=beta"),
        ({"accounts_in": "/other"}, "AccountingStoragePass=/other/run/munge.socket"),
        ({"accounts_in": "/other"}, "AuthInfo=socket=/other/run/munge.socket,cred_expire=120"),
        ({"max_submit_jobs": 5}, "AccountingStorageEnforce=associations,limits,qos"),
    ],
)
def test_each_option_is_a_line_of_slurm_conf(options: dict[str, object], line: str) -> None:
    assert line in conf(**options).splitlines()


def test_what_is_not_asked_for_is_not_in_slurm_conf() -> None:
    absent = ("AccountingStorageEnforce", "Preempt", "FirstJobId", "PartitionName=low")
    assert [word for word in absent if word in conf()] == []
    assert "slurmdbd" not in conf(accounting=False)
    assert "Gres=" not in conf(gpus=0)


def test_nodes_have_the_declared_size_and_ports_of_their_own() -> None:
    nodes = [line for line in conf(cpus=8, gpus=3).splitlines() if line.startswith("NodeName=")]
    assert [re.findall(r"NodeName=(\S+) .* Port=(\d+) CPUs=(\d+) .* Gres=(\S+)", line) for line in nodes] == [
        [("n1", "20003", "8", "gpu:fake:3")],
        [("n2", "20004", "8", "gpu:fake:3")],
    ]


def test_the_command_line_and_the_options_have_the_same_defaults() -> None:
    given = vars(parser().parse_args(["start"]))
    assert Options(**{name: value for name, value in given.items() if name not in ("verb", "dir")}) == Options()


def test_a_folder_that_sockets_cannot_be_in_is_refused() -> None:
    with pytest.raises(Unsupported, match="at most 80 letters"):
        Sandbox(Path("/tmp/with space"))


def test_missing_programs_are_told_in_one_line(tmp_path: Path) -> None:
    done = script("start", f"--dir={tmp_path}/box", PATH="")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("not on the PATH: slurmctld, slurmd, slurmdbd,")
    assert "apt-get install -y --no-install-recommends slurmctld slurmd" in done.stderr
    assert not (tmp_path / "box").exists()


# One sandbox as it comes


@in_slurm
def test_a_job_sees_its_gpu_and_the_accounts_say_so(slurm: Sandbox) -> None:
    command = "--wrap=echo gpu $CUDA_VISIBLE_DEVICES; srun sleep 2"
    by_count, by_type = submit(slurm, "--gres=gpu:1", command), submit(slurm, "--gres=gpu:fake:2", command)

    def accounts() -> bool:
        return slurm.run("sacct", "-n", "-X", "-P", "-o", "State", "-j", f"{by_count},{by_type}") == "COMPLETED\n" * 2

    slurm.wait_for(accounts, PATIENCE_S)
    assert output(slurm, by_count) in ("gpu 0\n", "gpu 1\n")
    assert output(slurm, by_type) == "gpu 0,1\n"
    allocated = slurm.run("sacct", "-n", "-X", "-P", "-o", "Account,AllocTRES", "-j", by_count)
    assert re.match(r"default\|.*gres/gpu=1", allocated)
    peaks = slurm.run("sacct", "-n", "-P", "-o", "MaxRSS", "-j", by_count).split()
    assert any(re.fullmatch(r"\d+K", peak) for peak in peaks)


@in_slurm
def test_an_array_runs_on_both_nodes(slurm: Sandbox) -> None:
    begun = slurm.dir / "begun"
    begun.mkdir()
    # None ends before all have begun: a node has room for four, and one that was free again would take the rest.
    all_begin = f"touch {begun}/$SLURM_ARRAY_TASK_ID; until [ $(ls {begun} | wc -l) = 8 ]; do sleep 0.2; done"
    command = f"--wrap={all_begin}; echo $SLURM_ARRAY_TASK_ID $SLURMD_NODENAME"
    job = submit(slurm, "--array=0-7", "--cpus-per-task=1", command)
    slurm.wait_for(lambda: set(state(slurm, job).split()) == {"COMPLETED"}, PATIENCE_S)
    tasks, nodes = zip(*(line.split() for line in output(slurm, job).splitlines()), strict=True)
    assert sorted(tasks) == list("01234567")
    assert set(nodes) == {"n1", "n2"}


@in_slurm
def test_a_requeued_job_waits_until_it_is_hurried(slurm: Sandbox) -> None:
    job = submit(slurm, "--wrap=echo start; sleep 600")
    slurm.wait_for(lambda: output(slurm, job) == "start\n", PATIENCE_S)
    slurm.run("scontrol", "requeue", job)

    def reason() -> str:
        return slurm.run("squeue", "-h", "-j", job, "-o", "%T %r").strip()

    slurm.wait_for(lambda: reason() == "PENDING BeginTime", PATIENCE_S)

    def hurried() -> bool:
        slurm.hurry()
        return state(slurm, job) == "RUNNING"

    slurm.wait_for(hurried, PATIENCE_S)
    slurm.run("scancel", job)


@in_slurm
def test_daemons_can_be_killed_paused_and_brought_back(slurm: Sandbox) -> None:
    job = submit(slurm, "--nodelist=n1", "--wrap=sleep 600")
    slurm.wait_for(lambda: state(slurm, job) == "RUNNING", PATIENCE_S)
    slurm.wait_until_saved()
    slurm.kill_daemon("slurmctld")
    with pytest.raises(SandboxError, match="`squeue` failed, exit 1: ") as silent:
        slurm.run("squeue", timeout_s=120)  # it asks again and again for ten seconds, on a machine that has time
    # Its words depend on when the socket was closed: "Unable to contact", "Transport endpoint is not connected".
    assert answer(str(silent.value)) is Answer.SILENCE
    slurm.start_daemon("slurmctld")
    assert state(slurm, job) == "RUNNING"
    slurm.pause("slurmctld")
    with pytest.raises(SandboxError, match="`squeue` hangs: no end within 1 s"):
        slurm.run("squeue", timeout_s=1)
    slurm.kill_daemon("slurmd-n2")
    slurm.kill_node("n1")
    left = [process for node in slurm.nodes for process in processes.of_sandbox(slurm.dir, node=node)]
    assert left == []
    slurm.restore()
    slurm.run("scancel", job)
    slurm.wait_for(lambda: slurm.node_states() == {"n1": "idle", "n2": "idle"}, 90)
    assert slurm.is_running()


# Its options


@in_slurm
def test_from_start_to_stop_on_the_command_line(tmp_path: Path) -> None:
    folder = tmp_path / "box"
    begun = time.monotonic()
    started = script("start", f"--dir={folder}", "--max-array-size=11", "--max-submit-jobs=2", "--nodes=1", "--gpus=1")
    assert started.returncode == 0, started.stderr
    assert time.monotonic() - begun < 120  # ten seconds on a machine that has time
    assert script("env", f"--dir={folder}").stdout == f"export SLURM_CONF={folder}/slurm.conf\n"
    assert "already running" in script("start", f"--dir={folder}").stdout
    assert re.search(
        r"slurmdbd +pid \d+\n.*slurmd-n1 +pid \d+\n.*idle", script("status", f"--dir={folder}").stdout, re.S
    )

    sandbox = Sandbox(folder)
    with pytest.raises(SandboxError, match="Invalid job array specification"):
        submit(sandbox, "--array=0-24", "--wrap=true")
    # A job that does not want to end, and a child of it that has left its session and forgot its environment.
    stubborn = "trap '' TERM; env -i setsid sleep 1234.5 & echo started; while true; do sleep 0.1; done"
    job = submit(sandbox, f"--wrap={stubborn}")
    submit(sandbox, "--qos=long", "--hold", "--wrap=true")  # one that ended at once would leave its place
    with pytest.raises(SandboxError, match="AssocMaxSubmitJobLimit"):
        submit(sandbox, "--wrap=true")
    sandbox.wait_for(lambda: output(sandbox, job) == "started\n", PATIENCE_S)

    assert script("stop", f"--dir={folder}").returncode == 0
    assert naming(str(folder)) == []
    assert naming("1234.5") == []
    assert not folder.exists()


@in_slurm
def test_without_accounting_and_preempted_without_a_signal(slurm_variant: Variant) -> None:
    sandbox = slurm_variant(accounting=False, preempt="no-signal", nodes=1)
    with pytest.raises(SandboxError, match="Slurm accounting storage is disabled"):
        sandbox.run("sacct")
    low = submit(
        sandbox, "--partition=low", "--exclusive", "--signal=B:USR2", "--wrap=trap 'echo USR2' USR2; sleep 600"
    )
    sandbox.wait_for(lambda: state(sandbox, low) == "RUNNING", PATIENCE_S)
    high = submit(sandbox, "--partition=high", "--exclusive", "--wrap=sleep 1")
    sandbox.wait_for(lambda: state(sandbox, high) == "COMPLETED", PATIENCE_S)
    assert state(sandbox, low) == "PENDING"
    assert output(sandbox, low) == ""

    for daemon in sandbox.daemons:
        sandbox.kill_daemon(daemon)
    sandbox.start(Options(accounting=False, nodes=1, gpus=0))  # in a folder whose daemons are dead
    assert sandbox.run("squeue", "-h", "-t", "all") == ""


@in_slurm
def test_memory_is_enforced_and_preempted_jobs_get_their_signal(slurm_variant: Variant) -> None:
    sandbox = slurm_variant(cgroup_memory=True, preempt="signal", nodes=1)
    allocate = f"srun {sys.executable} -c 'print(len(bytearray(200 << 20)))'"
    small, large = (submit(sandbox, f"--mem={megabytes}M", f"--wrap={allocate}") for megabytes in (100, 400))
    until_told = "trap 'echo USR2; exit 0' USR2; while true; do sleep 0.1; done"
    low = submit(sandbox, "--partition=low", "--cpus-per-task=4", "--signal=B:USR2", f"--wrap=echo on; {until_told}")
    sandbox.wait_for(lambda: output(sandbox, low) == "on\n", PATIENCE_S)
    submit(sandbox, "--partition=high", "--cpus-per-task=4", "--wrap=true")
    sandbox.wait_for(lambda: output(sandbox, low) == "on\nUSR2\n", PATIENCE_S)

    def states(job: str) -> dict[str, str]:
        lines = sandbox.run("sacct", "-n", "-P", "-o", "JobID,State", "-j", job).splitlines()
        return {step.removeprefix(job): said for step, said in (line.split("|") for line in lines)}

    sandbox.wait_for(lambda: states(small).get(".0") == "OUT_OF_MEMORY", PATIENCE_S)
    sandbox.wait_for(lambda: states(large).get(".0") == "COMPLETED", PATIENCE_S)


@in_slurm
def test_a_daemon_that_cannot_start_is_named_with_its_last_words_and_nothing_is_left(tmp_path: Path) -> None:
    broken = tmp_path / "bin" / "slurmctld"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho first words\necho fatal: no luck today\nexit 1\n")
    broken.chmod(0o755)
    folder = tmp_path / "box"
    done = script("start", f"--dir={folder}", "--no-accounting", PATH=f"{broken.parent}:{os.environ['PATH']}")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "slurmctld ended: fatal: no luck today\n"
    assert not folder.exists()
    assert naming(str(folder)) == []
