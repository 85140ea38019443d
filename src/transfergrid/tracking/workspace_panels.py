"""The panels of a W&B Report. Whatever of them could silently show a part gets the number of what it has to show."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from transfergrid.tracking.wandb_report import WandbReport


def _reports_api() -> Any:
    """It takes 0.5 s to load, and warns of its own use of pydantic."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import wandb_workspaces.reports.v2 as api
    return api


wr = _reports_api()
WIDTH = 24  # of W&B's grid
WHOLE: dict[str, Any] = {  # of a line plot: every point, as it was measured
    "point_visualization_method": "bucketing-gorilla",
    "smoothing_type": "none",
    "smoothing_factor": 0.0,
    "ignore_outliers": False,
}


def tables(wandb_report: WandbReport) -> list[Any]:
    """The comparison first, then the others, one below the other; all are sorted and filtered in the browser."""
    names = sorted(wandb_report.tables, key=lambda name: name != "comparison")
    return [
        wr.WeavePanelSummaryTable(table_name=f"final/{name}", layout=wr.Layout(x=0, y=10 * place, w=WIDTH, h=10))
        for place, name in enumerate(names)
    ]


def bars(wandb_report: WandbReport) -> list[Any]:
    """Measured beside published accuracy, a pair of bars per row."""
    rows = max(1, len(wandb_report.rows))
    metrics = ["test_accuracy", "published_accuracy"]
    return [
        wr.BarPlot(
            title="Test accuracy, and the published one",
            metrics=metrics,
            orientation="h",
            max_runs_to_show=rows,
            max_bars_to_show=rows * len(metrics),
            layout=wr.Layout(x=0, y=0, w=WIDTH, h=min(40, max(8, rows))),
        )
    ]


def scatters() -> list[Any]:
    """What a row costs and what it reaches. SummaryMetric throughout: W&B takes a bare name for something else."""
    costs = {
        "gpu_s": "GPU seconds of a seed",
        "wall_s": "Wall seconds of a seed",
        "parameters": "Parameters",
        "gflops_per_image": "GFLOPs of an image",
    }
    return [
        wr.ScatterPlot(
            title=f"{label} and test accuracy",
            x=wr.SummaryMetric(name),
            y=wr.SummaryMetric("test_accuracy"),
            log_x=True,
            regression=False,
            layout=wr.Layout(x=WIDTH // 2 * (place % 2), y=10 * (place // 2), w=WIDTH // 2, h=10),
        )
        for place, (name, label) in enumerate(costs.items())
    ]


def curves(*, max_runs: int, has_test: bool) -> list[Any]:
    """Accuracy and loss by epoch and by batch, learning rates by batch. has_test: the test set was read each epoch."""
    plots: list[tuple[str, str, dict[str, Any]]] = [
        ("Accuracy on val", "epoch", {"y": ["val/accuracy"]}),
        ("Loss on val", "epoch", {"y": ["val/loss"]}),
        ("Accuracy in training, by epoch", "epoch", {"y": ["train/accuracy"]}),
        ("Loss in training, by epoch", "epoch", {"y": ["train/loss"]}),
        ("Accuracy in training, by batch", "batch", {"y": ["train/accuracy"]}),
        ("Loss in training, by batch", "batch", {"y": ["train/loss"]}),
        ("Learning rates", "batch", {"metric_regex": "^lr/"}),
    ]
    if has_test:
        plots.insert(2, ("Accuracy on test", "epoch", {"y": ["test/accuracy"]}))
    return [
        wr.LinePlot(
            title=title,
            x=axis,
            title_x=axis,
            max_runs_to_show=max_runs,
            layout=wr.Layout(x=WIDTH // 2 * (place % 2), y=9 * (place // 2), w=WIDTH // 2, h=9),
            **data,
            **WHOLE,
        )
        for place, (title, axis, data) in enumerate(plots)
    ]


def confusion(title: str) -> Any:
    """The matrix that the runs logged as `confusion_matrix`; the chart's query itself has room for 500 runs."""
    return wr.CustomChart(
        query={"summaryTable": {"tableKey": "confusion_matrix_table"}},
        chart_name="wandb/confusion_matrix/v1",
        chart_fields={name: name for name in ("Actual", "Predicted", "nPredictions")},
        chart_strings={"title": title},
        layout=wr.Layout(x=0, y=0, w=WIDTH, h=14),
    )


def comparer() -> Any:
    return wr.RunComparer(diff_only=True, layout=wr.Layout(x=0, y=0, w=WIDTH, h=14))


def pictures(title: str, names: Sequence[str]) -> Any:
    return wr.MediaBrowser(
        title=title,
        num_columns=2,
        media_keys=[f"figures/{name}" for name in names],
        layout=wr.Layout(x=0, y=0, w=WIDTH, h=min(60, 12 * -(-len(names) // 2))),
    )
