"""python benchmarks/tracking.py

What following a run in W&B costs each training step: the same small training with tracking=disabled, offline and online
(a stand-in server on loopback, in a process of its own), in turns, and the ratio of the time per step.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from transfergrid import records
from transfergrid.paths import StorePaths

ROOT = Path(__file__).resolve().parents[1]
MODES = ("disabled", "offline", "online")
ROUNDS = 5
GRID = [
    *("grid=quickstart", "grid.models=[baseline_cnn]", "grid.phases=[scratch]", "grid.seeds=[0]", "grid.variants={}"),
    *("phase.scratch.epochs=6", "cluster=local", "cluster.num_threads=1", "device=cpu"),
]


def seconds_per_step(mode: str, folder: Path, url: str) -> float:
    """Of one launch: the record's wall time over the steps that its metrics file counts."""
    store = StorePaths(folder / "store")
    arguments = [*GRID, f"tracking={mode}", f"store.dir={store.root}", f"cache.dir={folder / 'cache'}"]
    environment = os.environ | {"WANDB_BASE_URL": url, "WANDB_API_KEY": "f" * 40, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "jobs" / "launch_grid.py"), *arguments]
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    (path,) = store.runs.iterdir()
    lines = records.read_metrics(store.run(path.name).metrics)
    # From the first epoch's end to the last's: without what a process does once, before its first step.
    epochs = [line for line in lines if line["kind"] == "epoch"]
    return float(epochs[-1]["elapsed_s"] - epochs[0]["elapsed_s"]) / (epochs[-1]["step"] - epochs[0]["step"])


def main() -> None:
    server = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "wandb_server.py")], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    measured: dict[str, list[float]] = {mode: [] for mode in MODES}
    try:
        url = server.stdout.readline().strip()
        for turn in range(ROUNDS + 1):  # the first is not counted: it finds cold files
            for mode in MODES[turn % 3 :] + MODES[: turn % 3]:
                with tempfile.TemporaryDirectory() as name:
                    seconds = seconds_per_step(mode, Path(name), url)
                print(f"round {turn}: {mode} {1000 * seconds:.2f} ms a step", flush=True)
                if turn > 0:
                    measured[mode].append(seconds)
    finally:
        server.terminate()
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; {ROUNDS} rounds")
    for mode in MODES:
        ratios = sorted(s / d for s, d in zip(measured[mode], measured["disabled"], strict=True))
        print(f"{mode:8} {1000 * statistics.median(measured[mode]):.2f} ms a step,", end=" ")
        print(f"beside disabled: median {ratios[len(ratios) // 2]:.3f}, {ratios[0]:.3f} to {ratios[-1]:.3f}")


if __name__ == "__main__":
    main()
