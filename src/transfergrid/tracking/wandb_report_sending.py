"""Send a grid's report to W&B: one run per row of the table, one with tables, figures and files, and the W&B Report.

Safe to do again: ids are those of the rows, so everything is brought up to date in place, and what has not changed is
not sent. Rows, cells of the tables, bytes of the artifact and the report are read back and compared.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

from transfergrid.errors import DataError, GridError, one_line
from transfergrid.paths import StorePaths
from transfergrid.specs import safe_name
from transfergrid.store import durable
from transfergrid.tracking.account import Account, Unreachable, why_silent
from transfergrid.tracking.client import DeletedRun, open_run, wandb_session
from transfergrid.tracking.remote import Remote, RemoteRun
from transfergrid.tracking.wandb_report import MOST_TABLE_ROWS, Table, WandbReport, row_config, row_summary, row_title
from transfergrid.tracking.workspace import report_blocks, report_difference, save_report

MOST_DELETED = 10  # times that one run may have been
WRITERS = 8  # runs open at a time; W&B's own process takes no more requests at once than that
PATIENCE_S = 30.0  # for a server that shows a moment later what it took
FINISH_S = 60.0  # for a run with all tables and figures
LARGEST_TABLE_BYTES = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SentReport:
    """runs: rows of the table that are in W&B, of which `written` were new or changed. problems: one line each."""

    report_url: str
    runs: int
    written: int
    problems: tuple[str, ...]


def send_report(
    account: Account,
    store: StorePaths,
    wandb_report: WandbReport,
    *,
    say: Callable[[str], None],
    patience_s: float = PATIENCE_S,
) -> SentReport:
    """Raises Unreachable where W&B cannot be used, DataError for what it would not hold whole."""
    wandb_report.validate()
    if reason := why_silent(account.url):
        raise Unreachable(f"{account.url} does not answer ({reason}); publish again where it does")
    problems: list[str] = []
    try:
        with _alone(store, wandb_report.grid), wandb_session(store, account.url) as folder:
            remote = Remote(account)
            account = replace(account, entity=remote.entity)
            target = _Target(account, wandb_report, folder)
            known = row_runs(remote, wandb_report)
            written = _write_rows(target, known)
            _retire_rows(remote, known, wandb_report)
            blocks = report_blocks(wandb_report, runs=len(remote.tagged(*wandb_report.grid_tags)))
            url = save_report(account, store, wandb_report, remote, blocks)
            rows = "1 row" if len(wandb_report.rows) == 1 else f"{len(wandb_report.rows)} rows"
            say(f"W&B: {rows} ({written} written), {url}; reading back")
            run = report_run(remote, wandb_report)
            if not _is_up_to_date(run, wandb_report, url) or differences(remote, wandb_report, url, blocks, folder):
                _write_report_run(target, run, url)
                problems = _lasting_differences(remote, target, url, blocks, patience_s)
    except GridError:
        raise
    except Exception as error:  # W&B has a class of its own for each way in which a server can refuse
        raise Unreachable(f"{account.url}: {one_line(error)}; publish again to complete it") from error
    return SentReport(report_url=url, runs=len(wandb_report.rows), written=written, problems=tuple(problems))


@contextlib.contextmanager
def _alone(store: StorePaths, grid: str) -> Iterator[None]:
    """Two at once would make two reports."""
    with durable.lock(store.wandb / "locks" / f"publish-{safe_name(grid)}.lock", wait=False) as is_mine:
        if not is_mine:
            raise Unreachable(f"another process is just publishing {grid}; publish again when it has ended")
        yield


@dataclass(frozen=True, slots=True)
class _Target:
    """folder: W&B's files of the runs that are written, gone when all is sent."""

    account: Account
    wandb_report: WandbReport
    folder: Path

    def open(self, known: RemoteRun | None, run_id: str, **described: Any) -> Any:
        """W&B's run of that id, or the one that is `known` to stand in its place: W&B never takes the id of a run that
        somebody has deleted, so that then another one is made."""
        first = run_id if known is None else known.id
        for name in (first, *(f"{first}-{number}" for number in range(2, MOST_DELETED))):
            with contextlib.suppress(DeletedRun):
                group = self.wandb_report.grid[:128]
                return open_run(self.account, self.folder, finish_s=FINISH_S, id=name, group=group, **described)
        raise Unreachable(f"run {run_id} was deleted on the server too often; publish in another project")


# ---------------------------------------------------------------------------------------------------------- the rows
def _write_rows(target: _Target, known: Mapping[str, RemoteRun]) -> int:
    """Runs of rows that are new or have changed, several at a time; how many. The first that fails ends it."""
    wandb_report = target.wandb_report
    rows = [row for row in wandb_report.rows if not _is_current(known.get(wandb_report.summary_id(row)), row)]

    def write(row: Mapping[str, Any]) -> None:
        run_id, tags = wandb_report.summary_id(row), [wandb_report.tag("summary")]
        run = target.open(known.get(run_id), run_id, name=row_title(row), job_type="summary", tags=tags)
        run.config.update(row_config(row), allow_val_change=True)
        summary = row_summary(row)
        for name in list(run.summary.keys()):
            if name not in summary and not name.startswith("_"):
                del run.summary[name]
        run.summary.update(summary)
        run.finish()

    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(write, rows))  # it takes back those that have not begun when one fails
    return len(rows)


def _is_current(run: RemoteRun | None, row: Mapping[str, Any]) -> bool:
    """Whether the server's run says what the row says, and nothing else."""
    if run is None or run.state != "finished":
        return False
    summary = {name: value for name, value in run.summary.items() if not name.startswith("_")}
    config = {name: run.config.get(name) for name in row_config(row)}
    return summary == row_summary(row) and config == row_config(row)


def _retire_rows(remote: Remote, known: Mapping[str, RemoteRun], wandb_report: WandbReport) -> None:
    """Runs whose row is gone stay, for what was said about them, but in no table or chart of the report."""
    ids = {wandb_report.summary_id(row) for row in wandb_report.rows}
    for run_id, run in known.items():
        if run_id not in ids:
            remote.update(run, tags=[wandb_report.tag("former")], config={"current": False})


# ---------------------------------------------------------------------------------------------------- tables and files
def _write_report_run(target: _Target, known: RemoteRun | None, url: str) -> None:
    import wandb

    wandb_report = target.wandb_report
    run = target.open(
        known,
        wandb_report.report_id,
        name=f"report of {wandb_report.grid}",
        job_type="report",
        tags=[wandb_report.tag("report")],
        config={"grid": wandb_report.grid, "grids": list(wandb_report.grids)},
    )
    # Without this W&B cuts the copy of a table that its pages read at 10,000 rows, and says nothing.
    with mock.patch.object(wandb.Table, "MAX_ROWS", min(MOST_TABLE_ROWS, wandb.Table.MAX_ARTIFACT_ROWS)):
        logged: dict[str, Any] = {
            f"final/{name}": wandb.Table(columns=list(table.columns), data=[list(row) for row in table.rows])
            for name, table in wandb_report.tables.items()
        }
        logged |= {f"figures/{name}": wandb.Image(str(path)) for name, path in wandb_report.figures.items()}
        for name in list(run.summary.keys()):
            if name.startswith(("final/", "figures/")) and name not in logged:
                del run.summary[name]
        run.log(logged)
    # A new version in W&B only where a file has changed: versions go by content.
    description = f"The final tables of {wandb_report.grid}."
    artifact = wandb.Artifact(wandb_report.artifact_name, type="final-tables", description=description)
    for path in wandb_report.files:
        if not path.is_file():
            raise DataError(f"{path} is missing; make the report again")
        artifact.add_file(str(path), name=path.name, skip_cache=True)
    run.log_artifact(artifact)
    run.summary.update({"report_url": url, "verdict": wandb_report.headline, "content": wandb_report.content})
    run.finish()


def _is_up_to_date(run: RemoteRun | None, wandb_report: WandbReport, url: str) -> bool:
    """Whether the report run was written with just this content: it is not to grow by the same figures each time."""
    expected = ("finished", wandb_report.content, url)
    return run is not None and (run.state, run.summary.get("content"), run.summary.get("report_url")) == expected


# ------------------------------------------------------------------------------------------------------- reading back
def _lasting_differences(remote: Remote, target: _Target, url: str, blocks: list[Any], patience_s: float) -> list[str]:
    deadline_s, pause_s = time.monotonic() + patience_s, 0.5
    while True:
        problems = differences(remote, target.wandb_report, url, blocks, target.folder)
        if not problems or time.monotonic() + pause_s > deadline_s:
            return problems
        time.sleep(pause_s)
        pause_s *= 2


def row_runs(remote: Remote, wandb_report: WandbReport) -> dict[str, RemoteRun]:
    """The runs that stand for rows, by the id that wandb_report.summary_id gives: theirs, or theirs without the number
    that it got because somebody had deleted the one before."""
    runs = remote.tagged(wandb_report.tag("summary"))
    return {re.sub(r"(-\d)+$", "", run_id): run for run_id, run in runs.items()}


def report_run(remote: Remote, wandb_report: WandbReport) -> RemoteRun | None:
    return next(iter(remote.tagged(wandb_report.tag("report")).values()), None)


def differences(remote: Remote, wandb_report: WandbReport, url: str, blocks: Sequence[Any], folder: Path) -> list[str]:
    """One line for each thing that is not on the server as it was sent. url, blocks: of the W&B Report. folder: for
    what is downloaded."""
    run = report_run(remote, wandb_report)
    if run is None:
        return [f"run {wandb_report.report_id} is not on the server", *_rows(remote, wandb_report)]
    problems = [*_rows(remote, wandb_report), *_tables(remote, run, wandb_report, folder)]
    figures = [f"figures/{name}" for name in wandb_report.figures]
    problems += [f"figure {name} is not on the server" for name in figures if run.summary.get(name) is None]
    problems += _files(remote, wandb_report, folder)
    if difference := report_difference(url, blocks):
        problems.append(difference)
    return problems


def _rows(remote: Remote, wandb_report: WandbReport) -> Iterator[str]:
    runs = row_runs(remote, wandb_report)
    expected = {wandb_report.summary_id(row): row for row in wandb_report.rows}
    for run_id in runs.keys() - expected.keys():
        yield f"run {run_id} stands for a row that the table does not have"
    for run_id, row in expected.items():
        if run_id not in runs:
            yield f"row {row_title(row)}: run {run_id} is not on the server"
            continue
        run = runs[run_id]
        for name, value in (row_summary(row) | row_config(row)).items():
            there = run.config.get(name) if name in row_config(row) else run.summary.get(name)
            if there != value:
                yield f"row {row_title(row)}: {name} is {there!r} on the server, {value!r} here"


def _tables(remote: Remote, run: RemoteRun, wandb_report: WandbReport, folder: Path) -> Iterator[str]:
    for name, table in wandb_report.tables.items():
        there = run.summary.get(f"final/{name}")
        if not isinstance(there, Mapping):
            yield f"table final/{name} is not on the server"
            continue
        try:
            file = remote.files(run, [path := str(there.get("path"))])[path]
            table_file = remote.download(file, folder / "read back", largest_bytes=LARGEST_TABLE_BYTES)
            content = json.loads(table_file.read_bytes())
        except Exception as error:  # of the network, of the server, of JSON: the table was not read back
            yield f"table final/{name} could not be read back ({one_line(error)})"
            continue
        yield from _cells(name, table, content)


def _cells(name: str, table: Table, content: Mapping[str, Any]) -> Iterator[str]:
    if content["columns"] != list(table.columns):
        yield f"table final/{name} has other columns on the server: {', '.join(map(str, content['columns']))}"
    elif len(content["data"]) != len(table.rows):
        yield f"table final/{name} has {len(content['data'])} rows on the server, {len(table.rows)} here"
    else:
        for number, (there, here) in enumerate(zip(content["data"], table.rows, strict=True), start=1):
            for column, value, own in zip(table.columns, there, here, strict=True):
                if value != own:
                    yield f"table final/{name}, row {number}: {column} is {value!r} on the server, {own!r} here"


def _files(remote: Remote, wandb_report: WandbReport, folder: Path) -> Iterator[str]:
    try:
        artifact = remote.api.artifact(f"{remote.entity}/{remote.project}/{wandb_report.artifact_name}:latest")
        there = Path(artifact.download(root=str(folder / "artifact"), skip_cache=True))
    except Exception as error:
        yield f"artifact {wandb_report.artifact_name} could not be read back ({one_line(error)})"
        return
    for path in wandb_report.files:
        if not (there / path.name).is_file():
            yield f"artifact {wandb_report.artifact_name} has no {path.name}"
        elif (there / path.name).read_bytes() != path.read_bytes():
            yield f"artifact {wandb_report.artifact_name}: {path.name} has other bytes on the server"
