"""Reports for W&B by hand: some rows of one grid, tables, a figure and a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transfergrid.report.analysis.rows import COLUMNS
from transfergrid.tracking.wandb_report import Chosen, Table, WandbReport


def row(number: int, **changes: Any) -> dict[str, Any]:
    """A row of the table; every tenth has a published value."""
    told: dict[str, Any] = {
        "grid": "g",
        "dataset": ("mnist", "cifar10")[number % 2],
        "model": f"model{number // 2:03d}",
        "phase": "finetune",
        "variant": "",
        "weights": "IMAGENET1K_V1",
        "protocol": "fair",
        "n_seeds": 3,
        "test_accuracy": 0.9 + number / 30_000,
        "test_accuracy_std": 0.001 / 3,
        "val_accuracy": 0.91,
        "published_accuracy": 0.95 if number % 10 == 0 else None,
        "verdict": "better" if number % 3 == 0 else None,
        "parameters": 11_000_000 + number,
        "wall_s": 10.0,
        "gpu_s": 0.1 + number,
        "status": "completed",
    }
    return dict.fromkeys(COLUMNS) | told | changes


def wandb_report(rows: list[dict[str, Any]], folder: Path, *, runs: int = 0, **changes: Any) -> WandbReport:
    """With one figure, one file and a table of three lines, all under `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    _picture(folder / "accuracy-mnist.png")
    table = folder / "comparison.csv"
    table.write_text("\n".join(repr(row["test_accuracy"]) for row in rows))
    content: dict[str, Any] = {
        "grid": "g",
        "grids": ("g",),
        "rows": tuple(rows),
        "tables": {
            "comparison": Table(columns=COLUMNS, rows=tuple(tuple(row[name] for name in COLUMNS) for row in rows)),
            "claims": Table(columns=("claim", "p"), rows=(("a", 0.04), ("b | c", None), ("ü", 1.0))),
        },
        "figures": {"accuracy-mnist": folder / "accuracy-mnist.png"},
        "files": [table],
        "headline": "On mnist, model000 is best.",
        "markdown_table": "".join(f"| {row['model']} | {row['test_accuracy']} |\n" for row in rows),
        "failures": "- one failed.\n",
        "chosen": (Chosen(title="mnist · model000", run_ids=("model000-s0", "model000-s1")),),
        "runs": runs or 3 * len(rows),
    }
    return WandbReport(**content | changes)


def _picture(path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (40, 30), (200, 0, 0)).save(path)
