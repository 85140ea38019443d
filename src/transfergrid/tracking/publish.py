"""Send a publication to W&B: one run per row of the table, one with tables, figures and files, and the W&B Report.

Safe to do again: ids are those of the rows, so everything is brought up to date in place; what has not changed is not
sent; and what W&B shows is read back and compared.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transfergrid.errors import DataError, GridError, one_line
from transfergrid.paths import StorePaths
from transfergrid.specs import safe_name
from transfergrid.store import durable
from transfergrid.tracking.account import Account, Unreachable, end_wandb, make_api, use_environment, why_silent
from transfergrid.tracking.destinations import LEAN
from transfergrid.tracking.publication import MOST_TABLE_ROWS, Publication, row_config, row_summary, row_title
from transfergrid.tracking.publication_check import differences, report_run, row_runs
from transfergrid.tracking.workspace import save_report

DELETED = "previously created and deleted"  # in W&B's message
MOST_DELETED = 10  # times that one run may have been
WRITERS = 8  # runs open at a time; W&B's own process takes no more requests at once than that
PATIENCE_S = 30.0  # for a server that shows a moment later what it took
SETTINGS: dict[str, Any] = LEAN | {"init_timeout": 30.0, "finish_timeout": 60.0, "finish_timeout_raises": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """runs: rows of the table that are in W&B, of which `written` were new or changed. problems: one line each."""

    report_url: str
    runs: int
    written: int
    problems: tuple[str, ...]


def publish(
    account: Account,
    store: StorePaths,
    publication: Publication,
    *,
    say: Callable[[str], None],
    patience_s: float = PATIENCE_S,
) -> Published:
    """Raises Unreachable where W&B cannot be used, DataError for what it would not hold whole."""
    publication.validate()
    if reason := why_silent(account.url):
        raise Unreachable(f"{account.url} does not answer ({reason}); publish again where it does")
    problems: list[str] = []
    try:
        with _alone(store, publication.grid), _wandb_within(store, account.url) as folder:
            api = make_api(account)
            account = replace(account, entity=account.entity or api.default_entity)
            target = _Target(account, publication, folder)
            known = row_runs(api, account, publication)
            written = _write_rows(target, known)
            _retire_rows(known, publication)
            url = save_report(account, store, publication, api)
            rows = "1 row" if len(publication.rows) == 1 else f"{len(publication.rows)} rows"
            say(f"W&B: {rows} ({written} written), {url}; reading back")
            run = report_run(api, account, publication)
            if not _is_said(run, publication, url) or differences(api, account, publication, url, folder):
                _write_report_run(target, run, url)
                problems = _differences(api, target, url, patience_s)
    except GridError:
        raise
    except Exception as error:  # W&B has a class of its own for each way in which a server can refuse
        raise Unreachable(f"{account.url}: {one_line(error)}; publish again to complete it") from error
    return Published(report_url=url, runs=len(publication.rows), written=written, problems=tuple(problems))


@contextlib.contextmanager
def _alone(store: StorePaths, grid: str) -> Iterator[None]:
    """Two at once would make two reports."""
    with durable.lock(store.wandb / "locks" / f"publish-{safe_name(grid)}.lock", wait=False) as is_mine:
        if not is_mine:
            raise Unreachable(f"another process is just publishing {grid}; publish again when it has ended")
        yield


@contextlib.contextmanager
def _wandb_within(store: StorePaths, url: str) -> Iterator[Path]:
    """W&B with a folder of its own for what it would leave behind: copies of tables and of what is read back.

    Its process and what is set in the environment end with the block.
    """
    before = {name: value for name, value in os.environ.items() if name.startswith("WANDB_")}
    try:
        use_environment(store, url=url)
        with tempfile.TemporaryDirectory(dir=store.wandb, prefix="publishing-", ignore_cleanup_errors=True) as folder:
            # Silent: what W&B would print is said by this module, or found by reading back.
            os.environ |= {"WANDB_DATA_DIR": f"{folder}/data", "WANDB_CACHE_DIR": f"{folder}/cache"}
            os.environ["WANDB_SILENT"] = "true"
            try:
                yield Path(folder)
            finally:
                end_wandb()  # it writes there until it ends
    finally:
        for name in [name for name in os.environ if name.startswith("WANDB_") and name not in before]:
            del os.environ[name]
        os.environ |= before


@dataclass(frozen=True, slots=True)
class _Target:
    """folder: W&B's files of the runs that are written, gone with the publishing."""

    account: Account
    publication: Publication
    folder: Path

    def open(self, known: Any | None, run_id: str, **told: Any) -> Any:
        """W&B's run of that id, or the one that is `known` to stand in its place: W&B never takes the id of a run that
        somebody has deleted, so that then another one is made."""
        import wandb

        first = run_id if known is None else str(known.id)
        for name in (first, *(f"{first}-{number}" for number in range(2, MOST_DELETED))):
            try:
                return wandb.init(
                    id=name,
                    entity=self.account.entity,
                    project=self.account.project,
                    group=self.publication.grid[:128],
                    dir=str(self.folder),
                    mode="online",
                    resume="allow",
                    reinit="create_new",
                    settings=wandb.Settings(**SETTINGS),
                    **told,
                )
            except wandb.errors.CommError as error:
                if DELETED not in str(error):
                    raise
        raise Unreachable(f"run {run_id} was deleted on the server too often; publish in another project")


# ---------------------------------------------------------------------------------------------------------- the rows
def _write_rows(target: _Target, known: Mapping[str, Any]) -> int:
    """Runs of rows that are new or have changed, several at a time; how many. Stops at the first that fails."""
    publication, stop = target.publication, threading.Event()
    rows = [row for row in publication.rows if not _is_current(known.get(publication.summary_id(row)), row)]

    def write(row: Mapping[str, Any]) -> None:
        if stop.is_set():
            return
        try:
            _write_row(target, row, known.get(publication.summary_id(row)))
        except BaseException:
            stop.set()
            raise

    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(write, rows))
    return len(rows)


def _write_row(target: _Target, row: Mapping[str, Any], known: Any | None) -> None:
    publication = target.publication
    run = target.open(
        known,
        publication.summary_id(row),
        name=row_title(row),
        job_type="summary",
        tags=[publication.summary_tag],
    )
    run.config.update(row_config(row), allow_val_change=True)
    told = row_summary(row)
    for name in list(run.summary.keys()):
        if name not in told and not name.startswith("_"):
            del run.summary[name]
    run.summary.update(told)
    run.finish()


def _is_current(run: Any | None, row: Mapping[str, Any]) -> bool:
    """Whether the server's run says what the row says, and nothing else."""
    if run is None or run.state != "finished":
        return False
    summary = {name: value for name, value in run.summary.items() if not name.startswith("_")}
    config = {name: run.config.get(name) for name in row_config(row)}
    return summary == row_summary(row) and config == row_config(row)


def _retire_rows(known: Mapping[str, Any], publication: Publication) -> None:
    """Runs whose row is gone stay, for what was said about them, but in no table or chart of the report."""
    ids = {publication.summary_id(row) for row in publication.rows}
    for run_id, run in known.items():
        if run_id not in ids:
            run.config["current"] = False
            run.tags = [publication.former_tag]
            run.update()


# ---------------------------------------------------------------------------------------------------- tables and files
def _write_report_run(target: _Target, known: Any | None, url: str) -> None:
    import wandb

    publication = target.publication
    run = target.open(
        known,
        publication.report_id,
        name=f"report of {publication.grid}",
        job_type="report",
        tags=[publication.report_tag],
        config={"grid": publication.grid, "grids": list(publication.grids)},
    )
    with _whole_tables():
        logged: dict[str, Any] = {
            f"final/{name}": wandb.Table(columns=list(table.columns), data=[list(row) for row in table.rows])
            for name, table in publication.tables.items()
        }
        logged |= {f"figures/{name}": wandb.Image(str(path)) for name, path in publication.figures.items()}
        for name in list(run.summary.keys()):
            if name.startswith(("final/", "figures/")) and name not in logged:
                del run.summary[name]
        run.log(logged)
    run.log_artifact(_artifact(publication))
    run.summary.update({"report_url": url, "verdict": publication.headline, "content": publication.content})
    run.finish()


def _is_said(run: Any | None, publication: Publication, url: str) -> bool:
    """Whether the report run was written with just this content: it is not to grow by the same figures each time."""
    told = ("finished", publication.content, url)
    return run is not None and (run.state, run.summary.get("content"), run.summary.get("report_url")) == told


@contextlib.contextmanager
def _whole_tables() -> Iterator[None]:
    """Without this W&B cuts the copy of a table that its pages read at 10,000 rows, and says nothing."""
    import wandb

    before = wandb.Table.MAX_ROWS
    wandb.Table.MAX_ROWS = min(MOST_TABLE_ROWS, wandb.Table.MAX_ARTIFACT_ROWS)
    try:
        yield
    finally:
        wandb.Table.MAX_ROWS = before


def _artifact(publication: Publication) -> Any:
    """A new version in W&B only where a file has changed: versions go by content."""
    import wandb

    made = wandb.Artifact(
        publication.artifact_name, type="final-tables", description=f"The final tables of {publication.grid}."
    )
    for path in publication.files:
        if not path.is_file():
            raise DataError(f"{path} is missing; make the report again")
        made.add_file(str(path), name=path.name, skip_cache=True)
    return made


# ------------------------------------------------------------------------------------------------------- reading back
def _differences(api: Any, target: _Target, url: str, patience_s: float) -> list[str]:
    deadline_s, pause_s = time.monotonic() + patience_s, 0.5
    while True:
        api.flush()
        found = differences(api, target.account, target.publication, url, target.folder)
        if not found or time.monotonic() + pause_s > deadline_s:
            return found
        time.sleep(pause_s)
        pause_s *= 2
