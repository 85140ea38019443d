"""python benchmarks/tracking.py [minutes per mode, default 8] [pixels, default 96: a step of some 40 ms]

What following a run in W&B costs each training step, offline and online (a stand-in server on loopback, in a process of
its own), at the default cadence. Two launches of the same training differ by more than the cost, so it is measured
inside one: after every 50 steps all processes of W&B are stopped or continued (SIGSTOP, SIGCONT; off on on off ...),
and neighbouring 50 steps are compared. What gathers while they are stopped is done while they run, so half of the
difference is what a step costs on average. Beside it stands the CPU time that W&B took per step.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
STEPS = 50  # training writes its lines once per so many steps
SKIPPED_S = 20.0  # W&B is loaded once, beside the first steps
GRID = [
    *("grid=quickstart", "grid.models=[baseline_cnn]", "grid.phases=[scratch]", "grid.seeds=[0]", "grid.variants={}"),
    *("phase.scratch.batch_size=4", "phase.scratch.epochs=1000"),
    *("cluster=local", "cluster.num_threads=1", "device=cpu"),
]


@dataclass
class Measured:
    """Seconds per step of neighbouring stretches of training, and the CPU seconds of W&B over all steps."""

    stopped_s: list[float] = field(default_factory=list)
    running_s: list[float] = field(default_factory=list)
    cpu_s: float = 0.0
    steps: int = 0


def measure(mode: str, folder: Path, url: str, *, duration_s: float, image_size_px: int) -> Measured:
    arguments = [*GRID, f"dataset.image_size_px={image_size_px}", f"tracking={mode}"]
    arguments += [f"store.dir={folder / 'store'}", f"cache.dir={folder / 'cache'}"]
    environment = os.environ | {"WANDB_BASE_URL": url, "WANDB_API_KEY": "f" * 40, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "jobs" / "launch_grid.py"), *arguments]
    launch = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    found = Measured()
    mirror: list[int] = []
    try:
        began = time.monotonic()
        stretches: list[tuple[bool, float]] = []
        previous: tuple[datetime, int, int] | None = None
        is_running, turn, cpu_before_s = True, 0, 0.0
        for epoch, step, now in ends_of_stretches(folder / "store", launch):
            if time.monotonic() - began > SKIPPED_S + duration_s:
                break
            if previous is not None and mirror and (previous[1], previous[2] + STEPS) == (epoch, step):
                stretches.append((is_running, (now - previous[0]).total_seconds() / STEPS))
            elif len(stretches) % 2:
                stretches.pop()  # an evaluation lies between it and its neighbour
            previous = (now, epoch, step)
            if time.monotonic() - began < SKIPPED_S:
                continue
            if not mirror:
                mirror = processes_of_wandb(launch.pid)
                cpu_before_s = sum(map(cpu_s, mirror))
            if len(stretches) % 2 == 0:
                turn += 1
                wanted = turn % 2 == 1
            else:
                wanted = not is_running
            if wanted is not is_running:
                signal_all(mirror, signal.SIGCONT if wanted else signal.SIGSTOP)
                is_running = wanted
            found.steps += STEPS
        for first, second in zip(stretches[::2], stretches[1::2], strict=False):
            (_, stopped), (_, running) = sorted((first, second))
            found.stopped_s.append(stopped)
            found.running_s.append(running)
        found.cpu_s = sum(map(cpu_s, mirror)) - cpu_before_s
    finally:
        signal_all(mirror, signal.SIGCONT)
        launch.terminate()
        launch.wait()
    return found


def ends_of_stretches(store: Path, launch: subprocess.Popen[bytes]) -> Iterator[tuple[int, int, datetime]]:
    """(epoch, step, when written) of the last line, each time that 50 more were written."""
    while not (files := list(store.glob("runs/*/metrics.jsonl"))):
        assert launch.poll() is None, "the launch has ended"
        time.sleep(0.05)
    size = 0
    while launch.poll() is None:
        time.sleep(0.005)
        if (now := files[0].stat().st_size) == size:
            continue
        size = now
        with open(files[0], "rb") as file:
            file.seek(max(0, size - 4096))
            content = file.read(4096)
        if not content.endswith(b"\n"):
            continue  # its buffer was full before the 50 steps were over
        last = json.loads(content[:-1].rpartition(b"\n")[2])
        if last["kind"] == "step":
            yield last["epoch"], last["step"], datetime.fromisoformat(last["time"])


def processes_of_wandb(launch_pid: int) -> list[int]:
    """The mirror, and what it has started."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry)] = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
    ours = {
        pid
        for pid, parent in parents.items()
        if parent == launch_pid and b"transfergrid.tracking.mirror" in Path(f"/proc/{pid}/cmdline").read_bytes()
    }
    assert ours, "no mirror is running"
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return sorted(ours)


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def signal_all(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def told(mode: str, found: Measured) -> str:
    running_s, stopped_s = np.array(found.running_s), np.array(found.stopped_s)
    step_s, per_step_s = statistics.median(found.stopped_s), found.cpu_s / found.steps
    # The half, for the work of both kinds of stretch is done in one. Of totals, because W&B works in bursts: a line is
    # sent once a checkpoint covers it. The median tells what the steps between the bursts feel.
    drawn = np.random.default_rng(0).integers(len(running_s), size=(5000, len(running_s)))
    totals = 50 * (running_s[drawn].sum(axis=1) / stopped_s[drawn].sum(axis=1) - 1)
    total = 50 * (running_s.sum() / stopped_s.sum() - 1)
    low, high = np.quantile(totals, [0.025, 0.975])
    median = 50 * (np.median(running_s / stopped_s) - 1)
    return (
        f"{mode}: {total:+.2f} % (95 % interval {low:+.2f} to {high:+.2f} %; median {median:+.2f} %) of a step of "
        f"{1000 * step_s:.1f} ms, over {len(running_s)} pairs of {STEPS} steps; "
        f"CPU time of W&B {1e6 * per_step_s:.0f} us a step, {100 * per_step_s / step_s:.1f} % of one core"
    )


def main() -> None:
    minutes, image_size_px = (sys.argv[1:] + ["8", "96"][len(sys.argv) - 1 :])[:2]
    server = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "wandb_server.py")], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    try:
        url = server.stdout.readline().strip()
        for mode in ("offline", "online"):
            with tempfile.TemporaryDirectory() as name:
                found = measure(mode, Path(name), url, duration_s=60 * float(minutes), image_size_px=int(image_size_px))
                print(told(mode, found), flush=True)
    finally:
        server.terminate()
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
