"""One run in detail: what it is, its attempts, its jobs, where its logs lie; and its logs, followed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from transfergrid.cli.console import FAILED, OK, say
from transfergrid.cli.status_table import clock, last_words, next_steps, printable, read_progress, state_text
from transfergrid.cli.status_view import View, label, read_view
from transfergrid.cluster.evidence import log_tail, read_object
from transfergrid.cluster.run_state import ENDED, RunState
from transfergrid.config.status import StatusRequest
from transfergrid.specs import RunSpec
from transfergrid.store.records import read_record

FOLLOW_POLL_S = 0.5
STATE_POLL_S = 5.0
FIRST_BYTES = 4000
LAST_LINES = 15


def show_run(console: Console, view: View) -> None:
    for line in _run_lines(view):
        say(console, line)


def _run_lines(view: View) -> Iterator[str]:
    [row] = view.rows
    state, run_id = view.state(row), row.run_id
    yield f"run       {run_id}"
    yield f"what      {label(row)}" + _settings(view.specs.get(run_id))
    yield f"state     {_state_and_reason(state)}"
    progress = read_progress(view, row)
    if progress.epochs or state.elapsed_s is not None:
        val = "" if progress.best_val is None else f", best val accuracy {progress.best_val:.2%}"
        yield f"progress  epoch {progress.epochs or '-'}{val}, {clock(state.elapsed_s) or '-'} elapsed"
    yield from _usage_lines(view, run_id)
    attempts = map(read_object, sorted(view.store.run(run_id).attempts.glob("*.json")))
    for owner in filter(None, attempts):
        job = f"job {owner['slurm_task']}" if owner.get("slurm_task") else f"process {owner.get('pid')}"
        restart = f" restart {owner['slurm_restart_count']}" if owner.get("slurm_restart_count") else ""
        where = owner.get("node") or owner.get("host")
        ended = f", ended {owner['ended']}" if owner.get("ended") else ""
        yield f"attempt   {owner.get('attempt')}: {job}{restart} on {where}, began {owner.get('started')}{ended}"
    for submission in view.ledger.submissions:
        for index, task in enumerate(submission.tasks):
            if run_id in task:
                job = submission.task_id(index) or "not confirmed"
                yield f"job       {job}, sent {submission.submitted.isoformat()} in {submission.launch.name}"
    for path in log_files(view, run_id):
        yield f"log       {path}" + ("" if path.exists() else " (not there yet)")
    lines = last_words(view, run_id, LAST_LINES)
    yield from (["last lines", *(f"    {line}" for line in lines)] if lines else [])
    yield from next_steps(view)
    yield from [view.silence] if view.silence else []


def _state_and_reason(state: RunState) -> str:
    return state_text(state) + (f": {printable(state.reason)}" if state.state in ("failed", "lost") else "")


def _usage_lines(view: View, run_id: str) -> Iterator[str]:
    """What it took, of what its job was given."""
    record = read_record(view.store.run(run_id))
    if record is None or not record.usage:
        return
    used = record.usage
    of_memory = f" of {used['memory_mib'] / 1024:.1f}" if used["memory_mib"] else ""
    cores = f"{used['cpu_s'] / max(used['wall_s'], 1e-9):.1f} of {used['cpus']} CPUs"
    gpu = "" if used["gpu_utilisation"] is None else f", GPU busy {used['gpu_utilisation']:.0%}"
    yield f"used      {used['wall_s']:.1f} s, {cores}, {used['max_rss_mib'] / 1024:.1f}{of_memory} GiB{gpu}"


def _settings(spec: RunSpec | None) -> str:
    if spec is None:
        return ""
    facts = {"weights": spec.weights_label, "protocol": spec.protocol, "epochs": getattr(spec.settings, "epochs", None)}
    return "".join(f", {name} {value}" for name, value in facts.items() if value)


def log_files(view: View, run_id: str) -> list[Path]:
    """The run's own log, and what SLURM keeps of its newest job: output, errors."""
    newest = view.ledger.newest(run_id)
    of_job = () if newest is None or newest[0].job_id is None else newest[0].logs(newest[1])
    return [view.store.run(run_id).log, *of_job]


def follow(console: Console, request: StatusRequest) -> int:
    """Print what is added to the run's logs until it ends; Ctrl-C ends that. Exit code 1 where it did not complete."""
    view = read_view(request)
    [row] = view.rows
    offsets: dict[Path, int] = {}
    headings: list[Path] = []
    shown: dict[str, Path] = {}
    looked = time.monotonic()
    try:
        while True:
            was_live = view.may_change
            for path in log_files(view, row.run_id):
                _print_added(path, offsets, headings, shown)
            if not was_live:
                break
            time.sleep(FOLLOW_POLL_S)
            if time.monotonic() - looked >= STATE_POLL_S:
                view, looked = read_view(request), time.monotonic()
    except KeyboardInterrupt:
        return OK
    state = view.state(row)
    say(console, f"{row.run_id}: {_state_and_reason(state)}")
    return FAILED if state.state in ENDED else OK


def _print_added(path: Path, offsets: dict[Path, int], headings: list[Path], shown: dict[str, Path]) -> None:
    """As `tail -f` of several files; whole lines only, and none that another file has shown: a job's log repeats what
    its run's log says."""
    try:
        size = path.stat().st_size
    except OSError:
        return
    if path not in offsets:
        text = log_tail(path, FIRST_BYTES)
        if size > FIRST_BYTES:
            text = text.partition("\n")[2]
        offsets[path] = size
    elif size > offsets[path]:
        with open(path, "rb") as file:
            file.seek(offsets[path])
            added = file.read(size - offsets[path])
        whole = added[: added.rfind(b"\n") + 1]
        offsets[path] += len(whole)
        text = whole.decode(errors="replace")
    else:
        offsets[path] = size  # it may have been cut short by a new attempt
        return
    lines = [line for line in text.splitlines() if shown.setdefault(line, path) == path]
    if not lines:
        return
    if headings[-1:] != [path]:
        headings.append(path)
        print(f"==> {path} <==")
    print(*map(printable, lines), sep="\n", flush=True)
