"""jobs/doctor.py: is this machine or cluster fit; each line passes or names its remedy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

from rich.console import Console

from transfergrid.cli.before import check_inputs
from transfergrid.cli.console import FAILED, OK, make_console, run_script, say
from transfergrid.cluster.child import ask
from transfergrid.config import Request, load_doctor
from transfergrid.config.help import OF_A_PLACE, OF_DOCTOR, Help
from transfergrid.doctor.checks import Check
from transfergrid.doctor.fitness import is_on_slurm, local_checks, machine_checks, slurm_checks

VISIBLE_S = 60.0  # NFS may keep the listing of a folder for so long (acdirmax)
_MARKS = {True: ("ok", "green"), False: ("FAILED", "red"), None: ("--", "yellow")}

HELP = Help(
    script="doctor.py",
    purpose="Is this machine or cluster fit? Each line passes, or names its remedy. On SLURM two jobs of seconds are"
    " sent to look at a node. It takes the keys of a launch.",
    examples=(
        " # SLURM where there is one, else this machine",
        "cluster=slurm cluster.partition=gpu store.dir=/shared/results",
        "cluster=local device=cpu",
        "grid=individual_vs_parallel  # and its data and weights",
    ),
    keys=OF_DOCTOR,
    first=("wait_s", "grid", *OF_A_PLACE),
)


def main() -> int:
    return run_script(doctor, HELP)


def doctor(arguments: Sequence[str]) -> int:
    """Exit code 0 when every line passes or could not be checked, 1 when some failed."""
    request = load_doctor(arguments)
    console = make_console()
    on_slurm = is_on_slurm(request.cluster)
    checks: Iterator[Check] = machine_checks(request.runtime, weights_named=request.weights_named)
    if request.grid is not None:
        checks = chain(checks, [_inputs_of(request.grid)])
    if on_slurm:
        nodes = slurm_checks(
            request.runtime,
            request.cluster,
            queue_s=request.wait_s,
            visible_s=VISIBLE_S,
            waiting=lambda text: say(console, f"        {text}"),
        )
        checks = chain(checks, nodes)
    else:
        checks = chain(checks, local_checks(request.runtime))
    where = "SLURM" if on_slurm else "this machine"
    say(console, f"cluster={request.cluster.name}: runs go to {where}")
    failed = [check for check in checks if not _show(console, check)]
    if failed:
        names = ", ".join(check.name for check in failed)
        say(console, f"not fit: {names}", style="red")
        return FAILED
    console.print("fit", style="green")
    return OK


def _inputs_of(grid: Request) -> Check:
    """What a launch does first: data and weights of the grid, fetched where there is a network, and verified."""
    runs = [*grid.runs.values(), *(e for run in grid.runs.values() for e in run.extractions)]
    answer = ask(check_inputs, (list(dict.fromkeys(runs)), grid.runtime), runs_follow=False)
    if answer.error is None:
        return Check("inputs", True, f"data and weights of grid {grid.grid} are here, and verified")
    remedy = answer.remedy or "put that file where it is looked for, or fetch it where there is a network"
    return Check("inputs", False, answer.error, remedy)


def _show(console: Console, check: Check) -> bool:
    """Print the line as soon as it is known; whether it did not fail."""
    mark, style = _MARKS[check.ok]
    line = f"{mark:<7} {check.name:<16} {check.message}"
    say(console, line, style=style if check.ok is not True else None, indent=25)
    if check.ok is False:
        say(console, f"{'':<7} {'':<16} -> {check.remedy}", indent=28)
    return check.ok is not False
