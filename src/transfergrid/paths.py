"""Every file and folder name of the store and the cache, spelled once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transfergrid.specs import FeatureKey, Runtime, safe_name

ASIDE = ".damaged"  # at the end of the name of a file that was set aside
EXPORT_MARK = "preprocessing.json"  # a folder that holds it is an export, which another may replace


@dataclass(frozen=True, slots=True)
class CachePaths:
    """What can be computed again: features, data sets, downloaded weights, compiled kernels, timm's catalog entries."""

    root: Path

    def features(self, key: FeatureKey) -> Path:
        """cache/features/<dataset>/<split>/<backbone>-<key>.h5"""
        folder = self.root / "features" / safe_name(key.dataset.name) / key.split
        return folder / f"{safe_name(key.backbone.name)[:60]}-{key.digest}.h5"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def weights(self) -> Path:
        return self.root / "weights"

    @property
    def catalog(self) -> Path:
        return self.root / "catalog"

    @property
    def folder_hashes(self) -> Path:
        """Kept content hashes of image folders, one JSON file each."""
        return self.root / "catalog" / "folders"

    def pulled(self, entity: str | None, project: str) -> StorePaths:
        """The store made from what a W&B server holds of a project."""
        return StorePaths(self.root / "wandb" / safe_name(entity or "default") / safe_name(project))


@dataclass(frozen=True, slots=True)
class StorePaths:
    """What must be kept: runs, grids, reports, launches, W&B files."""

    root: Path

    def run(self, run_id: str) -> RunPaths:
        return RunPaths(self.root / "runs" / run_id)

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    def grid(self, name: str) -> Path:
        return self.root / "grids" / f"{safe_name(name)}.json"

    def report(self, name: str) -> Path:
        return self.root / "reports" / safe_name(name)

    @property
    def launches(self) -> Path:
        return self.root / "launches"

    @property
    def submitting(self) -> Path:
        """The lock of whoever sends jobs, or collects what they were sent with."""
        return self.launches / ".submitting"

    @property
    def wandb(self) -> Path:
        return self.root / "wandb"


@dataclass(frozen=True, slots=True)
class RunPaths:
    """results/runs/<run_id>/: at most 12 files once the run has finished."""

    root: Path

    @property
    def spec(self) -> Path:
        return self.root / "spec.json"

    @property
    def lock(self) -> Path:
        """The kernel lock that a running attempt holds; the file itself means nothing."""
        return self.root / ".lock"

    @property
    def attempts(self) -> Path:
        return self.root / "attempts"

    def attempt(self, number: int) -> Path:
        return self.attempts / f"{number:03d}.json"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def weights(self) -> Path:
        return self.root / "weights.pt"

    @property
    def predictions(self) -> Path:
        return self.root / "predictions.npz"

    @property
    def predictions_csv(self) -> Path:
        """Written by `evaluate` only."""
        return self.root / "predictions.csv"

    @property
    def record(self) -> Path:
        return self.root / "record.json"

    @property
    def bill(self) -> Path:
        """What SLURM's accounting said that the run cost, see bills.py; none for a run that was local."""
        return self.root / "bill.json"

    @property
    def log(self) -> Path:
        return self.root / "log.txt"

    @property
    def pulled(self) -> Path:
        """In a store made from W&B's only: which versions of what the server holds were read."""
        return self.root / "pulled.json"


def store_paths(runtime: Runtime) -> StorePaths:
    return StorePaths(Path(runtime.store_dir))


def cache_paths(runtime: Runtime) -> CachePaths:
    return CachePaths(Path(runtime.cache_dir))


# -------------------------------------------------------------------------------------------------------- what is typed
VERBS = {  # of the `transfergrid` command -> the module in cli/ that carries it out
    "launch": "launch",
    "run": "run_phase",
    "status": "status",
    "report": "report",
    "sync": "sync",
    "predict": "predict",
    "doctor": "doctor",
    "list": "list",
    "store": "store",
}
_VERB_OF = {"launch_grid": "launch", "run_phase": "run"}  # where a script in jobs/ has another name


def typed(script: str) -> str:
    """How a user starts a script of jobs/: `python jobs/status.py` in a checkout, `transfergrid status` where the
    package is installed."""
    installed = (Path(__file__).parent / "conf").is_dir()
    stem = script.removesuffix(".py")
    return f"transfergrid {_VERB_OF.get(stem, stem)}" if installed else f"python jobs/{script}"
