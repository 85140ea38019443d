"""python benchmarks/plan.py

How long a person waits for a plan: the whole script in a dry run, and the planning of 10,000 configurations.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from transfergrid.config import load_grid
from transfergrid.planning.plan import make_plan

LAUNCH = Path(__file__).resolve().parents[1] / "jobs" / "launch_grid.py"
REPEATS = 5


def many_configurations(count: int, folder: Path) -> list[str]:
    """Arguments of a grid with so many probes and finetunings: four models, two phases, the rest seeds."""
    seeds = ",".join(map(str, range(count // 8)))
    models = "grid.models=[resnet18,vgg16,googlenet,resnet18+googlenet]"
    places = [f"store.dir={folder / 'store'}", f"cache.dir={folder / 'cache'}"]
    grid = ["grid=individual_vs_parallel", "grid.datasets=[mnist]", f"grid.seeds=[{seeds}]", "dry_run=true"]
    return [*grid, models, *places]


def dry_run_s(folder: Path) -> list[float]:
    """Wall seconds of `launch_grid.py grid=individual_vs_parallel dry_run=true`, from shell to shell."""
    arguments = ["grid=individual_vs_parallel", "cluster=local", "dry_run=true"]
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        subprocess.run([sys.executable, str(LAUNCH), *arguments], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - began)
    return seconds


def plan_s(arguments: list[str]) -> tuple[int, float, float]:
    """(configurations, seconds to read them from the command line, seconds to plan them)."""
    began = time.perf_counter()
    request = load_grid(arguments)
    loaded = time.perf_counter()
    make_plan([c.run.run_id for c in request.configurations], request.runs, request.runtime)
    return len(request.configurations), loaded - began, time.perf_counter() - loaded


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        seconds = dry_run_s(Path(name))
        print(f"dry run of 120 configurations, whole script: min {min(seconds):.2f} s,", end=" ")
        print(f"median {statistics.median(seconds):.2f} s of {REPEATS}")
        few, few_load_s, few_plan_s = plan_s(many_configurations(1000, Path(name)))
        many, many_load_s, many_plan_s = plan_s(many_configurations(10_000, Path(name)))
        for count, load, plan in ((few, few_load_s, few_plan_s), (many, many_load_s, many_plan_s)):
            print(f"{count} configurations: {load:.2f} s to read, {plan:.2f} s to plan, {load + plan:.2f} s together")
        ratio = (many_load_s + many_plan_s) / (few_load_s + few_plan_s)
        print(f"ten times as many configurations take {ratio:.1f} times as long")


if __name__ == "__main__":
    main()
