"""What a job's batch script does around its run. It is bash on the node itself, outside a container of cluster.python.

Its exit code is all that SLURM keeps of a job whose log cannot be written, so endings of ours have codes of their own
(sysexits.h, and none that python, srun or a signal gives).
"""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from transfergrid.cluster.slurm_words import SILENCE
from transfergrid.errors import GridError, classify, one_line
from transfergrid.resources import ClusterSettings
from transfergrid.store.provenance import import_path

OF_MACHINE = 71  # EX_OSERR: of python on the node; the machine cannot do it, and the log says what
DISK_FULL = 73  # EX_CANTCREAT: of python on the node; not even the failure could be recorded
ASKS_FOR_REQUEUE = 75  # EX_TEMPFAIL: of a run that has saved, and cannot put its job back itself
SETUP_FAILED = 78  # EX_CONFIG: of a line of cluster.setup
SAYS_SETUP_FAILED = "transfergrid: cluster.setup failed"

_AT_THE_END = r"""
tg_end() {{
  local code=$? name try reply
  if [ -n "${{tg_line:-}}" ]; then
    echo "{setup_failed} with exit code $code at: $tg_line" >&2
    exit {setup_code}
  fi
  if [ "$code" -eq {asks} ]; then  # the run has saved, and cannot put its job back itself: see batch_script.py
    set +e
    for name in "${{!SQUEUE_@}}" "${{!SCONTROL_@}}" SLURM_CLUSTERS; do if [ -n "$name" ]; then unset "$name"; fi; done
    for try in 1 2 3 4 5 6 7 8 9 10 11 12; do
      if ! reply=$(squeue -h -j "$SLURM_JOB_ID" -t all -O "State:30,RestartCnt:20,Name:256" 2>&1); then :
      elif ! grep -qE "^RUNNING +${{SLURM_RESTART_COUNT:-0}} +(.*-)?{token} *\$" <<< "$reply"; then
        echo "job $SLURM_JOB_ID is not in the queue as this one and running, so it is not put back"
        break
      elif reply=$(scontrol requeue "$SLURM_JOB_ID" 2>&1); then
        echo "job $SLURM_JOB_ID has saved, and its batch script has put it back into the queue"
        sleep 60  # SLURM ends it now
        break
      fi
      echo "requeue of job $SLURM_JOB_ID by its batch script: $reply"
      if ! grep -qiE {silence} <<< "$reply"; then break; fi
      sleep 5
    done
  fi
  exit "$code"
}}
trap tg_end EXIT
set -eo pipefail
"""


def prelude(settings: ClusterSettings, source: Path, *exports: str, token: str | None) -> list[str]:
    """Lines before the run: the user's own, of which none that fails is passed over, then the environment of the code
    in `source`. token: of the job, where it has one.

    They leave behind what happens after the run: its job goes back into the queue where it asks for that by its exit
    code; only the job that this script is, by SLURM's own number of it, and only while the queue shows it as running,
    with its token and as this start of it.
    """
    head = _AT_THE_END.format(
        setup_failed=SAYS_SETUP_FAILED,
        setup_code=SETUP_FAILED,
        asks=ASKS_FOR_REQUEUE,
        token=token,
        silence=shlex.quote(SILENCE),
    )
    lines = [part for line in settings.setup for part in (f"tg_line={shlex.quote(line)}", line)]
    lines += ["tg_line="] if settings.setup else []
    lines += [f"export PYTHONPATH={shlex.quote(import_path(source))}", *exports]
    lines += [f"export TRANSFERGRID_JOB_TOKEN={token}"] if token is not None else []
    return [*head.strip("\n").split("\n"), *lines]


@contextlib.contextmanager
def ends_in_one_line() -> Iterator[None]:
    """What goes wrong on the node outside of a run, as its class and one line in the job's log, and an exit code that
    tells the class where it is not a fault of the code."""
    try:
        yield
    except Exception as error:
        failure_class = classify(error)
        if failure_class == "code" and not isinstance(error, GridError):
            raise
        with contextlib.suppress(OSError):  # the log's disk may be full as well
            print(f"{failure_class}: {one_line(error)}", file=sys.stderr, flush=True)
        sys.exit({"disk_full": DISK_FULL, "environment": OF_MACHINE}.get(failure_class, 1))
