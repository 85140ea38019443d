"""python benchmarks/estimates.py

How right the plan's times are: the quickstart and a small MNIST grid, first in an empty store, then, with other seeds,
where records exist. TRANSFERGRID_DATA_DIR must hold MNIST, or the network be there. 5 minutes on two idle cores.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LAUNCH = Path(__file__).resolve().parents[1] / "jobs" / "launch_grid.py"
LIMITS = {"first": 2.0, "again": 1.3}
# individual_vs_parallel on MNIST takes hours without a GPU: here on 600 images at 32 px, from random weights.
MNIST = (
    "grid=individual_vs_parallel",
    "grid.datasets=[mnist]",
    "grid.models=[resnet18,googlenet,resnet18+googlenet]",
    "weights=random",
    "dataset.max_images=600",
    "dataset.image_size_px=32",
    "phase.extract.storage=float32",
    "phase.finetune.epochs=5",
    "phase.finetune.precision=fp32",
)
# name, arguments, seeds of the first launch, seeds of the second
GRIDS = (("quickstart", ("grid=quickstart",), "0,1,2", "3,4"), ("MNIST", MNIST, "0", "1"))


@dataclass(frozen=True)
class Told:
    """expected: as --json has it. wall_s: of the whole command."""

    expected: dict[str, Any]
    wall_s: float


def launch(folder: Path, arguments: tuple[str, ...], seeds: str, name: str, *more: str) -> Told:
    places = (f"store.dir={folder / 'store'}", f"cache.dir={folder / 'cache'}", "tracking=disabled", "cluster=local")
    command = [sys.executable, str(LAUNCH), *arguments, f"grid.seeds=[{seeds}]", f"grid_name={name}", *places, *more]
    began = time.monotonic()
    done = subprocess.run([*command, "--json"], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 3):
        raise SystemExit(done.stderr[-2000:])
    return Told(json.loads(done.stdout)["expected"], time.monotonic() - began)


def took_s(folder: Path) -> float:
    """From the first run to the table, as the newest launch noted it."""
    [file] = (folder / "cache" / "machines").iterdir()
    seconds: float = json.loads(file.read_text())["launches"][-1]["took_s"]
    return seconds


def main() -> int:
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} CPUs, load {load:.1f}" + ("" if load < 1 else ": others use this machine"))
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for grid, arguments, *seeds in GRIDS:
            planned = launch(folder, arguments, seeds[0], f"{grid.lower()}-first", "dry_run=true").expected
            for which, own_seeds in zip(("first", "again"), seeds, strict=True):
                told = launch(folder, arguments, own_seeds, f"{grid.lower()}-{which}")
                truth_s, expected_s = took_s(folder), told.expected["seconds"]
                factor = max(expected_s / truth_s, truth_s / expected_s)
                is_right = factor <= LIMITS[which]
                wrong += not is_right
                bases = ", ".join(f"{n} runs from {basis}" for basis, n in told.expected["runs_by_basis"].items())
                print(
                    f"{grid:<10} {which}: expected {expected_s:.0f} s, took {truth_s:.0f} s, a factor of {factor:.2f}"
                    f" (at most {LIMITS[which]}: {'yes' if is_right else 'NO'}); {bases}; whole command"
                    f" {told.wall_s:.0f} s" + (f", planned dry {planned['seconds']:.0f} s" if which == "first" else ""),
                    flush=True,
                )
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
