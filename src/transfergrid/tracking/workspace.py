"""The W&B Report of a grid: written from what was sent, and brought up to date in place.

It names runs by tags, job type, state, status and id alone: with those W&B's filters mean what they say. What reviewers
write below the heading "Discussion", and their comments, stay when the report is sent again.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transfergrid.paths import StorePaths
from transfergrid.specs import safe_name
from transfergrid.store import durable
from transfergrid.tracking.account import Account
from transfergrid.tracking.remote import Remote
from transfergrid.tracking.wandb_report import KEY, WandbReport


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
DISCUSSION = "Discussion"
BEST_FIRST = wr.OrderBy(name=wr.SummaryMetric("test_accuracy"), ascending=False)
BY_CHANCE = ("id", "__id__", "inlineComments")
TRAINED = ("probe", "finetune", "scratch")  # phases that have curves
PHASES = (*TRAINED, "evaluate")
# Of the run tables: what names a row, then what was measured.
MEASURED = (
    "n_seeds test_accuracy test_accuracy_std ci95_low ci95_high val_accuracy published_accuracy delta_to_best_single"
    " verdict parameters full_wall_s full_gpu_s status"
).split()
ROW_COLUMNS = [*(f"config:{name}.value" for name in KEY), *(f"summary:{name}" for name in MEASURED)]
FAILED_COLUMNS = [
    *(f"config:{name}.value" for name in ("dataset", "model", "phase", "variant", "seed")),
    *("summary:failure_class", "summary:error", "run:state"),
]


# ------------------------------------------------------------------------------------------------------- what it says
def report_blocks(wandb_report: WandbReport, *, runs: int | None = None) -> list[Any]:
    """The blocks in order; runs: how many the server holds, where that is more than the grids have now."""
    room = max(wandb_report.runs, runs or 0, 1)
    return [
        wr.MarkdownBlock(text=wandb_report.headline),
        wr.TableOfContents(),
        wr.H1(text="Comparison"),
        wr.MarkdownBlock(text=wandb_report.markdown_table),
        wr.PanelGrid(runsets=[_report_run(wandb_report)], panels=tables(wandb_report)),
        wr.H1(text="Rows"),
        wr.PanelGrid(runsets=[_rows(wandb_report)], panels=bars(wandb_report)),
        wr.H1(text="Cost against accuracy"),
        wr.PanelGrid(runsets=[_rows(wandb_report)], panels=scatters()),
        wr.H1(text="Runs by model and dataset"),
        wr.PanelGrid(runsets=_grouped(wandb_report), panels=[]),
        wr.H1(text="Curves"),
        *_curve_blocks(wandb_report, room),
        wr.H1(text="Confusion matrices"),
        *_confusion_blocks(wandb_report),
        wr.H1(text="What differs between the rows"),
        wr.PanelGrid(runsets=[_rows(wandb_report)], panels=[comparer()]),
        wr.H1(text="What failed"),
        wr.MarkdownBlock(text=wandb_report.failures or "Nothing has failed, and no row is missing."),
        wr.PanelGrid(runsets=[_failed(wandb_report)], panels=[]),
        *_figure_blocks(wandb_report),
        *([wr.MarkdownBlock(text="".join(f"- {note}\n" for note in wandb_report.notes))] if wandb_report.notes else []),
        wr.H1(text=DISCUSSION),
    ]


def _curve_blocks(wandb_report: WandbReport, room: int) -> Iterator[Any]:
    """A grid of panels per phase, of runs that are not grouped: of groups W&B draws means of a sample of runs."""
    for phase in _phases(wandb_report, TRAINED):
        has_test = any(row["protocol"] == "published" and row["phase"] == phase for row in wandb_report.rows)
        yield wr.H2(text=phase)
        yield wr.PanelGrid(runsets=[_of_phase(wandb_report, phase)], panels=curves(max_runs=room, has_test=has_test))


def _confusion_blocks(wandb_report: WandbReport) -> Iterator[Any]:
    yield wr.P(text="Of the row that the verdict names; its seeds are summed. The others' are in the runs themselves.")
    for chosen in wandb_report.chosen:
        filters = f"Metric('ID') in [{_listed(chosen.run_ids)}]"
        yield wr.PanelGrid(runsets=[wr.Runset(name=chosen.title, filters=filters)], panels=[confusion(chosen.title)])


def _figure_blocks(wandb_report: WandbReport) -> Iterator[Any]:
    for title, is_single in (("Figures", False), ("Figures of single rows", True)):
        if names := [name for name in wandb_report.figures if (name in wandb_report.single) == is_single]:
            yield wr.H1(text=title)
            yield wr.PanelGrid(runsets=[_report_run(wandb_report)], panels=[pictures(title, names)])


# ----------------------------------------------------------------------------------------------------------- its panels
# What could silently show a part gets the number of what it has to show.
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
        "full_gpu_s": "GPU seconds of a seed with all it is made from",
        "full_wall_s": "Wall seconds of a seed with all it is made from",
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


# ------------------------------------------------------------------------------------------------------- which runs
def _report_run(wandb_report: WandbReport) -> Any:
    return wr.Runset(name="report", filters=_filter([wandb_report.tag("report")]))


def _rows(wandb_report: WandbReport) -> Any:
    """One run per row of the table, best first."""
    return wr.Runset(
        name="rows of the table",
        filters=_filter([wandb_report.tag("summary")]),
        order=[BEST_FIRST],
        visible_columns=ROW_COLUMNS,
        lock_columns=True,
    )


def _grouped(wandb_report: WandbReport) -> list[Any]:
    """The configurations' own runs, a tab per phase. Without `config.` W&B takes `model` for a run's attribute."""
    phases = _phases(wandb_report, PHASES) or PHASES
    return [_of_phase(wandb_report, phase, groupby=["config.model", "config.dataset"]) for phase in phases]


def _of_phase(wandb_report: WandbReport, phase: str, **more: Any) -> Any:
    filters = _filter(wandb_report.grid_tags, job_types=[phase])
    return wr.Runset(name=phase, filters=filters, order=[BEST_FIRST], **more)


def _failed(wandb_report: WandbReport) -> Any:
    return wr.Runset(
        name="failed runs",
        filters=f"{_filter(wandb_report.grid_tags)} and SummaryMetric('status') in ['failed']",
        visible_columns=FAILED_COLUMNS,
        lock_columns=True,
    )


def _filter(tags: Sequence[str], *, job_types: Sequence[str] = ()) -> str:
    """Only `in`, which W&B's servers have always understood; names hold no quote and no `=`, which it would rewrite."""
    text = f"Tags() in [{_listed(tags)}]"
    return f"{text} and Metric('JobType') in [{_listed(job_types)}]" if job_types else text


def _listed(names: Sequence[str]) -> str:
    assert not any(set(name) & set("'\"\\=<>") for name in names), names
    return ", ".join(f"'{name}'" for name in names)


def _phases(wandb_report: WandbReport, among: Sequence[str]) -> list[str]:
    present = {row["phase"] for row in wandb_report.rows}
    return [phase for phase in among if phase in present]


# ---------------------------------------------------------------------------------------------------------- saving it
def save_report(
    account: Account, store: StorePaths, wandb_report: WandbReport, remote: Remote, blocks: list[Any]
) -> str:
    """Make the report of these blocks, or bring the one that is there up to date; its URL, which the store keeps.
    Another machine finds it by the URL in the summary of the report run. Where it is gone a new one is made."""
    known = ((url, _model_of(url)) for url in _known_urls(account, store, wandb_report, remote))
    url, model = next(((url, model) for url, model in known if model is not None), ("", None))
    if model is None or _unequal(model, blocks):
        url = _saved(account, wandb_report, blocks, url)
    durable.write_json(_url_file(store, wandb_report), {"url": url, "server": account.url, "project": account.path()})
    return url


def _saved(account: Account, wandb_report: WandbReport, blocks: list[Any], url: str) -> str:
    """The URL of the report that now says this; url: of the one to change, or empty."""
    if url:
        report = wr.Report.from_url(url)
        report.blocks = blocks + _discussion(report)
    else:
        report = wr.Report(project=account.project, entity=str(account.entity), blocks=blocks)
    report.title = f"Comparison of {wandb_report.grid}"[:128]
    report.description = "Made from the store; below the last heading is room for what you have to say."
    report.width = "fluid"  # each time: a report that was loaded has forgotten its width
    report.save()
    return str(report.url)


def report_difference(url: str, blocks: Sequence[Any]) -> str | None:
    """None where the report on the server says what these blocks say."""
    model = _model_of(url)
    if model is None:
        return f"the report {url} is not on the server"
    unequal = _unequal(model, blocks)
    return f"block {unequal[0]} of the report {url} is not what was sent" if unequal else None


def _known_urls(account: Account, store: StorePaths, wandb_report: WandbReport, remote: Remote) -> Iterator[str]:
    """Of this grid's report on this server: as this store knows it, then as the server does."""
    path = _url_file(store, wandb_report)
    if path.is_file():
        report = durable.read_json(path)
        if (report["server"], report["project"]) == (account.url, account.path()):
            yield str(report["url"])
    for run in remote.tagged(wandb_report.tag("report")).values():
        if url := run.summary.get("report_url"):
            yield str(url)


def _model_of(url: str) -> Any | None:
    """The report as it is on the server; None where it is gone."""
    try:
        return wr.Report.from_url(url, as_model=True)
    except TypeError:  # what comes of the server's answer that there is no such view
        return None


def _discussion(report: Any) -> list[Any]:
    """What stands below the heading of that name; a table panel there loses its place to W&B's own objects."""
    for position, block in enumerate(report.blocks):
        if isinstance(block, wr.H1) and block.text in (DISCUSSION, [DISCUSSION]):
            return list(report.blocks[position + 1 :])
    return []


def _url_file(store: StorePaths, wandb_report: WandbReport) -> Path:
    return store.wandb / "reports" / f"{safe_name(wandb_report.grid)}.json"


# ----------------------------------------------------------------------------------------------------------- comparing
def _unequal(model: Any, blocks: Sequence[Any]) -> list[int]:
    """Which of these blocks, counted from 1, the report does not hold in their place."""
    there = [_comparable(block) for block in model.spec.blocks][1:]  # W&B puts an empty paragraph before all
    here = [_comparable(block._to_model()) for block in blocks]
    return [number for number, block in enumerate(here, start=1) if there[number - 1 : number] != [block]]


def _comparable(model: Any) -> Any:
    """What a block is to the server, without what W&B draws by chance, adds on reading or hangs on it (comments)."""
    text = model.model_dump_json(by_alias=True, exclude_none=True)
    return json.loads(text, object_hook=lambda fields: {k: v for k, v in fields.items() if k not in BY_CHANCE})
