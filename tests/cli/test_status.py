"""jobs/status.py as a person uses it: what it prints and how it exits. squeue and sacct are replayed."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from cluster_cases import extract_run
from replayed_slurm import (
    ReplayedSlurm,
    account_line,
    ago,
    attempt,
    completed,
    failed,
    make_grid,
    queue_line,
    submit,
    write,
)
from rich.console import Console
from state_cases import a_slurm, a_store_here, printed

from transfergrid.cli import status as command
from transfergrid.cli import status_logs
from transfergrid.cli.status import status
from transfergrid.cli.status_table import clock, printable
from transfergrid.cli.status_view import read_view
from transfergrid.config.status import parse_status
from transfergrid.errors import ConfigError
from transfergrid.paths import StorePaths
from transfergrid.specs import to_dict
from transfergrid.store import durable

CHECKOUT = Path(__file__).resolve().parents[2]
store, slurm = a_store_here, a_slurm


# --------------------------------------------------------------------------------------------------------------- table
def test_a_grid_is_shown_with_states_reasons_epochs_and_counts(
    store: StorePaths, slurm: ReplayedSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    make_grid(store, "a", "b", "c", "d")
    submit(store, ("a",), ("b",), ("c",), ("d",))
    completed(store, "a", metrics={"val_accuracy": 0.9876}, phase_s=3725)
    attempt(store, "b", slurm_task="7_1")
    write(store.run("b").spec, {"settings": {"epochs": 10}})
    lines = [
        {"line": i, "kind": "epoch", "epoch": i, "val/accuracy": value, "time": ago(100 - 10 * i).isoformat()}
        for i, value in ((1, 0.5), (2, 0.8125), (3, 0.7))
    ]
    store.run("b").metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    queue = queue_line("7_1", "RUNNING", used="12:34", left="47:26", node="n17") + queue_line(
        "7_2", "PENDING", "PartitionTimeLimit"
    )
    slurm.answers("squeue", queue + queue_line("7_3", "PENDING", "Priority"))
    assert status(["grid=g"]) == 0
    text = printed(capsys)
    assert "digits model_a probe s0" in text and "98.76%" in text and "1:02:05" in text
    assert "3/10" in text and "81.25%" in text and "12:34" in text and "n17" in text
    assert "never starts" in text and "(PartitionTimeLimit)" in text and "(Priority)" in text
    assert text.endswith("grid g: 1 done, 2 pending, 1 running")


def test_a_solved_probe_counts_strengths_of_its_penalty_and_goes_on_while_its_end_is_the_best(
    store: StorePaths, slurm: ReplayedSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    make_grid(store, "a", "b")
    submit(store, ("a",), ("b",))
    slurm.answers("squeue", queue_line("7_0", "RUNNING") + queue_line("7_1", "RUNNING"))
    for run_id, task, done in (("a", "7_0", 3), ("b", "7_1", 13)):
        attempt(store, run_id, slurm_task=task)
        write(store.run(run_id).spec, {"settings": {"solver": "lbfgs", "cs": [1.0] * 11, "epochs": 30}})
        line = {"line": 1, "kind": "epoch", "epoch": done, "val/accuracy": 0.5, "time": ago(9).isoformat()}
        store.run(run_id).metrics.write_text(json.dumps(line) + "\n")
    assert status(["grid=g"]) == 0
    text = printed(capsys)
    assert " 3/11 C " in text and " 13/13 C " in text and "/30" not in text


def test_a_failure_is_told_with_its_class_its_last_words_and_the_next_step(
    store: StorePaths, slurm: ReplayedSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    make_grid(store, "a", "b")
    submission = submit(store, ("a",), ("b",))
    write(submission.launch / "specs.json", {"cluster": {"mem_gb": 16.0}})
    attempt(store, "a", slurm_task="7_0")
    failed(store, "a", "data", "train.bin is damaged")
    store.run("a").log.write_text("INFO attempt 1 begins\n\x1b[31mERROR\x1b[0m train.bin is damaged\x07\n")
    errors = submission.logs(1)[1]
    errors.parent.mkdir(parents=True)
    errors.write_text("slurmstepd: error: Detected 1 oom-kill event(s) in StepId=7.0\n")
    slurm.answers("squeue", queue_line("7_1", "FAILED", started=ago(900), used="1:00", status=256))
    assert status(["grid=g"]) == 1
    text = printed(capsys)
    assert "data: a: train.bin is damaged INFO attempt 1 begins ERROR train.bin is damaged host_oom: b:" in text
    assert "slurmstepd: error: Detected 1 oom-kill" in text
    assert "python jobs/status.py grid=g retry=host_oom cluster.mem_gb=32)" in text
    assert "next, 1 x data: mend the file" in text


def test_without_slurm_it_says_so_and_shows_what_the_store_knows(
    store: StorePaths, slurm: ReplayedSlurm, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_grid(store, "a", "b")
    submit(store, ("a",), ("b",))
    completed(store, "a")
    slurm.controller_is_down()
    slurm.has_no_accounting()
    assert status(["grid=g"]) == 0
    text = printed(capsys)
    assert "grid g: 1 done, 1 unknown SLURM does not answer (scontrol: slurm_load_jobs error: Unable to contact" in text
    assert "this is what the store knows" in text and "unknown since" in text

    slurm.is_cluster("here")
    slurm.answers("squeue", "", sleep_s=30)
    monkeypatch.setattr("transfergrid.cli.status_view.SLURM_TIMEOUT_S", 0.3)
    began = time.monotonic()
    assert status(["grid=g"]) == 0
    assert time.monotonic() - began < 3
    assert "no answer from SLURM within" in printed(capsys)


def test_a_run_that_the_grid_only_needs_has_a_row_while_it_lives(
    store: StorePaths, slurm: ReplayedSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    make_grid(store, "a")
    submit(store, ("an-extraction",), job_id="6")
    submit(store, ("of-an-earlier-launch",), job_id="5")
    slurm.answers("squeue", queue_line("6", "RUNNING"))
    slurm.answers("sacct", account_line("5", "TIMEOUT"))
    assert status(["grid=g"]) == 0
    text = printed(capsys)
    assert "an-extraction" in text and "of-an-earlier-launch" not in text
    assert text.endswith("grid g: 1 not submitted, 1 running")


def test_extractions_of_one_model_are_told_apart_by_their_weights(
    store: StorePaths, slurm: ReplayedSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    make_grid(store, "a")
    random = extract_run()
    file = replace(random.backbones[0].weights, label="file-0123456789ab", identity="file:0123456789ab")
    runs = [random, replace(random, backbones=(replace(random.backbones[0], weights=file),))]
    for run in runs:
        durable.write_json(store.run(run.run_id).spec, to_dict(run))
    submit(store, *((run.run_id,) for run in runs), job_id="6")
    slurm.answers("squeue", queue_line("6_0", "RUNNING") + queue_line("6_1", "RUNNING"))
    assert status(["grid=g"]) == 0
    text = printed(capsys)
    assert "digits resnet18 extract/random " in text and "digits resnet18 extract/file-0123456789ab " in text


def test_a_thousand_runs_take_two_commands_and_forty_lines(store: StorePaths, slurm: ReplayedSlurm) -> None:
    run_ids = [f"run-{i}" for i in range(1000)]
    make_grid(store, *run_ids)
    submit(store, *((run_id,) for run_id in run_ids))
    queue = []
    for i, run_id in enumerate(run_ids):
        if i % 10 < 6:
            completed(store, run_id, metrics={"val_accuracy": 0.9})
        elif i % 10 == 6:
            attempt(store, run_id, slurm_task=f"7_{i}")
            queue.append(queue_line(f"7_{i}", "FAILED", started=ago(900), used="1:00", status=256))
        else:
            queue.append(queue_line(f"7_{i}", "PENDING" if i % 10 < 9 else "RUNNING", "Priority"))
    slurm.answers("squeue", "".join(queue))
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, CHECKOUT / "jobs" / "status.py", "grid=g"],
        capture_output=True,
        text=True,
        cwd=store.root.parent,
    )
    took_s = time.monotonic() - began
    assert done.returncode == 1 and done.stderr == ""
    assert done.stdout.rstrip().endswith("grid g: 600 done, 200 pending, 100 running, 100 lost")
    assert "600 x probe on digits" in " ".join(done.stdout.split())
    assert len(done.stdout.splitlines()) < 60
    assert slurm.asked() == ["squeue", "sacct"]
    assert took_s < 4, took_s  # two seconds on a machine that does nothing else


def test_it_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom transfergrid.cli import status, status_actions, status_logs, status_table\n"
        "print(sorted({'torch', 'torchvision', 'pandas', 'sklearn', 'timm', 'hydra', 'omegaconf'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---------------------------------------------------------------------------------------------------------------- watch
def test_a_watched_screen_holds_the_reasons_and_the_summary_in_80_columns_and_24_lines(
    store: StorePaths, slurm: ReplayedSlurm
) -> None:
    names = [f"timm_a_backbone_with_a_name_that_takes_two_lines_{i}" for i in range(30)]
    make_grid(store, *names)
    submit(store, *((name,) for name in names))
    queue = "".join(queue_line(f"7_{i}", "PENDING", "PartitionTimeLimit") for i in range(30))
    slurm.answers("squeue", queue)
    console = Console(width=80, height=24, force_terminal=True, file=io.StringIO())
    lines = console.render_lines(command.screenful(console, read_view(parse_status(["grid=g"]))))
    shown = ["".join(segment.text for segment in line).rstrip() for line in lines]
    assert len(shown) < 24 and shown[-1] == "grid g: 30 pending"
    assert shown[-2].startswith("finish job: not submitted: ") and len(shown[-2]) <= 80
    assert shown[-3].startswith("pending: ") and len(shown[-3]) <= 80
    assert sum("pending, never starts" in line for line in shown) >= 3


def test_watching_in_a_log_tells_each_change_and_ends_when_nothing_lives(
    store: StorePaths, slurm: ReplayedSlurm, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "WATCH_S", 0.1)
    make_grid(store, "a")
    submit(store, ("a",))
    slurm.answers("squeue", queue_line("7", "RUNNING"))
    timer = threading.Timer(0.4, lambda: completed(store, "a"))
    timer.start()
    assert status(["grid=g", "watch=true"]) == 0
    timer.join()
    text = printed(capsys)
    assert text.startswith("grid g: 1 running done a") and text.endswith(
        "grid g: 1 done the table: python jobs/report.py grid=g"
    )


# ------------------------------------------------------------------------------------------------------------------ run
def test_one_run_is_shown_with_its_attempts_jobs_and_logs(
    store: StorePaths, slurm: ReplayedSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    make_grid(store, "digits-a-probe-s0-111111111111", "digits-b-probe-s0-222222222222")
    run_id = "digits-a-probe-s0-111111111111"
    submit(store, (run_id,), job_id="6", seconds_ago=9000)
    submission = submit(store, (run_id,))
    attempt(store, run_id, 1, slurm_task="6", ended=ago(8000).isoformat(), seconds_ago=8900)
    attempt(store, run_id, 2, slurm_restart_count=1)
    store.run(run_id).log.write_text("attempt 2 begins\nepoch 3 of 10\n")
    slurm.answers("squeue", queue_line("7", "RUNNING", restarts=1, node="n1", used="5:00"))
    for name in ("111111111111", "digits-a", "a-probe", run_id):
        assert status([f"run={name}"]) == 0
        text = printed(capsys)
        assert f"run {run_id}" in text and "job 7 restart 1 on n1" in text and "attempt 1: job 6 on n1" in text
        for path in (submission.logs(0)[1], store.run(run_id).log):
            assert str(path.relative_to(store.root.parent)) in text
        assert "last lines attempt 2 begins epoch 3 of 10" in text
    assert status(["grid=g"]) == 0
    assert " n1 2 111111111111 " in printed(capsys), "the end of its id, which run= takes, stands in the table"
    with pytest.raises(ConfigError, match="run=probe fits 2 runs"):
        status(["grid=g", "run=probe"])
    with pytest.raises(ConfigError, match="fits none of 2 runs"):
        status(["grid=g", "run=vgg"])


def test_a_run_that_has_not_begun_is_found_by_the_beginning_of_the_id_that_its_grid_shows(
    store: StorePaths, capsys: pytest.CaptureFixture[str]
) -> None:
    make_grid(store, "digits-a-probe-s0-111111111111", "digits-b-probe-s0-222222222222")
    for part in ("2222", "digits-b"):
        assert status([f"run={part}"]) == 0
        assert "run digits-b-probe-s0-222222222222 what digits model_digits-b-" in (text := printed(capsys))
        assert "state not started" in text
    with durable.lock(store.launching("g"), wait=False):
        assert status(["run=2222"]) == 0 and "state waiting" in printed(capsys)


def test_logs_are_followed_until_the_run_ends(
    store: StorePaths, slurm: ReplayedSlurm, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_logs, "FOLLOW_POLL_S", 0.05)
    monkeypatch.setattr(status_logs, "STATE_POLL_S", 0.1)
    make_grid(store, "a")
    submission = submit(store, ("a",))
    attempt(store, "a")
    slurm.answers("squeue", queue_line("7", "RUNNING"))
    store.run("a").log.write_text("first\n")

    def go_on() -> None:
        time.sleep(0.3)
        with open(store.run("a").log, "a") as file:
            file.write("second\nhalf a li")
        time.sleep(0.3)
        with open(store.run("a").log, "a") as file:
            file.write("ne\n")
        submission.logs(0)[0].parent.mkdir(parents=True)
        submission.logs(0)[0].write_text("second\nof slurm\n")
        completed(store, "a")

    thread = threading.Thread(target=go_on)
    thread.start()
    assert status(["run=a", "logs=true"]) == 0
    thread.join()
    lines = capsys.readouterr().out.splitlines()
    log = f"==> {store.run('a').log.relative_to(store.root.parent)} <=="
    assert lines[:3] == [log, "first", "second"] and lines.count("second") == 1
    assert "of slurm" in lines and "half a line" in lines and lines[-1] == "a: done"


# ------------------------------------------------------------------------------------------------------------ arguments
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["watch"], "'watch' is not of the form key=value"),
        (["epochs=3"], "unknown key 'epochs'"),
        (["grid=g", "grid=h"], "given twice"),
        (["grid="], "'grid=' is empty"),
        (["grid=../x"], "may hold only"),
        (["grid=nowhere"], "never launched in results; launched there: none"),
        (["watch=yes"], "watch=yes is not true or false"),
        (["logs=true"], "logs=true follows one run"),
        (["cancel=true", "retry=failed"], "one at a time"),
        (["retry=everything"], "is not one of failed, oom, host_oom"),
        (["cluster.mem_gb=3"], "it goes with retry="),
        (["device=cpu", "retry=failed"], "device= cannot be changed for a retry; cluster.* can"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(store: StorePaths, arguments: list[str], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        status(arguments)
    assert told in str(caught.value) and len(str(caught.value)) <= 200 and "\n" not in str(caught.value)
    assert not store.root.exists()


def test_arguments_are_read_as_they_stand() -> None:
    asked = parse_status(["run=abc", "retry=oom", "cluster.gpu_type=a100", "cluster.mem_gb=32", "store.dir=here"])
    assert (asked.grid, asked.run, asked.retry) == (None, "abc", ("host_oom", "cuda_oom"))
    assert asked.overrides == ("cluster.gpu_type=a100", "cluster.mem_gb=32") and asked.store.root == Path("here")
    assert parse_status([]).grid is None


def test_times_and_text_are_fit_to_print() -> None:
    assert [clock(s) for s in (None, 5, 65, 3725, 90061)] == ["", "0:05", "1:05", "1:02:05", "1-01:01:01"]
    assert printable("a\x1b[31mred\x1b[0m\x07\r[b]\n") == "ared[b] "
