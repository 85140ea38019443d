"""Every file and folder name of the store and the cache, spelled once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transfergrid.specs import FeatureKey, Runtime, safe_name

ASIDE = ".damaged"  # at the end of the name of a file that was set aside
EXPORT_MARK = "preprocessing.json"  # a folder that holds it is an export, which another may replace


@dataclass(frozen=True, slots=True)
class _Inside:
    """What lies at one place inside every folder of a kind."""

    name: str

    def __get__(self, folder: _Folder, kind: type[_Folder]) -> Path:
        return folder.root / self.name


@dataclass(frozen=True, slots=True)
class _Folder:
    root: Path


class CachePaths(_Folder):
    """What can be computed again: features, data sets, downloaded weights, compiled kernels, timm's catalog entries."""

    data = _Inside("data")
    weights = _Inside("weights")
    catalog = _Inside("catalog")
    machines = _Inside("machines")  # what is known of the machines that launched, one JSON file each
    folder_hashes = _Inside("catalog/folders")  # kept content hashes of image folders, one JSON file each

    def features(self, key: FeatureKey) -> Path:
        """cache/features/<dataset>/<split>/<backbone>-<key>.h5"""
        folder = self.root / "features" / safe_name(key.dataset.name) / key.split
        return folder / f"{safe_name(key.backbone.name)[:60]}-{key.digest}.h5"

    def pulled(self, entity: str | None, project: str) -> StorePaths:
        """The store made from what a W&B server holds of a project."""
        return StorePaths(self.root / "wandb" / safe_name(entity or "default") / safe_name(project))


class StorePaths(_Folder):
    """What must be kept: runs, grids, reports, launches, W&B files."""

    runs = _Inside("runs")
    grids = _Inside("grids")
    splits = _Inside("splits")  # tables of pictures whose split was drawn, one CSV file each
    launches = _Inside("launches")
    submitting = _Inside("launches/.submitting")  # the lock of whoever sends jobs, or collects what was sent
    collecting = _Inside("grids/.collecting")  # the lock of whoever removes what no grid lists, or lists a plan's runs
    wandb = _Inside("wandb")

    def run(self, run_id: str) -> RunPaths:
        return RunPaths(self.runs / run_id)

    def grid(self, name: str) -> Path:
        return self.grids / f"{safe_name(name)}.json"

    def launching(self, grid: str) -> Path:
        """The lock of a launch that carries out a grid on this machine, until its last run has ended."""
        return self.grids / f".{safe_name(grid)}.launching"

    @property
    def all_launching(self) -> list[Path]:
        """Those locks, of all grids; who holds none of them is not at work."""
        return sorted(self.grids.glob(".*.launching"))

    def report(self, name: str) -> Path:
        return self.root / "reports" / safe_name(name)


class RunPaths(_Folder):
    """results/runs/<run_id>/: at most 12 files once the run has finished."""

    spec = _Inside("spec.json")
    lock = _Inside(".lock")  # the kernel lock that a running attempt holds; the file itself means nothing
    attempts = _Inside("attempts")
    metrics = _Inside("metrics.jsonl")
    checkpoints = _Inside("checkpoints")
    weights = _Inside("weights.pt")
    predictions = _Inside("predictions.npz")
    predictions_csv = _Inside("predictions.csv")  # written by `evaluate` only
    record = _Inside("record.json")
    bill = _Inside("bill.json")  # what SLURM's accounting said that the run cost, see bills.py; none of a local run
    profile = _Inside("profile.json")  # what using its network cost where that was measured, see profiles.py
    log = _Inside("log.txt")
    pulled = _Inside("pulled.json")  # in a store made from W&B's only: which versions of what it holds were read

    def attempt(self, number: int) -> Path:
        return self.attempts / f"{number:03d}.json"


def store_paths(runtime: Runtime) -> StorePaths:
    return StorePaths(Path(runtime.store_dir))


def cache_paths(runtime: Runtime) -> CachePaths:
    return CachePaths(Path(runtime.cache_dir))


# -------------------------------------------------------------------------------------------------------- what is typed
# Of the `transfergrid` command -> the module in cli/ that carries it out.
VERBS = {"launch": "launch", "run": "run_phase"} | {
    verb: verb for verb in ("status", "report", "sync", "predict", "doctor", "list", "store")
}
TYPED = r"python jobs/\w+\.py|transfergrid (?:" + "|".join(VERBS) + r")\b"  # how typed() begins a command
_VERB_OF = {"launch_grid": "launch", "run_phase": "run"}  # where a script in jobs/ has another name


def typed(script: str) -> str:
    """How a user starts a script of jobs/: `python jobs/status.py` in a checkout, `transfergrid status` where the
    package is installed."""
    installed = (Path(__file__).parent / "conf").is_dir()
    stem = script.removesuffix(".py")
    return f"transfergrid {_VERB_OF.get(stem, stem)}" if installed else f"python jobs/{script}"
