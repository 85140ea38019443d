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
ROUNDS = 3
GRID = [
    *("grid=quickstart", "grid.models=[baseline_cnn]", "grid.phases=[scratch]", "grid.seeds=[0]", "grid.variants={}"),
    *("phase.scratch.epochs=45", "cluster=local", "cluster.num_threads=1", "device=cpu"),
]


def seconds_per_step(mode: str, folder: Path, url: str) -> tuple[float, float]:
    """Of one launch: (wall seconds, CPU seconds of the training process). The latter other work disturbs less."""
    store = StorePaths(folder / "store")
    arguments = [*GRID, f"tracking={mode}", f"store.dir={store.root}", f"cache.dir={folder / 'cache'}"]
    environment = os.environ | {"WANDB_BASE_URL": url, "WANDB_API_KEY": "f" * 40, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "jobs" / "launch_grid.py"), *arguments]
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    (path,) = store.runs.iterdir()
    record, lines = records.read_record(store.run(path.name)), records.read_metrics(store.run(path.name).metrics)
    assert record is not None
    epochs = [line for line in lines if line["kind"] == "epoch"]
    # Of the last two thirds: W&B is loaded once, beside the first epochs, and a real training is longer than this one.
    first, last = epochs[len(epochs) // 3], epochs[-1]
    wall_s = (last["elapsed_s"] - first["elapsed_s"]) / (last["step"] - first["step"])
    return wall_s, record.usage["cpu_s"] / last["step"]


def main() -> None:
    server = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "wandb_server.py")], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    measured: dict[str, list[tuple[float, float]]] = {mode: [] for mode in MODES}
    try:
        url = server.stdout.readline().strip()
        for turn in range(ROUNDS + 1):  # the first is not counted: it finds cold files
            for mode in MODES[turn % 3 :] + MODES[: turn % 3]:
                with tempfile.TemporaryDirectory() as name:
                    seconds = seconds_per_step(mode, Path(name), url)
                print(f"round {turn}: {mode} {told(seconds)} a step", flush=True)
                if turn > 0:
                    measured[mode].append(seconds)
    finally:
        server.terminate()
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; {ROUNDS} rounds")
    for mode in MODES:
        for place, kind in enumerate(("wall", "CPU of training")):
            pairs = zip(measured[mode], measured["disabled"], strict=True)
            ratios = sorted(one[place] / other[place] for one, other in pairs)
            middle = statistics.median(ratios)
            print(f"{mode:8} {kind:15} beside disabled: median {middle:.3f}, {ratios[0]:.3f} to {ratios[-1]:.3f}")


def told(seconds: tuple[float, float]) -> str:
    return f"{1000 * seconds[0]:.2f} ms wall, {1000 * seconds[1]:.2f} ms CPU"


if __name__ == "__main__":
    main()
