"""Is in W&B what was sent? Rows, cells of the tables, bytes of the artifact and the report, as the server has them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transfergrid.errors import one_line
from transfergrid.tracking.remote import Remote, RemoteRun
from transfergrid.tracking.wandb_report import Table, WandbReport, row_config, row_summary, row_title
from transfergrid.tracking.workspace import report_difference

LARGEST_TABLE_BYTES = 1_000_000_000


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
    problems += [*_figures(run, wandb_report), *_files(remote, wandb_report, folder)]
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
            content = _downloaded(remote, run, str(there.get("path")), folder)
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


def _figures(run: RemoteRun, wandb_report: WandbReport) -> Iterator[str]:
    for name in wandb_report.figures:
        if run.summary.get(f"figures/{name}") is None:
            yield f"figure figures/{name} is not on the server"


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


def _downloaded(remote: Remote, run: RemoteRun, name: str, folder: Path) -> Any:
    """Raises KeyError where the run has no such file."""
    file = remote.files(run, [name])[name]
    path = remote.download(file, folder / "read back", largest_bytes=LARGEST_TABLE_BYTES)
    return json.loads(path.read_bytes())
