"""Why a job ended: setup lines, log folders, crashes and limits, as SLURM, bash and srun tell of them."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cluster_cases import as_job, executable, scratch_run
from replayed_slurm import ReplayedSlurm, account_line, make_grid, submit

from transfergrid.cli.status_table import next_steps
from transfergrid.cli.status_view import View
from transfergrid.cluster import local
from transfergrid.cluster.batch_script import prelude
from transfergrid.cluster.causes import cause_of
from transfergrid.cluster.ledger import read_ledger
from transfergrid.cluster.states import take_snapshot
from transfergrid.errors import NEXT_STEP, OF_ULIMIT, Lost, StoreFull, classify, next_step, remedy_of, ulimit_behind
from transfergrid.paths import StorePaths
from transfergrid.resources import ClusterSettings
from transfergrid.store.records import GridEntry

TOKEN = "0123456789ab"
SRUN = "srun: error: n1: task 0: "

ENDINGS = {
    # exit code, signal, log, class, words, remedy
    "log folder": (0, 53, "", "environment", "the node could not open the job's log in /store/x", "store.dir="),
    "setup": (
        *(78, 0, "transfergrid: cluster.setup failed with exit code 3 at: module load cuda\n", "environment"),
        *("cluster.setup failed on the node with exit code 3 at: module load cuda", "mend that line"),
    ),
    "setup, no log": (78, 0, "", "environment", "cluster.setup failed on the node", "mend that line"),
    "segv": (11, 0, SRUN + "Segmentation fault (core dumped)", "environment", "signal SIGSEGV", "cluster.exclude="),
    "bus": (7, 0, SRUN + "Bus error", "environment", "/dev/shm", "cluster.exclude="),
    "ill": (4, 0, SRUN + "Illegal instruction", "environment", "another processor", "cluster.constraint="),
    "abrt": (6, 0, SRUN + "Aborted (core dumped)", "environment", "gave up", "cluster.exclude="),
    "abrt of several": (6, 0, "srun: error: n1: tasks 0-1: Aborted", "environment", "gave up", "cluster.exclude="),
    "abrt for memory": (6, 0, SRUN + "Aborted\nwhat():  std::bad_alloc", "host_oom", "no more memory", "memory"),
    "segv, by a shell": (139, 0, "", "environment", "signal SIGSEGV", "cluster.exclude="),
    "segv, by slurm": (0, 11, "", "environment", "signal SIGSEGV", "cluster.exclude="),
    "fpe": (0, 8, "", "environment", "signal SIGFPE", "cluster.exclude="),
    "ulimit -t": (24, 0, SRUN + "CPU time limit exceeded", "environment", "ulimit -t", "propagate"),
    "ulimit -t, by a shell": (152, 0, "", "environment", "ulimit -t", "propagate"),
    "ulimit -f": (25, 0, SRUN + "File size limit exceeded", "disk_full", "SIGXFSZ", "free space"),
    "disk, by code": (73, 0, "", "disk_full", "no space left", "free space"),
    "disk, by words": (1, 0, "OSError: [Errno 28] No space left on device", "disk_full", "exit code 1", "free space"),
    "quota, by words": (1, 0, "cp: error writing 'x': Disk quota exceeded", "disk_full", "exit code 1", "free space"),
    "machine": (71, 0, "environment: no GPU here\n", "environment", "no GPU here", "mend the machine"),
    "not put back": (75, 0, "", "timeout", "did not put its job back", "launch again: it continues"),
    # these stay as they were: a code that only looks like a signal's number, and what is not known
    "a code of 11": (11, 0, "Traceback", "lost", "exit code 11", "launch again: it continues"),
    "killed": (137, 0, "", "lost", "SIGKILL", "launch again: it continues"),
    "a failure": (1, 0, "", "lost", "exit code 1", "launch again: it continues"),
}


@pytest.mark.parametrize(("code", "number", "log", "failure_class", "words", "step"), ENDINGS.values(), ids=ENDINGS)
def test_an_ending_has_its_class_its_cause_and_what_helps(
    code: int, number: int, log: str, failure_class: str, words: str, step: str
) -> None:
    found = cause_of(code, number, log, folder="/store/x")
    assert found.failure_class == failure_class and words in found.words
    assert step in next_step(found.failure_class, found.remedy)


def test_status_and_record_tell_the_remedy_of_a_cause_that_launching_again_would_not_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = StorePaths(tmp_path / "results")
    slurm = ReplayedSlurm(tmp_path / "bin", monkeypatch)
    make_grid(store, "a")
    submission = submit(store, ("a",))
    slurm.answers("sacct", account_line("7", "FAILED", exit_code="0:53"))
    ledger = read_ledger(store)
    snapshot = take_snapshot(["a"], store, ledger)
    state = snapshot.states["a"]
    assert (state.state, state.failure_class) == ("failed", "environment")
    assert str(submission.folder) in state.reason and state.remedy is not None
    row = GridEntry(
        run_id="a", dataset="digits", model="m", phase="probe", variant="", weights="", protocol="fair", seed=None
    )
    view = View(store=store, grid="g", rows=(row,), specs={}, snapshot=snapshot, ledger=ledger)
    [line] = next_steps(view)
    assert line.startswith(f"next, 1 x environment: {state.remedy} (")
    assert NEXT_STEP["lost"] not in line


@pytest.mark.parametrize(
    ("code", "failure_class", "words", "step"),
    [
        (
            -signal.SIGSEGV,
            "environment",
            "its process ended with signal SIGSEGV: a library crashed",
            "mend the machine",
        ),
        (-signal.SIGILL, "environment", "built for another processor", "mend the machine"),
        (-signal.SIGXCPU, "environment", "used up the CPU time of ulimit -t", "raise that limit"),
        (-signal.SIGXFSZ, "disk_full", "a file larger than ulimit -f", "free space"),
        (
            -signal.SIGKILL,
            "lost",
            "signal SIGKILL; the end of its log.txt may say why",
            "continues from its checkpoint",
        ),
        (local._EXIT["disk full"], "disk_full", "no space left for the record", "free space"),
        (local._EXIT["machine"], "environment", "this machine cannot do it", "mend the machine"),
        (1, "lost", "exit code 1", "continues from its checkpoint"),
    ],
)
def test_a_process_of_a_local_launch_is_told_alike(code: int, failure_class: str, words: str, step: str) -> None:
    loss = local._loss(scratch_run(), code)
    assert loss.failure_class == failure_class and words in str(loss)
    assert step in next_step(loss.failure_class, loss.remedy or None)


def test_a_killed_process_under_a_limit_of_cpu_time_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (4, 4) if which == resource.RLIMIT_CPU else (-1, -1))
    loss = local._loss(scratch_run(), -signal.SIGKILL)
    assert (loss.failure_class, loss.remedy) == ("environment", OF_ULIMIT) and "ulimit -t, which is 4 here" in str(loss)


def test_in_a_pack_on_a_node_a_crash_names_the_setting_that_leaves_the_node_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    as_job(monkeypatch, "7")
    assert "cluster.exclude=" in (local._loss(scratch_run(), -signal.SIGSEGV).remedy or "")


# ------------------------------------------------------------------------------------------------- the batch script
def run_script(folder: Path, *setup: str, run: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """A job's script in bash, with squeue, scontrol and sleep from folder/bin."""
    executable(folder / "bin" / "sleep", f'echo "sleep $*" >> {folder}/calls')
    lines = [
        "#!/bin/bash",
        *prelude(ClusterSettings(setup=setup), Path("src"), "export AFTER=1", token=TOKEN),
        run,
    ]
    script = folder / "job.sh"
    script.write_text("\n".join(lines) + "\n")
    path = f"{folder / 'bin'}:/usr/bin:/bin"
    return subprocess.run(
        ["bash", str(script)],
        env={"PATH": path, "SLURM_JOB_ID": "7", **environ},
        capture_output=True,
        text=True,
        timeout=20,
    )


@pytest.mark.parametrize(
    ("lines", "code", "line"),
    [
        (
            ("true", "conda() { echo 'EnvironmentNotFound' >&2; return 3; }", "conda activate x", "true"),
            3,
            "conda activate x",
        ),
        (("module() { exit 1; }", "module load cuda/12"), 1, "module load cuda/12"),
        (("false | true",), 1, "false | true"),
        (("source /no/such/file",), 1, "source /no/such/file"),
    ],
)
def test_a_setup_line_that_fails_is_named_and_ends_the_job_with_a_code_of_its_own(
    tmp_path: Path, lines: tuple[str, ...], code: int, line: str
) -> None:
    done = run_script(tmp_path, *lines, run="echo RUN")
    assert done.returncode == 78 and "RUN" not in done.stdout
    found = cause_of(done.returncode, 0, done.stderr)
    assert found.words == f"cluster.setup failed on the node with exit code {code} at: {line}"


@pytest.mark.parametrize("code", [0, 1, 7, 71, 73])
def test_other_exit_codes_of_a_run_are_those_of_the_job_and_nobody_is_asked(tmp_path: Path, code: int) -> None:
    done = run_script(tmp_path, "X=1", run=f'[ "$X$AFTER" = 11 ] && bash -c "exit {code}"')
    assert done.returncode == code and not (tmp_path / "calls").exists() and done.stdout + done.stderr == ""


def slurm_of(folder: Path, row: str, requeue: str = "true") -> None:
    executable(folder / "bin" / "squeue", f'echo "squeue $SQUEUE_PARTITION" >> {folder}/calls', f"printf '{row}'")
    executable(folder / "bin" / "scontrol", f'echo "scontrol $*" >> {folder}/calls', requeue)


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines()


ROW = f"RUNNING             1                   digits-cnn-{TOKEN}    \\n"


def test_a_run_that_cannot_ask_slurm_is_put_back_by_its_batch_script(tmp_path: Path) -> None:
    """As from a container. What the site's wrapper prints beside the row, and the user's shell, do not matter."""
    slurm_of(tmp_path, "NOTE: maintenance on Monday\\n" + ROW)
    done = run_script(tmp_path, run="bash -c 'exit 75'", SLURM_RESTART_COUNT="1", SQUEUE_PARTITION="cpu")
    assert calls(tmp_path) == ["squeue ", "scontrol requeue 7", "sleep 60"]
    assert done.returncode == 75 and "job 7 has saved, and its batch script has put it back" in done.stdout


@pytest.mark.parametrize(
    "row",
    [
        ROW.replace("RUNNING", "COMPLETING"),
        ROW.replace(" 1 ", " 2 "),
        ROW.replace(TOKEN, "ba9876543210"),
        ROW.replace("-" + TOKEN, "-" + TOKEN + "x"),
        "",
    ],
    ids=["slurm ends it", "a newer copy", "a stranger's", "another name", "nothing"],
)
def test_a_job_that_is_not_shown_as_this_one_is_not_put_back(tmp_path: Path, row: str) -> None:
    slurm_of(tmp_path, row)
    done = run_script(tmp_path, run="bash -c 'exit 75'", SLURM_RESTART_COUNT="1")
    assert calls(tmp_path) == ["squeue "] and done.returncode == 75


def test_a_refusal_is_asked_for_once_and_silence_for_a_minute(tmp_path: Path) -> None:
    refused = "echo 'Requested operation is presently disabled for job 7' >&2; exit 1"
    slurm_of(tmp_path, ROW, refused)
    done = run_script(tmp_path, run="bash -c 'exit 75'", SLURM_RESTART_COUNT="1")
    assert calls(tmp_path) == ["squeue ", "scontrol requeue 7"] and "presently disabled" in done.stdout
    (tmp_path / "calls").unlink()
    slurm_of(tmp_path, ROW, refused.replace("Requested operation is presently disabled for job 7", "Socket timed out"))
    run_script(tmp_path, run="bash -c 'exit 75'", SLURM_RESTART_COUNT="1")
    assert calls(tmp_path).count("scontrol requeue 7") == 12 == calls(tmp_path).count("sleep 5")
    (tmp_path / "calls").unlink()
    for name in ("squeue", "scontrol"):
        (tmp_path / "bin" / name).unlink()
    assert run_script(tmp_path, run="bash -c 'exit 75'").returncode == 75 and not (tmp_path / "calls").exists()


# ------------------------------------------------------------------------------------------------------------ ulimits
def in_a_limited_process(which: int, limit: int, code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        preexec_fn=lambda: resource.setrlimit(which, (limit, limit)),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


TELL = """
from transfergrid.errors import classify, remedy_of, ulimit_behind
try:
    {provoke}
except BaseException as error:
    print(classify(error), ulimit_behind(error), remedy_of(error) is not None, sep="; ")
"""


@pytest.mark.parametrize(
    ("which", "limit", "provoke", "told"),
    [
        (resource.RLIMIT_AS, 300 << 20, "bytearray(1 << 30)", "environment; ulimit -v is 307200; True"),
        (resource.RLIMIT_NOFILE, 20, "[open('/dev/null') for _ in range(30)]", "environment; ulimit -n is 20; True"),
        (
            resource.RLIMIT_FSIZE,
            1 << 20,
            "open('{f}', 'wb').write(b'x' * (2 << 20))",
            "disk_full; ulimit -f is 1024; True",
        ),
    ],
    ids=["-v", "-n", "-f"],
)
def test_a_limit_of_the_login_shell_is_not_called_a_fault_of_the_code_nor_of_the_memory(
    tmp_path: Path, which: int, limit: int, provoke: str, told: str
) -> None:
    code = TELL.format(provoke=provoke.format(f=tmp_path / "large"))
    assert in_a_limited_process(which, limit, code) == told


def test_without_a_limit_memory_is_memory_and_what_cannot_be_loaded_is_the_machines() -> None:
    assert (classify(MemoryError()), ulimit_behind(MemoryError()), remedy_of(MemoryError())) == ("host_oom", None, None)
    assert classify(ImportError("libcudart.so.12: cannot open shared object file: No such file")) == "environment"
    assert classify(ImportError("cannot import name 'x' from 'transfergrid'")) == "code"
    for number in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EIO, errno.ESTALE):
        assert classify(OSError(number, os.strerror(number))) == "environment"
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        assert classify(OSError(number, os.strerror(number))) == "disk_full"
    assert remedy_of(Lost("x", "environment", OF_ULIMIT)) == OF_ULIMIT and remedy_of(StoreFull("x")) is None
