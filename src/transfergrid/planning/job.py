"""What runs on a node: one RunSpec, claimed, carried out, recorded. Its payload is the path of a JSON list of specs."""

from __future__ import annotations

import contextlib
import logging
import secrets
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from transfergrid.errors import (
    AlreadyRunning,
    GridError,
    Interrupted,
    Lost,
    LostFeatures,
    MachineError,
    MissingInput,
    Superseded,
    classify,
    is_of_the_machine,
    one_line,
    remedy_of,
    ulimit_behind,
)
from transfergrid.paths import RunPaths, store_paths
from transfergrid.phases import RunContext, phase_module
from transfergrid.phases._profile import is_measured, measure
from transfergrid.specs import Configuration, RunSpec, Runtime, digest, from_dict, to_dict
from transfergrid.store import durable
from transfergrid.store.attempts import Attempt, AttemptTime, IsAlive, attempt_times, begin_attempt, newest_attempt
from transfergrid.store.checkpoints import remove_checkpoints
from transfergrid.store.provenance import PACKAGE, code_hash, provenance
from transfergrid.store.records import RunRecord, checksums_of, record_head, write_record
from transfergrid.training.stopping import StopFlag
from transfergrid.training.usage import UsageMeter, host_name

logger = logging.getLogger(__name__)
Outcome = Literal[
    "completed", "reused", "failed", "interrupted", "in flight", "superseded", "lost features", "not measured"
]
# What becomes of a run whose features are damaged or gone: they are extracted again here, before it is tried once more;
# or its outcome says so; or it fails.
OnLost = Literal["extract", "tell", "fail"]
ELSEWHERE_POLL_S = 1.0


# ------------------------------------------------------------------------------------------------------------- payload
@dataclass(frozen=True, slots=True)
class Payload:
    """Runs, how they are run, and the variant names under which the grid shows those that are rows of its table.

    cluster: the `cluster` settings of the launch as they were configured, for a retry; empty for a local launch.
    """

    runs: tuple[RunSpec, ...]
    runtime: Runtime
    variants: Mapping[str, str]
    code_hash: str
    cluster: Mapping[str, Any]
    notify: str | None

    def assert_same_code(self) -> None:
        """Raises MachineError where other code is running than that of the launch."""
        if self.code_hash != code_hash():
            what = f"{PACKAGE} is code {code_hash()}, the launch was made with {self.code_hash}"
            raise MachineError(what, remedy="launch again")

    def configuration(self, run: RunSpec) -> Configuration | None:
        """The run as the grid names it; None for one that is only needed by others."""
        if run.run_id not in self.variants:
            return None
        return Configuration(grid=self.runtime.grid, variant=self.variants[run.run_id], run=run)


def write_payload(
    runs: Sequence[RunSpec],
    runtime: Runtime,
    variants: Mapping[str, str] | None = None,
    *,
    cluster: Mapping[str, Any] | None = None,
    notify: str | None = None,
) -> Path:
    """results/launches/<time>-<hash>/specs.json: what is to be run and how; all that a job is given."""
    content = to_dict(Payload(tuple(runs), runtime, variants or {}, code_hash(), cluster or {}, notify))
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    # Never two launches' folder: the first to end removes it.
    folder = f"{stamp}-{digest([content, secrets.token_hex(8)], 8)}"
    path = store_paths(runtime).launches / folder / "specs.json"
    durable.write_json(path, content)
    return path


def read_payload(path: Path) -> Payload:
    """What another release wrote beside the fields of this one is passed over. Raises KeyError where one is missing."""
    content = durable.read_json(path)
    return from_dict(Payload, {f.name: content[f.name] for f in fields(Payload)})


# ------------------------------------------------------------------------------------------------------------- one run
def carry_out(
    spec: RunSpec,
    runtime: Runtime,
    *,
    stop: StopFlag | None = None,
    is_alive: IsAlive | None = None,
    on_lost: OnLost = "extract",
) -> Outcome:
    """Run one spec to its record, unless it is done or another process has it. Never raises but for programming errors
    in the bookkeeping itself: what goes wrong in a phase is written into the record, with its class.

    stop: a flag that is installed already. is_alive: how to ask SLURM whether an earlier attempt's job is alive.
    """
    outcome = _carried_out(spec, replace(runtime, profile="no"), stop, is_alive, on_lost)
    asked = spec.phase == "evaluate" and runtime.profile != "no" and outcome in ("completed", "reused")
    return _measure(spec, runtime, stop) if asked and not is_measured(spec, runtime) else outcome


def _measure(spec: RunSpec, runtime: Runtime, stop: StopFlag | None) -> Outcome:
    """What using its network costs, once the run itself is done, whose record stays as it is."""
    with _logging_to(store_paths(runtime).run(spec.run_id).log, "measuring its network"):
        try:
            measure(spec, runtime, stop)
            return "completed"
        except (Interrupted, KeyboardInterrupt) as error:
            logger.warning("interrupted: %s", one_line(error))
            return "interrupted"
        except (GridError, OSError) as error:
            logger.error("%s", one_line(error))
            return "not measured"


def _carried_out(
    spec: RunSpec, runtime: Runtime, stop: StopFlag | None, is_alive: IsAlive | None, on_lost: OnLost
) -> Outcome:
    outcome = _claim_and_run(spec, runtime, stop, is_alive, fails="fail" == on_lost)
    if outcome != "lost features" or on_lost == "tell":
        return outcome
    for extraction in spec.extractions:
        while (extracted := carry_out(extraction, runtime, stop=stop, is_alive=is_alive)) == "in flight":
            if stop is not None and stop.signal is not None:
                return "interrupted"
            time.sleep(ELSEWHERE_POLL_S)
        if extracted == "interrupted":
            return "interrupted"
    return _claim_and_run(spec, runtime, stop, is_alive, fails=True)


def _claim_and_run(
    spec: RunSpec, runtime: Runtime, stop: StopFlag | None, is_alive: IsAlive | None, *, fails: bool
) -> Outcome:
    """fails: a run whose features are lost has failed."""
    paths = store_paths(runtime).run(spec.run_id)
    if phase_module(spec.phase).is_done(spec, runtime):
        return "reused"
    try:
        with (
            begin_attempt(paths, spec, is_alive=is_alive) as attempt,
            _logging_to(paths.log, f"attempt {attempt.number}"),
        ):
            if phase_module(spec.phase).is_done(spec, runtime):  # it ended while this process was starting
                return "reused"
            return _attempt(spec, runtime, attempt, stop, fails=fails)
    except AlreadyRunning as error:
        logger.info("%s", error)
        return "in flight"
    except Superseded as error:
        logger.warning("%s", error)
        return "superseded"


def _attempt(spec: RunSpec, runtime: Runtime, attempt: Attempt, installed: StopFlag | None, *, fails: bool) -> Outcome:
    began = time.monotonic()
    try:
        from transfergrid.training.device import device_name, device_of, gpus_given, prepare_process  # torch

        assert_ready(spec, runtime)  # SLURM counts a dependency on a job it has forgotten as satisfied
        prepare_process(runtime)
        name = device_name(device_of(runtime))
        if (before := attempt.note_device(name)) is not None:
            logger.warning("computed on %s until now, on %s from here on; last bits may differ", before, name)
        if installed is not None and installed.signal is not None:
            raise Interrupted(f"stopped by signal {installed.signal} before it began", remedy="launch again")
        stop = installed or StopFlag()
        with stop.installed(), UsageMeter(gpus=gpus_given(device_of(runtime))) as usage:
            record = phase_module(spec.phase).run(RunContext(spec, runtime, attempt, stop, usage))
        attempt.assert_newest()  # the last look before the record, which makes these numbers the run's
        bound = replace(record, usage=usage.summary(), sha256=checksums_of(attempt.paths))
        write_record(attempt.paths, replace(bound, attempts=_attempts_until_now(attempt.paths)))
        remove_checkpoints(attempt.paths)  # after the record: a kill between the two costs disk space, not the run
        return "completed"
    except (Interrupted, KeyboardInterrupt) as error:
        logger.warning("interrupted: %s", one_line(error))
        return "interrupted"
    except Superseded:
        raise
    except BaseException as error:
        if isinstance(error, LostFeatures) and not fails:
            logger.warning("%s", one_line(error))
            return "lost features"
        # Of a full disk, a missing file, a lock: where in the code that was seen tells nobody anything.
        is_told = isinstance(error, GridError) or ulimit_behind(error) is not None
        is_told |= isinstance(error, OSError | ImportError) and classify(error) != "code"
        logger.error("%s%s", one_line(error), "" if is_told else "\n" + traceback.format_exc())
        attempt.assert_newest()
        write_failure(attempt.paths, spec, error, attempt=attempt.number, phase_s=time.monotonic() - began)
        return "failed"


def write_failure(
    paths: RunPaths, spec: RunSpec, error: BaseException, *, attempt: int, phase_s: float = 0.0
) -> RunRecord:
    """The record of a run that failed, with its class and one line of reason; a fault of the machine's names it."""
    where = f" (on {host_name()})" if is_of_the_machine(error) else ""
    limit = ulimit_behind(error)
    where += f"; {limit} there" if limit is not None else ""
    record = RunRecord(
        run_id=spec.run_id,
        spec=spec,
        status="failed",
        failure_class=classify(error),
        error=one_line(error, with_remedy=False) + where,
        remedy=remedy_of(error),
        details={"signal": error.signal} if isinstance(error, Lost) and error.signal is not None else {},
        phase_s=phase_s,
        attempt=attempt,
        attempts=_attempts_until_now(paths),
        provenance=provenance() | {"ended": datetime.now(UTC).isoformat(timespec="seconds")},
    )
    write_record(paths, record)
    return record


def _attempts_until_now(paths: RunPaths) -> tuple[AttemptTime, ...]:
    """The newest one lasts until now, unless its end is known."""
    *earlier, newest = attempt_times(paths) or (None,)
    if newest is None:
        return ()
    if newest.wall_s is None:
        since = datetime.now(UTC) - datetime.fromisoformat(newest.started)
        newest = replace(newest, wall_s=round(max(0.0, since.total_seconds()), 3))
    return (*(attempt for attempt in earlier if attempt is not None), newest)


def record_loss(spec: RunSpec, runtime: Runtime, error: BaseException) -> None:
    """For a process that died without a word: record its failure, unless somebody else has the run by now."""
    paths = store_paths(runtime).run(spec.run_id)
    with durable.lock(paths.lock, wait=False) as obtained:
        head = record_head(paths)
        if obtained and (head is None or head.status != "completed"):
            write_failure(paths, spec, error, attempt=newest_attempt(paths))


def assert_ready(spec: RunSpec, runtime: Runtime) -> None:
    """The second lock: a job checks what it needs itself, because a scheduler's word for it can be wrong.

    Raises MissingInput naming the run to repeat, LostFeatures where nothing but that stands in the way.
    """
    for extraction in spec.extractions:
        if not phase_module("extract").is_done(extraction, runtime):
            paths = store_paths(runtime).run(extraction.run_id)
            head = record_head(paths)
            ended_well = newest_attempt(paths) == 0 if head is None else head.status == "completed"
            kind = LostFeatures if ended_well else MissingInput
            raise kind(f"features of {extraction.model} are missing", remedy=f"run {extraction.run_id} first")
    for run_id in spec.needs:
        head = record_head(store_paths(runtime).run(run_id))
        if head is None or head.status != "completed":
            raise MissingInput(f"{run_id} has not completed", remedy="run it first")


@contextlib.contextmanager
def _logging_to(path: Path, what: str) -> Iterator[None]:
    """Everything this process logs also goes to the run's log.txt, one section per attempt."""
    with durable.explained(path):
        handler = durable.LogFile(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    assert handler.stream is not None
    durable.share(handler.stream.fileno(), path.parent)
    root = logging.getLogger("transfergrid")
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    root.info("%s begins", what)
    try:
        yield
    finally:
        root.info("%s ends", what)
        root.removeHandler(handler)
        handler.close()


# --------------------------------------------------------------------------------------------------------- entry point
def main() -> int:
    """`python -m transfergrid.planning.job PAYLOAD INDEX`: exit code 0 where the run is done afterwards, else 1."""
    payload = read_payload(Path(sys.argv[1]))
    outcome = carry_out(payload.runs[int(sys.argv[2])], payload.runtime)
    return 0 if outcome in ("completed", "reused") else 1


if __name__ == "__main__":
    sys.exit(main())
