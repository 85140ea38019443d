"""What a W&B server holds of a run, and how that differs from the store: what is to be sent, and what was not kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transfergrid.names import some
from transfergrid.store.metrics_log import TIMING_FIELDS
from transfergrid.tracking.description import as_line
from transfergrid.tracking.ending import Ending
from transfergrid.tracking.remote import Remote, RemoteRun, md5_of

STATES = {"completed": "finished", "failed": "failed"}  # of a record -> of a W&B run
SHOWN = 3  # differences of one kind that are named


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerRun:
    """listed: as the server lists it. lines: by their number, as they were in metrics.jsonl; where a number was sent
    twice, what was sent later. files: name -> MD5 in base64, as W&B states it."""

    listed: RemoteRun
    lines: Mapping[int, dict[str, Any]]
    files: Mapping[str, str]


def read_run(remote: Remote, run_id: str, *, files: Sequence[str]) -> ServerRun | None:
    """None where the server has no such run. files: names of those that are looked for. Raises as Remote does."""
    run = remote.run(run_id)
    if run is None:
        return None
    rows = [as_line(row) for row in remote.history(run) if "line" in row]
    return ServerRun(
        listed=run,
        lines={int(row["line"]): row for row in rows},
        files={name: file.md5 for name, file in remote.files(run, files).items()},
    )


def lines_held(found: ServerRun, lines: Sequence[Mapping[str, Any]]) -> int:
    """How many of the first lines the server has as they are, but for what was measured on a clock."""
    for count, line in enumerate(lines):
        held = found.lines.get(int(line["line"]))
        if held is None or _timeless(held) != _timeless(line):
            return count
    return len(lines)


def differences(
    found: ServerRun | None,
    lines: Sequence[Mapping[str, Any]],
    *,
    ending: Ending | None = None,
    tag: str = "",
) -> list[str]:
    """What the server lacks or has otherwise, one line each; [] where it holds the run as the store does.

    lines: those that a checkpoint or the record covers. ending: what is told with the record.
    """
    if found is None:
        return ["the server has no such run"]
    told = []
    wrong = [n for line in lines if _timeless(found.lines.get(n := int(line["line"]), {})) != _timeless(line)]
    if wrong:
        told.append(f"{len(wrong)} of {len(lines)} lines are missing or other ones: {some(wrong, SHOWN)}")
    is_whole = ending is not None and ending.record.status == "completed"  # a failed one may have gone back since
    if extra := sorted(set(found.lines) - {int(line["line"]) for line in lines}) if is_whole else []:
        told.append(f"lines that the store no longer has, and only another project can lack: {some(extra, SHOWN)}")
    if tag and tag not in found.listed.tags:
        told.append(f"no tag {tag!r}")
    if ending is None:
        return told
    held = found.listed.summary
    if other := [
        f"{name} is {held.get(name)!r}, not {v!r}" for name, v in ending.summary.items() if held.get(name) != v
    ]:
        told.append(f"summary: {some(other, SHOWN)}")
    if found.listed.state != STATES[ending.record.status]:
        told.append(f"state is {found.listed.state!r}, not {STATES[ending.record.status]!r}")
    for path in ending.files:
        if found.files.get(path.name) != md5_of(path):
            told.append(f"file {path.name} is {'another one' if path.name in found.files else 'missing'}")
    return told


def _timeless(line: Mapping[str, Any]) -> dict[str, Any]:
    # W&B drops a value that is None, and gives 0.0 back as 0.
    return {name: value for name, value in line.items() if name not in TIMING_FIELDS and value is not None}
