"""A launch as files, for sites that let no Python launcher run: job scripts, and one shell script that sends them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from transfergrid import durable
from transfergrid.cluster.groups import Group
from transfergrid.cluster.ledger import Kind, Ledger, Submission, as_line
from transfergrid.cluster.submit import (
    Launch,
    finish_name,
    finish_parameters,
    make_executor,
    python_command,
    sbatch_parameters,
    write_finish,
    write_tasks,
)

HEAD = """#!/usr/bin/env bash
# Sends the {jobs} jobs of grid {grid} in the order of their dependencies. Run again, it sends what it has not sent yet.
set -euo pipefail
cd "$(dirname "${{BASH_SOURCE[0]}}")"
ledger={ledger}

# send NAME OPTIONS...: one sbatch; its id goes into NAME.id and, so that jobs/status.py finds it, into the ledger.
send() {{
  local name=$1; shift
  if [[ ! -s $name.id ]]; then
    sed 's/"@JOB_ID@"/null/' "$name.json" >> "$ledger"
    sbatch --parsable "$@" "$name.sbatch" | cut -d ';' -f 1 > "$name.id"
    sed "s/@JOB_ID@/$(cat "$name.id")/" "$name.json" >> "$ledger"
  fi
  printf '%s  %s\\n' "$(cat "$name.id")" "$name"
}}
"""


def emit(
    folder: Path,
    launch: Launch,
    groups: Sequence[Group],
    ledger: Ledger,
    indices: Mapping[str, int],
    live: Sequence[str],
) -> Path:
    """Write <folder>/{NN-<name>.sbatch, NN-<name>.json, submit.sh}; returns submit.sh.

    indices: run_id -> place in the payload. live: ids of this grid's jobs that SLURM has already; the finish job
    comes after those, too.
    """
    durable.make_folder(folder)
    lines = [
        HEAD.format(
            jobs=sum(len(g.tasks) for g in groups) + 1,
            grid=launch.grid,
            ledger=shlex.quote(str(launch.folder / "slurm" / "submissions.jsonl")),
        )
    ]
    task_of: dict[str, str] = {}
    names: list[str] = []
    for number, group in enumerate(groups, start=1):
        name = f"{number:02d}-{group.name}"
        names.append(name)
        write_tasks(launch, group, indices)
        parents = [_parent(run_id, task_of, ledger) for run_id in group.waits_for]
        _write_job(
            folder / name,
            launch,
            _submission(launch, group.name, group.run_ids, "runs", group.resources.gpus),
            sbatch_parameters(launch, group, dependency=None),
            module="transfergrid.cluster.task",
        )
        lines.append(_send_line(name, group.edge, parents, kill=group.edge == "afterok"))
        for i, run_ids in enumerate(group.run_ids):
            task = f"$(cat {shlex.quote(name)}.id)" + (f"_{i}" if len(group.tasks) > 1 else "")
            task_of |= {run_id: task for run_id in run_ids}
    write_finish(launch)
    last = f"{len(groups) + 1:02d}-{finish_name(launch)}"
    _write_job(
        folder / last,
        launch,
        _submission(launch, finish_name(launch), ((),), "finish", 0),
        finish_parameters(launch, finish_name(launch), dependency=None),
        module="transfergrid.commands.finish",
    )
    after = [*live, *(f"$(cat {shlex.quote(name)}.id)" for name in names)]
    lines.append(_send_line(last, "afterany", after, kill=False))
    script = folder / "submit.sh"
    durable.write_bytes(script, ("\n".join(lines) + "\n").encode())
    script.chmod(0o775)
    return script


def _parent(run_id: str, task_of: Mapping[str, str], ledger: Ledger) -> str | None:
    if run_id in task_of:
        return task_of[run_id]
    known = ledger.newest(run_id)
    return None if known is None else known[0].task_id(known[1])


def _send_line(name: str, edge: str, parents: Sequence[str | None], *, kill: bool) -> str:
    known = list(dict.fromkeys(p for p in parents if p is not None))
    options = f' --dependency="{edge}:{":".join(known)}"' if known else ""
    return f"send {shlex.quote(name)}{options}" + (" --kill-on-invalid-dep=yes" if known and kill else "")


def _submission(launch: Launch, name: str, tasks: tuple[tuple[str, ...], ...], kind: Kind, gpus: int) -> Submission:
    return Submission(
        name=name,
        grid=launch.grid,
        launch=launch.folder,
        tasks=tasks,
        kind=kind,
        submitted=datetime.now(UTC),
        gpus=gpus,
    )


def _write_job(path: Path, launch: Launch, submission: Submission, parameters: dict[str, Any], *, module: str) -> None:
    """<path>.sbatch, and <path>.json: its line in the ledger, with @JOB_ID@ for the id."""
    durable.make_folder(submission.folder)
    executor = make_executor(submission.folder, launch.settings, parameters)
    if len(submission.tasks) > 1:
        executor.parameters["map_count"] = len(submission.tasks)
    command = f"{python_command(launch.settings)} -m {module} {shlex.quote(str(submission.folder))}"
    text = executor._make_submission_file_text(command, "")  # what submitit itself would send
    durable.write_bytes(path.with_name(path.name + ".sbatch"), text.encode())
    line = json.dumps(as_line(replace(submission, job_id="@JOB_ID@")))
    durable.write_bytes(path.with_name(path.name + ".json"), line.encode() + b"\n")
