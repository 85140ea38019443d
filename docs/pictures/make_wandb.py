"""Draws the pictures of docs/wandb.md: `uv run docs/pictures/make_wandb.py`.

Nothing in them is invented: a small grid is trained, synced and published against the tests' stand-in server, and what
is said and what that server received is drawn.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle
from rich.console import Console
from rich.text import Text

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

GRID = ("grid=quickstart", "grid.seeds=[0]", "grid.variants={}", "phase.finetune.epochs=2", "phase.scratch.epochs=2")
BLUE, PALE, GREY, INK = "#0072B2", "#EAF2F8", "#767676", "#222222"
STYLE = {"font.family": "DejaVu Sans", "font.size": 9, "svg.hashsalt": "transfergrid", "svg.fonttype": "none"}


def main() -> None:
    from wandb_server import StandIn  # here, after the path to it

    plt.rcParams.update(STYLE)
    draw_flow(HERE / "wandb_flow.svg")
    with tempfile.TemporaryDirectory() as folder, StandIn() as server:
        reached = server.environment()
        said = [
            command(["jobs/launch_grid.py", *GRID, "tracking=offline", "cluster=local"], folder, reached, tail=3),
            command(["jobs/sync.py", "grid=quickstart"], folder, reached),
            command(["jobs/report.py", "grid=quickstart", "publish=true", "figures=false"], folder, reached, tail=2),
            command(["jobs/sync.py", "grid=quickstart"], folder, reached),
        ]
        [report] = server.reports.values()
    draw_terminal("\n\n".join(said), HERE / "wandb_terminal.svg")
    draw_report(report["spec"], HERE / "wandb_report.svg")


def command(arguments: list[str], folder: str, server: dict[str, str], *, tail: int | None = None) -> str:
    """What it says, after the line that was typed; of long output the last `tail` lines."""
    environment = os.environ | server | {"COLUMNS": "100"}
    asked = [sys.executable, str(ROOT / arguments[0]), *arguments[1:]]
    done = subprocess.run(asked, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    lines = done.stdout.replace(server["WANDB_BASE_URL"], "https://wandb.example").strip().splitlines()
    shown = lines if tail is None else ["...", *lines[-tail:]]
    return "\n".join([f"$ python {' '.join(arguments)}", *shown])


def draw_terminal(text: str, path: Path) -> None:
    console = Console(record=True, width=112, file=open(os.devnull, "w"), force_terminal=True)
    for line in text.splitlines():
        console.print(Text(line, style="bold" if line.startswith("$") else ""))
    path.write_text(console.export_svg(title="from the store to W&B, and what is there already is not sent twice"))


# ------------------------------------------------------------------------------------------------------------ the flow
def draw_flow(path: Path) -> None:
    figure, axes = plt.subplots(figsize=(9.6, 3.5))
    axes.set(xlim=(0, 96), ylim=(0, 35))
    axes.axis("off")
    box(axes, 1, 13, 21, 14, "jobs on the nodes", "train; write their\nown files, no others")
    box(axes, 30, 13, 24, 14, "the store", "metrics.jsonl, record.json,\npredictions.npz of each run")
    box(axes, 68, 13, 27, 14, "W&B", "a run per configuration,\na run per row of the table,\nfinal tables, the report")
    arrow(axes, (22, 20), (30, 20), "")
    arrow(axes, (54, 24.5), (68, 24.5), "mirror\n(tracking=online)")
    arrow(axes, (54, 20), (68, 20), "sync.py")
    arrow(axes, (54, 15.5), (68, 15.5), "report.py\npublish=true", below=True)
    axes.annotate("", (43, 7), (81, 13), arrowprops=ARROW | {"connectionstyle": "arc3,rad=-0.12"})
    axes.text(64, 4.2, "report.py source=wandb", ha="center", color=INK)
    axes.text(43, 4.2, "the same table,\nwithout the store", ha="center", va="center", color=GREY)
    axes.text(
        48,
        33,
        "nothing goes back into a run: whatever W&B does, training neither waits nor changes",
        ha="center",
        color=GREY,
    )
    save(figure, path)


ARROW: dict[str, Any] = {"arrowstyle": "-|>", "color": INK, "lw": 1.2}


def box(axes: Axes, x: float, y: float, width: float, height: float, title: str, text: str) -> None:
    axes.add_patch(
        FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=1.2", fc=PALE, ec=BLUE, lw=1.2)
    )
    axes.text(x + width / 2, y + height - 3.6, title, ha="center", weight="bold", color=INK)
    axes.text(x + width / 2, y + height / 2 - 2.2, text, ha="center", va="center", color=INK)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], text: str, *, below: bool = False) -> None:
    axes.annotate("", end, start, arrowprops=ARROW)
    middle = (start[0] + end[0]) / 2
    axes.text(middle, start[1] + (-0.6 if below else 0.6), text, ha="center", va="top" if below else "bottom", size=8)


# ---------------------------------------------------------------------------------------------------------- the report
def draw_report(spec: dict[str, Any], path: Path) -> None:
    """Its blocks from top to bottom: headings, texts and, as boxes, the panels with what is drawn against what."""
    rows = [row for block in spec["blocks"] for row in rows_of(block)]
    height = sum(row[1] for row in rows)
    figure, axes = plt.subplots(figsize=(9.6, height * 0.2))
    axes.set(xlim=(0, 24), ylim=(-height, 0))
    axes.axis("off")
    top = 0.0
    for draw, lines in rows:
        draw(axes, top)
        top -= lines
    save(figure, path)


def rows_of(block: dict[str, Any]) -> list[tuple[Any, float]]:
    """(how it is drawn from its top downward, lines it takes) of one block."""
    kind = block["type"]
    words = "".join(child.get("text", "") for child in block.get("children", ()))
    if kind == "heading":
        return [(lambda axes, top: axes.text(0, top - 1.2, words, weight="bold", size=10, va="center"), 2.2)]
    if kind == "markdown-block":
        lines = [cut(line) for line in block.get("content", "").splitlines() if line.strip()][:4]
        return [
            (lambda axes, top, line=line: axes.text(0, top - 0.6, line, size=7, va="center"), 1.1) for line in lines
        ]
    if kind == "panel-grid":
        return panels_of(block["metadata"])
    return []


def panels_of(grid: dict[str, Any]) -> list[tuple[Any, float]]:
    sets = ", ".join(f"{s['name']}{' by model and dataset' if s.get('grouping') else ''}" for s in grid["runSets"])
    found: list[tuple[Any, float]] = [
        (lambda axes, top: axes.text(0, top - 0.6, f"runs: {cut(sets)}", size=7, color=GREY, va="center"), 1.1)
    ]
    panels = grid["panelBankSectionConfig"]["panels"]
    if not panels:
        return found
    scale = 0.3  # lines of a unit of W&B's layout
    bottom = max(p["layout"]["y"] + p["layout"]["h"] for p in panels)

    def draw(axes: Axes, top: float) -> None:
        for panel in panels:
            at, config = panel["layout"], panel["config"]
            place = (at["x"] + 0.1, top - scale * (at["y"] + at["h"]) + 0.1)
            axes.add_patch(Rectangle(place, at["w"] - 0.2, scale * at["h"] - 0.2, fc=PALE, ec=BLUE, lw=0.8))
            x, y = place[0] + (at["w"] - 0.2) / 2, place[1] + (scale * at["h"] - 0.2) / 2
            axes.text(
                x, y, f"{panel['viewType']}\n{cut(told(config), 60)}", ha="center", va="center", size=7, color=INK
            )

    return [*found, (draw, scale * bottom + 0.4)]


def told(config: dict[str, Any]) -> str:
    table = re.search(r"final/\w+", json.dumps(config))
    title = config.get("chartTitle", "") or (f"table {table[0]}" if table else "")
    across, up = config.get("xAxis"), config.get("yAxis") or ", ".join(config.get("metrics", ()))
    axis = f"{up} against {across}" if across and up else up or ""
    return "\n".join(part for part in (title, axis) if part)


def cut(text: str, longest: int = 130) -> str:
    return "\n".join(line if len(line) <= longest else f"{line[: longest - 1]}…" for line in text.splitlines())


def save(figure: Any, path: Path) -> None:
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
