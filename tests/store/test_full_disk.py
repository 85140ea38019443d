"""Real file systems without room: one line of class disk_full, nothing half-written, and on it goes with room again."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import small_runs
from cluster_cases import names_in, planned, runtime_in, scratch_run
from replayed_slurm import CLUSTER, ReplayedSlurm

from transfergrid.cli.console import run_script
from transfergrid.cluster import adopt as adoption
from transfergrid.cluster.groups import make_groups
from transfergrid.cluster.ledger import read_ledger
from transfergrid.cluster.snapshot import take_snapshot_of_code
from transfergrid.cluster.staging import staged
from transfergrid.cluster.submit import Launch, Sender
from transfergrid.errors import StoreFull, classify, one_line
from transfergrid.paths import StorePaths, store_paths
from transfergrid.planning import job
from transfergrid.resources import ClusterSettings, Resources
from transfergrid.store import durable, records
from transfergrid.store.metrics_log import MetricsLog

SLURM = ClusterSettings(name="slurm", kind="slurm")


@dataclass(frozen=True)
class Disk:
    folder: Path

    def fill(self, *, left_kb: int) -> None:
        with open(self.folder / "ballast", "wb") as file:
            free = os.statvfs(self.folder).f_bavail * 4096
            os.posix_fallocate(file.fileno(), 0, max(1, free - left_kb * 1024))

    def free(self) -> None:
        (self.folder / "ballast").unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """16 MB of memory as a file system of its own."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    yield Disk(folder)
    subprocess.run(["umount", "-l", folder], check=True)


def test_copying_the_code_ends_with_one_short_line(disk: Disk) -> None:
    disk.fill(left_kb=200)
    with pytest.raises(StoreFull) as raised:
        take_snapshot_of_code(disk.folder / "launch")
    assert "no space left for" in str(raised.value) and len(str(raised.value)) < 300
    disk.free()
    durable_code = take_snapshot_of_code(disk.folder / "again")
    assert (durable_code / "transfergrid" / "planning/job.py").is_file()


def test_a_snapshot_has_the_files_of_the_package_and_what_its_links_lead_to(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub" / "__pycache__").mkdir(parents=True)
    (source / "sub" / "a.py").write_text("a")
    (source / "link").symlink_to(source / "sub")
    durable.copy_tree(source, tmp_path / "target", ignore=lambda folder, names: {"__pycache__"} & set(names))
    assert sorted(p.relative_to(tmp_path / "target").as_posix() for p in (tmp_path / "target").rglob("*")) == [
        *("link", "link/a.py", "sub", "sub/a.py"),
    ]
    assert not (tmp_path / "target" / "link").is_symlink()
    with pytest.raises(FileNotFoundError):
        durable.copy_tree(tmp_path / "nothing", tmp_path / "target")


def test_what_a_node_has_no_room_to_stage_is_read_from_where_it_lies(
    disk: Disk, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(40):
        (images / f"{number}.png").write_bytes(b"x" * 20_000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("U", (), {"free": 10**9})())  # another job fills it
    disk.fill(left_kb=100)
    runtime = runtime_in(tmp_path)
    runtime = type(runtime)(
        **{f: getattr(runtime, f) for f in runtime.__slots__} | {"data_folders": {"d": str(images)}}
    )
    with staged(runtime, ["d"], str(disk.folder)) as on_node:
        assert on_node.data_folders["d"] == str(images)
    [message] = [record.getMessage() for record in caplog.records if "not staged" in record.getMessage()]
    assert "no space left" in message and len(message) < 400
    assert names_in(disk.folder) == ["ballast"]


@pytest.mark.parametrize("left_kb", [0, 4, 8, 12, 16, 20, 24])
def test_a_submission_without_room_is_withdrawn_and_sent_once_there_is(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left_kb: int
) -> None:
    slurm = ReplayedSlurm(tmp_path / "bin", monkeypatch)
    slurm.answers("srun", "")
    slurm.takes_jobs(41)
    monkeypatch.setattr(adoption, "RETRY_S", 0.0)
    store = StorePaths(disk.folder / "results")
    folder = store.launches / "20261120T120000-0a1b2c3d"
    runs = [planned(scratch_run(seed)) for seed in range(2)]
    [group] = make_groups(runs, SLURM, grid="g", launch="l1", max_array_size=1001)

    def sender() -> Sender:
        launch = Launch(
            grid="g",
            folder=folder,
            payload=folder / "specs.json",
            source=folder / "code" / "src",
            settings=SLURM,
            finish=Resources(),
            cluster=CLUSTER,
        )
        return Sender(launch, read_ledger(store), {p.run.run_id: i for i, p in enumerate(runs)})

    durable.make_folder(folder)
    disk.fill(left_kb=left_kb)
    try:
        sender().send(group)
    except StoreFull as error:
        assert "no space left for" in str(error) and len(str(error)) < 400
        sent_before = len([call for call in slurm.calls if call.startswith("sbatch")])
        assert [call for call in slurm.calls if call.startswith("scancel")] == ["scancel 41"] * sent_before
        assert all(s.tasks == () for s in read_ledger(store).submissions)
        disk.free()
        slurm.answers("squeue", "")
        sender().send(group)
        assert len([call for call in slurm.calls if call.startswith("sbatch")]) == sent_before + 1
    else:
        assert left_kb >= 16
    [sent] = [s for s in read_ledger(store).submissions if s.tasks]
    assert sent.job_id == "41"


def test_a_run_says_disk_full_whatever_finds_no_room_and_completes_afterwards(
    disk: Disk, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """From no room for the claim up to none for the weights."""
    asked = small_runs.request(disk.folder, "phase=scratch", "model=lenet5", cache=tmp_path / "cache")
    run = small_runs.final_run(asked)
    paths = store_paths(asked.runtime).run(run.run_id)
    told = set()
    for left_kb in (0, 8, 20, 36, 120):
        disk.fill(left_kb=left_kb)
        try:
            outcome = job.carry_out(run, asked.runtime)
        except Exception as error:  # not even the failure could be recorded
            assert classify(error) == "disk_full", f"{left_kb} KB: {one_line(error)}"
            told.add("raised")
        else:
            record = records.read_record(paths)
            assert outcome == "failed" and record is not None, left_kb
            assert record.failure_class == "disk_full" and "free some space" in (record.remedy or "")
            told.add("recorded")
        disk.free()
        assert not [p for p in paths.root.rglob("*") if p.suffix == ".tmp"], left_kb
        assert not paths.log.exists() or "Traceback" not in paths.log.read_text()
    assert told == {"raised", "recorded"}
    assert "Traceback" not in "".join(capfd.readouterr())
    assert job.carry_out(run, asked.runtime) == "completed"


def test_predictions_and_metrics_without_room_say_so_and_leave_what_was(disk: Disk) -> None:
    paths = StorePaths(disk.folder / "results").run("a")
    durable.make_folder(paths.root)
    labels_N = np.zeros(4000, dtype=np.int64)
    sets = {"test": records.make_predictions(labels_N, labels_N, np.zeros((4000, 90), dtype=np.float32))}
    log = MetricsLog(paths.metrics, lines_kept=0)
    log.write("epoch", epoch=1)
    log.flush()
    disk.fill(left_kb=300)
    with pytest.raises(StoreFull, match="no space left for .*predictions.npz"):
        records.write_predictions(paths, sets)
    disk.free()
    disk.fill(left_kb=0)
    with pytest.raises(StoreFull, match=r"no space left for .*metrics.jsonl"):
        for number in range(2, 400):
            log.write("step", epoch=1, step=number, loss=0.123456789)
            log.flush()
    with pytest.raises(StoreFull):
        log.close()
    disk.free()
    assert names_in(paths.root) == ["metrics.jsonl"]
    records.write_predictions(paths, sets)
    assert len(records.read_predictions(paths)["test"].index_N) == 4000


def test_a_log_without_room_loses_lines_and_nothing_else(disk: Disk, capfd: pytest.CaptureFixture[str]) -> None:
    handler = durable.LogFile(disk.folder / "log.txt")
    log = logging.Logger("test")
    log.addHandler(handler)
    disk.fill(left_kb=0)
    for _ in range(200):
        log.warning("x" * 100)
    handler.close()
    disk.free()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("number", "said"),
    [(28, "No space left on device"), (122, "Disk quota exceeded"), (27, "File too large"), (37, "No locks available")],
)
def test_whatever_command_meets_it_anywhere_says_one_line(
    number: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["report.py"])

    def meets(arguments: object) -> int:
        raise OSError(number, os.strerror(number), "/store/reports/figure.svg")

    assert run_script(meets) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: OSError: ") and said in line and "figure.svg" in line
    assert ("free space" in line) is (number != 37) or "ulimit" in line
