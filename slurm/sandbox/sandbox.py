"""A throwaway real SLURM on one machine.

    python slurm/sandbox/sandbox.py start
    eval "$(python slurm/sandbox/sandbox.py env)"
    python jobs/launch_grid.py cluster=slurm device=cpu
    python slurm/sandbox/sandbox.py stop

Needs root, the Debian packages of SLURM, munge and MariaDB, and Python 3.11; about five seconds. See README.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from local_slurm import Sandbox
from machine import SandboxError, Unsupported
from slurm_conf import Options

__all__ = ["Options", "Sandbox", "SandboxError", "Unsupported"]


def default_folder() -> Path:
    return Path(tempfile.gettempdir()) / "transfergrid-slurm"


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(description="A throwaway real SLURM on one machine.")
    verbs = whole.add_subparsers(dest="verb", required=True)
    help_of = {
        "start": "start it; ends when all nodes are idle",
        "stop": "cancel all jobs, end all processes, remove the folder",
        "status": "its daemons and nodes",
        "env": "print the line that makes a shell use it",
    }
    for verb, text in help_of.items():
        added = verbs.add_parser(verb, help=text, description=text)
        added.add_argument("--dir", type=Path, default=default_folder(), help="its folder (default: %(default)s)")
        if verb == "start":
            _add_options(added)
    return whole


def _add_options(start: argparse.ArgumentParser) -> None:
    default = Options()
    numbers = {
        "--nodes": ("nodes", 1, "virtual nodes n1, n2, ..."),
        "--gpus": ("gpus", 0, "fake GPUs per node"),
        "--cpus": ("cpus", 1, "declared CPUs per node"),
        "--max-array-size": ("max_array_size", 1, "SLURM's MaxArraySize"),
        "--max-time-min": ("max_time_min", 1, "MaxTime of the partition `short`, in minutes"),
        "--kill-wait": ("kill_wait_s", 1, "seconds between SIGTERM and SIGKILL"),
        "--slurmd-timeout": ("slurmd_timeout_s", 5, "seconds until a silent node is down"),
        "--min-job-age": ("min_job_age_s", 2, "seconds until an ended job is forgotten by the controller"),
        "--requeue-wait": ("requeue_wait_s", 2, "seconds until a requeued job may start again"),
        "--max-submit-jobs": ("max_submit_jobs", 1, "jobs that root may have at a time (default: any)"),
    }
    for flag, (name, least, text) in numbers.items():
        help_text = text if getattr(default, name) is None else f"{text} (default: %(default)s)"
        kind = _at_least(least)
        start.add_argument(flag, dest=name, type=kind, default=getattr(default, name), metavar="N", help=help_text)
    start.add_argument("--no-accounting", action="store_false", dest="accounting", help="no database: no sacct")
    start.add_argument("--cgroup-memory", action="store_true", help="enforce jobs' --mem (needs cgroup v1)")
    start.add_argument(
        "--preempt", choices=("signal", "no-signal"), help="partitions low and high; does a preempted job get a signal?"
    )


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is below {least}")
        return int(text)

    return number


def main(arguments: list[str] | None = None) -> int:
    options = vars(parser().parse_args(arguments))
    verb, folder = options.pop("verb"), options.pop("dir")
    try:
        sandbox = Sandbox(folder)
        if verb == "start":
            return _start(sandbox, Options(**options))
        if not sandbox.exists():
            print(f"no sandbox in {sandbox.dir}", file=sys.stderr)
            return 0 if verb == "stop" else 1
        return {"stop": _stop, "status": _status, "env": _env}[verb](sandbox)
    except Unsupported as error:
        print(error, file=sys.stderr)
        return 2
    except (SandboxError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _start(sandbox: Sandbox, options: Options) -> int:
    if sandbox.is_running():
        print(f"# already running in {sandbox.dir}")
        return _env(sandbox)
    was_dead = sandbox.exists()
    begun = time.monotonic()
    sandbox.start(options)
    if was_dead:
        print(f"# daemons of the sandbox in {sandbox.dir} were dead; it is a new one now")
    print(f"# {len(sandbox.nodes)} nodes idle after {time.monotonic() - begun:.1f} s; to use them:")
    where = "" if sandbox.dir == default_folder() else f" --dir {sandbox.dir}"
    print(f'#   eval "$(python {sys.argv[0]} env{where})"')
    print("#   python jobs/launch_grid.py cluster=slurm device=cpu")
    return _env(sandbox)


def _stop(sandbox: Sandbox) -> int:
    sandbox.stop()
    print(f"stopped; {sandbox.dir} is gone")
    return 0


def _env(sandbox: Sandbox) -> int:
    print(f"export SLURM_CONF={sandbox.conf}")
    return 0


def _status(sandbox: Sandbox) -> int:
    for daemon in sandbox.daemons:
        process = sandbox.process(daemon)
        print(f"{daemon:<12} {'dead' if process is None else f'pid {process.pid}'}")
    if sandbox.process("slurmctld") is not None:
        print(sandbox.run("sinfo"), end="")
    return 0 if sandbox.is_running() else 1


if __name__ == "__main__":
    sys.exit(main())
