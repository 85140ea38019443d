"""The mirror with real W&B, offline: what it wrote is read back from its own files."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from transfergrid import tracking
from transfergrid.errors import ConfigError, DataError
from transfergrid.paths import RunPaths, StorePaths
from transfergrid.specs import (
    BackboneSpec,
    Configuration,
    DatasetSpec,
    EvaluateSettings,
    PreprocessSpec,
    RunSpec,
    Runtime,
    WeightsSpec,
)
from transfergrid.store import attempts, checkpoints, durable, provenance, records
from transfergrid.store.metrics_log import MetricsLog, read_metrics
from transfergrid.tracking import description, mirror, offline
from transfergrid.tracking.run_mirror import NOT_FINISHED

GOLDEN = Path(__file__).parent / "golden" / "run-golden-resnet18+googlenet.wandb"
PATIENCE_S = 60


# ---------------------------------------------------------------------------------------------------- building blocks
def backbone(name: str) -> BackboneSpec:
    preprocess = PreprocessSpec(
        mode="direct", resize_px=8, crop_px=8, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
    )
    return BackboneSpec(
        name=name, tap="avgpool", weights=WeightsSpec(label="random", identity="r"), preprocess=preprocess
    )


def configuration(seed: int, *, variant: str = "") -> Configuration:
    spec = RunSpec(
        phase="evaluate",
        model="resnet18+googlenet",
        backbones=(backbone("resnet18"), backbone("googlenet")),
        dataset=DatasetSpec(name="digits", kind="digits", fingerprint="x", num_classes=10),
        extract=None,
        settings=EvaluateSettings(preprocess=None, source="own_head", split="test", precision="fp32"),
        protocol="fair",
        seed=seed,
        val_seed=0,
    )
    return Configuration(grid="quickstart", variant=variant, run=spec)


def runtime_of(store: StorePaths, **changes: Any) -> Runtime:
    return replace(Runtime(store_dir=str(store.root), cache_dir="c", data_dir="d", weights_dir="w"), **changes)


def write_lines(paths: RunPaths, *, kept: int, upto: int) -> None:
    """Step lines and, at every third, an epoch line, with values that only their number and this moment decide."""
    with MetricsLog(paths.metrics, lines_kept=kept) as log:
        for n in range(kept + 1, upto + 1):
            if n % 3:
                log.write(
                    "step", epoch=1 + n // 3, step=n, **{"train/loss": 0.1 * n + 1e-9, "images_per_s": 1000.0 / n}
                )
            else:
                log.write("epoch", epoch=n // 3, step=n, **{"val/accuracy": n / 7, "test/accuracy": None, "note": "ä"})


def checkpoint(attempt: attempts.Attempt, *, lines: int) -> None:
    checkpoints.write_checkpoint(attempt, b"state", step=lines, lines=lines)


def finish(paths: RunPaths, spec: RunSpec, attempt: int, **changes: Any) -> None:
    record = records.RunRecord(
        run_id=spec.run_id, spec=spec, status="completed", metrics={"test_accuracy": 0.75}, phase_s=2.5, attempt=attempt
    )
    records.write_record(paths, replace(record, **changes))


def fragments_of(store: StorePaths, run_id: str) -> list[offline.OfflineRun]:
    return [offline.read_run(path) for path in offline.fragment_files(store, run_id)]


def lines_sent(store: StorePaths, run_id: str) -> list[list[int]]:
    """Line numbers as they stand in each fragment."""
    return [[row["line"] for row in fragment.rows] for fragment in fragments_of(store, run_id)]


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def start(store: StorePaths, *configurations: Configuration) -> subprocess.Popen[bytes]:
    process = tracking.start_mirror(runtime_of(store), configurations)
    assert process is not None
    return process


# ----------------------------------------------------------------------------------------------- one launch, one mirror
@dataclass(frozen=True)
class Launch:
    store: StorePaths
    completed: RunSpec  # 7 lines, no checkpoint, record
    failed: RunSpec  # 7 lines, checkpoint at 4, failed record
    lost: RunSpec  # 7 lines, checkpoint at 5, lock released without a record
    idle: RunSpec  # never began


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    """Four runs followed by one mirror, all of them while it was at work."""
    store = StorePaths(tmp_path_factory.mktemp("launch") / "results")
    configurations = [configuration(seed, variant="" if seed else "small_batch") for seed in range(4)]
    completed, failed, lost, idle = (c.run for c in configurations)
    process = start(store, *configurations)
    for spec, covered in ((completed, 0), (failed, 4), (lost, 5)):
        paths = store.run(spec.run_id)
        with attempts.begin_attempt(paths, spec) as attempt:
            write_lines(paths, kept=0, upto=7)
            if covered:
                checkpoint(attempt, lines=covered)
            if spec is completed:
                finish(paths, spec, attempt.number, epochs=2)
            if spec is failed:
                finish(paths, spec, attempt.number, status="failed", failure_class="cuda_oom", metrics={})
    assert tracking.wait_for_mirror(process, PATIENCE_S)
    yield Launch(store, completed, failed, lost, idle)


def test_rows_of_a_completed_run_equal_its_metrics_file(launch: Launch) -> None:
    run_id = launch.completed.run_id
    rows = offline.rows_of_run(launch.store, run_id)
    assert rows == read_metrics(launch.store.run(run_id).metrics)
    assert lines_sent(launch.store, run_id) == [[1, 2, 3, 4, 5, 6, 7]]
    assert rows[0]["train/loss"] == 0.1 + 1e-9 and rows[5]["val/accuracy"] == 6 / 7


def test_a_completed_run_is_described_in_the_words_of_the_grid(launch: Launch) -> None:
    (run,) = fragments_of(launch.store, launch.completed.run_id)
    assert (run.id, run.name) == (launch.completed.run_id, "digits-resnet18+googlenet-evaluate-s0")
    assert (run.project, run.group, run.job_type, run.exit_code) == ("transfergrid", "quickstart", "evaluate", 0)
    assert run.tags == ("grid:quickstart", "resnet18+googlenet", "digits", "evaluate", "small_batch")
    expected = {"grid": "quickstart", "model": "resnet18+googlenet", "dataset": "digits", "phase": "evaluate"}
    expected |= {"variant": "small_batch", "weights": "random", "protocol": "fair", "precision": "fp32"}
    assert {name: run.config[name] for name in expected} == expected
    assert run.config["seed"] == 0 and run.config["split"] == "test"
    assert run.config["git_commit"] == provenance.git_state()[0]
    told = {name: run.summary[name] for name in ("test_accuracy", "status", "attempt", "phase_s", "epochs")}
    assert told == {"test_accuracy": 0.75, "status": "completed", "attempt": 1, "phase_s": 2.5, "epochs": 2}


def test_of_a_failed_run_only_the_lines_its_checkpoint_covers_are_sent(launch: Launch) -> None:
    (run,) = fragments_of(launch.store, launch.failed.run_id)
    assert run.rows == read_metrics(launch.store.run(launch.failed.run_id).metrics)[:4]
    assert (run.exit_code, run.summary["status"], run.summary["failure_class"]) == (1, "failed", "cuda_oom")


def test_a_run_that_ended_without_a_record_is_not_finished_in_wandb_either(launch: Launch) -> None:
    (run,) = fragments_of(launch.store, launch.lost.run_id)
    assert [row["line"] for row in run.rows] == [1, 2, 3, 4, 5]
    assert run.exit_code == NOT_FINISHED and "status" not in run.summary


def test_a_run_that_never_began_leaves_nothing(launch: Launch) -> None:
    assert offline.fragment_files(launch.store, launch.idle.run_id) == []


def test_the_mirror_writes_into_its_own_folder_only(launch: Launch) -> None:
    assert sorted(path.name for path in launch.store.root.iterdir()) == ["runs", "wandb"]
    names = {path.name for path in launch.store.run(launch.completed.run_id).root.iterdir()}
    assert names == {".lock", "attempts", "metrics.jsonl", "record.json", "spec.json"}
    assert list((launch.store.wandb / "logs").iterdir()) == []  # nothing to complain of


def test_a_second_launch_sends_what_is_new_and_repeats_nothing(launch: Launch) -> None:
    store = launch.store
    before = offline.fragment_files(store, launch.completed.run_id)
    for spec, kept in ((launch.failed, 4), (launch.lost, 5)):  # relaunched: truncated to the checkpoint, then on to 9
        paths = store.run(spec.run_id)
        with attempts.begin_attempt(paths, spec) as attempt:
            write_lines(paths, kept=kept, upto=9)
            finish(paths, spec, attempt.number)
    specs = (launch.completed, launch.failed, launch.lost)
    arguments = [f"--run-id={spec.run_id}" for spec in specs]
    command = [sys.executable, "-m", "transfergrid.tracking.mirror", "--grid=quickstart", "--project=transfergrid"]
    subprocess.run([*command, f"--store={store.root}", *arguments], check=True, timeout=PATIENCE_S)  # by hand
    assert offline.fragment_files(store, launch.completed.run_id) == before
    assert lines_sent(store, launch.failed.run_id) == [[1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert lines_sent(store, launch.lost.run_id) == [[1, 2, 3, 4, 5], [6, 7, 8, 9]]
    for spec in specs:
        assert offline.rows_of_run(store, spec.run_id) == read_metrics(store.run(spec.run_id).metrics)
        assert fragments_of(store, spec.run_id)[-1].exit_code == 0


# ------------------------------------------------------------------------------------------------------ interruptions
def wandb_process_of(mirror_pid: int) -> int:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if re.search(rf"\(wandb-core\) \w {mirror_pid} ", stat.read_text()):
                found.append(int(stat.parent.name))
    (pid,) = found
    return pid


def rows_so_far(store: StorePaths, run_id: str) -> int:
    with contextlib.suppress(FileNotFoundError):  # the mirror may be removing what it had written
        return len(offline.rows_of_run(store, run_id))
    return 0


@pytest.mark.slow
def test_every_line_is_sent_once_though_the_mirror_is_killed_and_the_next_one_loses_wandb_to_a_signal(
    tmp_path: Path,
) -> None:
    store = StorePaths(tmp_path / "results")
    one = configuration(0)
    paths = store.run(one.run.run_id)
    first = start(store, one)
    with attempts.begin_attempt(paths, one.run) as attempt:
        write_lines(paths, kept=0, upto=300)
        checkpoint(attempt, lines=200)
        wait_until(lambda: rows_so_far(store, one.run.run_id) > 0)
        checkpoint(attempt, lines=250)
        time.sleep(mirror.POLL_S)  # the next 50 may be with W&B and not yet on the disk
        first.send_signal(signal.SIGKILL)
        assert not tracking.wait_for_mirror(first, PATIENCE_S)
        second = start(store, one)
        write_lines(paths, kept=300, upto=310)
        checkpoint(attempt, lines=305)
        wait_until(lambda: rows_so_far(store, one.run.run_id) == 305)
        for pid in (second.pid, wandb_process_of(second.pid)):  # as SLURM does: W&B dies of it, the mirror does not
            os.kill(pid, signal.SIGTERM)
        finish(paths, one.run, attempt.number)
    assert tracking.wait_for_mirror(second, PATIENCE_S)
    sent = [line for lines in lines_sent(store, one.run.run_id) for line in lines]
    assert sent == list(range(1, 311))
    assert offline.rows_of_run(store, one.run.run_id) == read_metrics(paths.metrics)
    assert [fragment.exit_code for fragment in fragments_of(store, one.run.run_id)] == [None, None, 0]


def test_a_run_made_again_from_its_beginning_is_mirrored_anew_and_the_mirror_outlives_its_launcher(
    tmp_path: Path,
) -> None:
    store = StorePaths(tmp_path / "results")
    one = configuration(0)
    paths = store.run(one.run.run_id)
    process = start(store, one)
    with attempts.begin_attempt(paths, one.run) as attempt:
        write_lines(paths, kept=0, upto=6)
        checkpoint(attempt, lines=4)
        wait_until(lambda: rows_so_far(store, one.run.run_id) == 4)
        checkpoints.remove_checkpoints(paths)
        write_lines(paths, kept=0, upto=6)
        checkpoint(attempt, lines=3)
        # The launcher is gone (its end of the pipe is closed), training is not: the mirror stays for it.
        assert process.stdin is not None
        process.stdin.close()
        wait_until(lambda: rows_so_far(store, one.run.run_id) == 3)
        assert process.poll() is None
        checkpoint(attempt, lines=6)
    assert tracking.wait_for_mirror(process, PATIENCE_S)
    assert offline.rows_of_run(store, one.run.run_id) == read_metrics(paths.metrics)
    assert fragments_of(store, one.run.run_id)[-1].exit_code == NOT_FINISHED


def test_a_mirror_without_anything_to_send_ends_with_its_launcher_and_never_loads_wandb(tmp_path: Path) -> None:
    store = StorePaths(tmp_path / "results")
    launcher = (
        "import os, pathlib, sys, test_tracking\n"
        "store = test_tracking.StorePaths(pathlib.Path(sys.argv[1]))\n"
        "print(test_tracking.start(store, test_tracking.configuration(0)).pid, flush=True)\n"
        "os._exit(0)"
    )
    command = [sys.executable, "-c", launcher, str(store.root)]
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (here, here.parent / "support")))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    wait_until(lambda: not Path(f"/proc/{int(done.stdout)}").exists())
    assert not (store.wandb / "wandb").exists()


def test_an_unreadable_run_does_not_keep_the_others_from_wandb(tmp_path: Path) -> None:
    store = StorePaths(tmp_path / "results")
    good, bad = configuration(0), configuration(1)
    for one in (good, bad):
        paths = store.run(one.run.run_id)
        with attempts.begin_attempt(paths, one.run) as attempt:
            write_lines(paths, kept=0, upto=2)
            finish(paths, one.run, attempt.number)
    durable.write_bytes(store.run(bad.run.run_id).record, b"{")
    assert not tracking.wait_for_mirror(start(store, bad, good), PATIENCE_S)
    assert lines_sent(store, good.run.run_id) == [[1, 2]]
    (log,) = (store.wandb / "logs").iterdir()
    assert f"{bad.run.run_id}: " in log.read_text() and "is damaged" in log.read_text()


# ----------------------------------------------------------------------------------------------------- without a mirror
def test_disabled_tracking_starts_no_process_and_online_needs_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = StorePaths(tmp_path)
    assert tracking.start_mirror(runtime_of(store, tracking="disabled"), [configuration(0)]) is None
    assert tracking.wait_for_mirror(None, 0)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    online = runtime_of(store, tracking="online")
    with pytest.raises(ConfigError, match="no W&B key for http://127.0.0.1:9 on this machine; run `wandb login`"):
        tracking.validate(online, sends=True)
    tracking.validate(online)  # a launch to SLURM: its jobs send, on other machines
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    tracking.validate(online, sends=True)
    with pytest.raises(ConfigError, match="'a/b' is not a name W&B takes"):
        tracking.validate(runtime_of(store, wandb_project="a/b"))
    assert list(tmp_path.iterdir()) == []


def test_what_looks_like_a_secret_is_redacted_and_tags_are_cut_to_what_wandb_takes() -> None:
    assert description.redacted({"wandb_api_key": "a", "hf_Token": "b", "lr": 0.1, "password2": "c"}) == {
        "wandb_api_key": "redacted",
        "hf_Token": "redacted",
        "lr": 0.1,
        "password2": "redacted",
    }
    told = description.describe(configuration(0).run, grid="g" * 200, variant="digits")
    assert told["tags"][1:] == ["resnet18+googlenet", "digits", "evaluate"]
    assert told["tags"][0].startswith("grid:ggg") and len(told["tags"][0]) == 64 and len(told["group"]) == 128


def test_importing_the_package_loads_neither_wandb_nor_torch() -> None:
    code = "import sys, transfergrid.tracking.mirror; print([n for n in ('wandb', 'torch') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# ---------------------------------------------------------------------------------------------------------- the reader
def test_the_reader_understands_a_file_that_wandb_0_31_wrote() -> None:
    run = offline.read_run(GOLDEN)
    assert (run.id, run.group, run.job_type, run.exit_code) == ("golden-resnet18+googlenet", "quickstart", "probe", 0)
    assert run.tags == ("quickstart", "digits") and run.config["lrs"] == [0.001, 0.01]
    assert [row["line"] for row in run.rows] == list(range(1, 11))
    assert run.rows[2] == {"line": 3, "kind": "step", "epoch": 1, "step": 3, "train/loss": 3 / 7, "nested": {"a": None}}
    assert run.summary["test_accuracy"] == 0.75


def test_a_torn_tail_costs_only_the_rows_in_it_and_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    torn = tmp_path / "torn.wandb"
    content = GOLDEN.read_bytes()
    torn.write_bytes(content[: len(content) // 2])
    run = offline.read_run(torn)
    assert 0 < len(run.rows) < 10 and run.exit_code is None
    assert run.rows == offline.read_run(GOLDEN).rows[: len(run.rows)]
    torn.write_bytes(b"")
    assert offline.read_run(torn).rows == []
    torn.write_bytes(b"not what it says")
    with pytest.raises(DataError, match=r"torn.wandb is not a \.wandb file of a known version"):
        offline.read_run(torn)


def test_rows_that_span_blocks_are_put_together_and_a_damaged_block_is_skipped(tmp_path: Path) -> None:
    """The log as W&B writes it: entries cut at 32 KiB blocks, a block's last 6 bytes or fewer left empty."""
    entries = [bytes([n]) * size for n, size in enumerate((10, 40_000, 5, 25_470, 7, 70_000, 9))]
    content = bytearray(offline.HEADER.pack(b":W&B", 0xBEE1, 0))
    for entry in entries:
        content += _as_log(entry, at=len(content))
    path = tmp_path / "log.wandb"
    path.write_bytes(content)
    assert list(offline._log_entries(path)) == entries
    content[100] ^= 1  # inside the second entry's first part: the rest of block 0 is lost, block 1 goes on
    path.write_bytes(content)
    assert list(offline._log_entries(path)) == [entries[0], *entries[2:]]


def _as_log(entry: bytes, *, at: int) -> bytes:
    out, first = b"", True
    while True:
        room = offline.BLOCK_BYTES - (at + len(out)) % offline.BLOCK_BYTES
        if room < offline.ENTRY.size:
            out += b"\0" * room
            continue
        part, entry = entry[: room - offline.ENTRY.size], entry[room - offline.ENTRY.size :]
        kind = {(True, False): 1, (True, True): 2, (False, True): 3, (False, False): 4}[(first, bool(entry))]
        out += offline.ENTRY.pack(zlib.crc32(bytes([kind]) + part), len(part), kind) + part
        first = False
        if not entry:
            return out
