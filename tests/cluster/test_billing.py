"""The join with SLURM's accounting: which of its lines are a run's, and what of them it is billed for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cluster_cases import scratch_run

from transfergrid.cluster import settle as settling
from transfergrid.cluster import slurm
from transfergrid.cluster.accounting import gpus_of, parse_sacct
from transfergrid.cluster.ledger import Ledger, Submission
from transfergrid.cluster.settle import Settled, settle_bills
from transfergrid.errors import MachineError
from transfergrid.paths import StorePaths
from transfergrid.store import durable
from transfergrid.store.bills import Bill, read_bill

SENT = datetime(2026, 11, 20, 12, 59, 50, tzinfo=UTC)
A, B = (scratch_run(seed).run_id for seed in (0, 1))


class Accounting:
    """Answers as sacct would; `lines` are its output, None where it does not answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lines: Sequence[str] | None = ()
        self.asked: list[list[str]] = []
        monkeypatch.setattr(slurm, "run", self.run)

    def run(self, command: list[str], **_: Any) -> str:
        self.asked.append(command)
        if self.lines is None:
            raise MachineError("accounting is disabled")
        return "".join(f"{line}\n" for line in self.lines)


@pytest.fixture
def accounting(monkeypatch: pytest.MonkeyPatch) -> Accounting:
    return Accounting(monkeypatch)


@pytest.fixture
def store(tmp_path: Path) -> StorePaths:
    return StorePaths(tmp_path)


def line(
    job_id: str, start: str, end: str, seconds: int, tres: str = "cpu=4,gres/gpu=1", submit: str = "12:59:52"
) -> str:
    times = [t if t == "Unknown" else f"2026-11-20T{t}" for t in (submit, start, end)]
    allocated = f"billing=4,{tres},mem=16G"
    return "|".join((job_id, "COMPLETED", "0:0", "n1", *times, str(seconds), allocated, "1G", "", "alpha", "name"))


def attempt(store: StorePaths, run_id: str, number: int, task: str | None, at: str, wall_s: float | None) -> None:
    owner = {"started": f"2026-11-20T{at}+00:00", "slurm_task": task}
    durable.write_json(store.run(run_id).attempt(number), owner | ({} if wall_s is None else {"wall_s": wall_s}))


def ledger(*tasks: tuple[str, ...], job_id: str = "7") -> Ledger:
    submission = Submission(name="s", grid="g", launch=Path("x"), tasks=tasks, job_id=job_id, submitted=SENT, gpus=1)
    return Ledger([submission] if tasks else [])


def bill(store: StorePaths, run_id: str) -> Bill:
    found = read_bill(store.run(run_id))
    assert found is not None
    return found


def test_a_run_is_billed_for_every_restart_of_its_job(accounting: Accounting, store: StorePaths) -> None:
    attempt(store, A, 1, "7", "13:00:05", None)  # killed
    attempt(store, A, 2, "7", "13:10:03", 50.0)
    accounting.lines = [line("7", "13:00:00", "13:02:00", 120), line("7", "13:10:00", "13:11:00", 60, "gres/gpu=2")]
    assert settle_bills(store, ledger((A,)), [A]) == Settled(changed=True, is_final=True)
    found = bill(store, A)
    assert (found.wall_s, found.gpu_s, found.is_closed, found.attempt) == (180.0, 120.0 + 120.0, True, 2)
    (command,) = accounting.asked
    assert command[:5] == ["sacct", "-n", "-P", "-X", "-D"] and command[command.index("-j") + 1] == "7"
    assert command[command.index("-S") + 1] == "2026-11-19T12:59:50"
    assert settle_bills(store, ledger((A,)), [A]) == Settled(changed=False, is_final=True)
    assert len(accounting.asked) == 1  # it is not asked again


def test_runs_that_share_a_job_are_billed_by_their_own_time_in_it(accounting: Accounting, store: StorePaths) -> None:
    attempt(store, A, 1, "7", "13:00:10", 30.0)
    attempt(store, B, 1, "7", "13:00:40", 10.0)
    accounting.lines = [line("7", "13:00:00", "13:01:00", 60, "gres/gpu=2")]
    settle_bills(store, ledger((A, B)), [A])
    assert [bill(store, r).gpu_s for r in (A, B)] == [90.0, 30.0]
    assert [bill(store, r).wall_s for r in (A, B)] == [45.0, 15.0]


def test_a_restart_in_which_no_run_began_is_shared_in_equal_parts(accounting: Accounting, store: StorePaths) -> None:
    attempt(store, A, 1, "7", "13:10:10", 30.0)
    attempt(store, B, 1, "7", "13:10:40", 10.0)
    accounting.lines = [line("7", "13:00:00", "13:00:20", 20), line("7", "13:10:00", "13:11:00", 40)]
    settle_bills(store, ledger((A, B)), [A, B])
    assert [bill(store, r).gpu_s for r in (A, B)] == [10.0 + 30.0, 10.0 + 10.0]


def test_tasks_of_an_array_are_told_apart_and_waiting_ones_left_out(accounting: Accounting, store: StorePaths) -> None:
    attempt(store, A, 1, "7_0", "13:00:10", 30.0)
    attempt(store, B, 1, "7_1", "13:00:10", 30.0)
    accounting.lines = [line("7_0", "13:00:00", "13:01:00", 60), line("7_1", "13:00:00", "13:01:40", 100)]
    accounting.lines += ["7_[2-9]|PENDING|0:0||2026-11-20T12:59:52|Unknown|Unknown|0||1G||alpha|name"]
    settle_bills(store, ledger((A,), (B,)), [A, B])
    assert [bill(store, r).gpu_s for r in (A, B)] == [60.0, 100.0]
    assert len(accounting.asked) == 1


def test_a_job_that_goes_on_leaves_the_bill_open_and_is_asked_about_again(
    accounting: Accounting, store: StorePaths
) -> None:
    attempt(store, A, 1, "7", "13:00:05", 50.0)
    accounting.lines = [line("7", "13:00:00", "Unknown", 55)]
    assert settle_bills(store, ledger((A,)), [A]) == Settled(changed=True, is_final=False)
    assert (bill(store, A).gpu_s, bill(store, A).is_closed) == (55.0, False)
    accounting.lines = [line("7", "13:00:00", "13:01:00", 60)]
    assert settle_bills(store, ledger((A,)), [A]) == Settled(changed=True, is_final=True)
    assert bill(store, A).gpu_s == 60.0


def test_accounting_that_has_not_heard_of_it_yet_is_waited_for(accounting: Accounting, store: StorePaths) -> None:
    attempt(store, A, 1, "7", "13:00:05", 50.0)
    assert settle_bills(store, ledger((A,)), [A]) == Settled(changed=False, is_final=False)


def test_what_was_kept_stays_where_accounting_has_forgotten_it(accounting: Accounting, store: StorePaths) -> None:
    attempt(store, A, 1, "7", "13:00:05", 50.0)
    accounting.lines = [line("7", "13:00:00", "13:01:00", 60)]
    settle_bills(store, ledger((A,)), [A])
    attempt(store, A, 2, "9", "15:00:05", 50.0)
    accounting.lines = [line("9", "15:00:00", "15:00:30", 30, submit="14:59:00")]
    assert settle_bills(store, Ledger([]), [A]).is_final
    assert (bill(store, A).gpu_s, bill(store, A).attempt) == (90.0, 2)


def test_a_job_of_the_same_number_that_is_not_ours_is_not_billed(accounting: Accounting, store: StorePaths) -> None:
    attempt(store, A, 1, "7", "13:00:05", 50.0)
    accounting.lines = [line("7", "03:00:00", "04:00:00", 3600, submit="02:00:00")]
    assert not settle_bills(store, ledger((A,)), [A]).changed
    assert read_bill(store.run(A)) is None


def test_of_two_clusters_with_that_number_the_one_is_billed_in_which_it_ran(
    accounting: Accounting, store: StorePaths
) -> None:
    attempt(store, A, 1, "7", "13:00:05", 50.0)
    ours = line("7", "13:00:00", "13:01:00", 60)
    accounting.lines = [ours, line("7", "03:00:00", "04:00:00", 3600, submit="02:00:00").replace("alpha", "beta")]
    settle_bills(store, ledger((A,)), [A])
    assert [(j.cluster, j.elapsed_s) for j in bill(store, A).jobs] == [("alpha", 60.0)]


def test_of_jobs_of_one_number_only_that_with_our_token_on_our_cluster_is_billed(
    accounting: Accounting, store: StorePaths
) -> None:
    attempt(store, A, 1, "7", "13:00:05", 50.0)
    [sent] = ledger((A,)).submissions
    proven = Ledger([replace(sent, cluster="alpha", token="4f0c1b2a9d3e")])
    ours = line("7", "13:00:00", "13:01:00", 60).replace("|name", "|tg-mine-4f0c1b2a9d3e")
    accounting.lines = [line("7", "13:00:00", "13:02:00", 120), ours.replace("alpha", "beta")]
    assert not settle_bills(store, proven, [A]).changed
    accounting.lines = [*accounting.lines, ours]
    settle_bills(store, proven, [A])
    assert [(j.cluster, j.elapsed_s) for j in bill(store, A).jobs] == [("alpha", 60.0)]


def test_two_clusters_that_gave_one_number_to_two_of_our_jobs_bill_each_its_own(
    accounting: Accounting, store: StorePaths
) -> None:
    tokens = {"alpha": "4f0c1b2a9d3e", "beta": "0123456789ab"}
    for run_id, cluster in ((A, "alpha"), (B, "beta")):
        attempt(store, run_id, 1, "7", "13:00:05", 50.0)
        owner = durable.read_json(store.run(run_id).attempt(1))
        durable.write_json(store.run(run_id).attempt(1), owner | {"slurm_cluster": cluster})
    sent = [
        replace(ledger((run_id,)).submissions[0], name=cluster, cluster=cluster, token=tokens[cluster])
        for run_id, cluster in ((A, "alpha"), (B, "beta"))
    ]
    lines = [line("7", "13:00:00", f"13:0{m}:00", 60 * m).replace("|name", f"|n-{tokens[c]}").replace("alpha", c)
             for m, c in ((1, "alpha"), (2, "beta"))]  # fmt: skip
    accounting.lines = lines
    assert settle_bills(store, Ledger(sent), [A, B]) == Settled(changed=True, is_final=True)
    assert sorted(command[:3] for command in accounting.asked) == [["sacct", "-M", "alpha"], ["sacct", "-M", "beta"]]
    assert [[(j.cluster, j.elapsed_s) for j in bill(store, r).jobs] for r in (A, B)] == [
        [("alpha", 60.0)],
        [("beta", 120.0)],
    ]
    assert bill(store, A).is_closed and bill(store, B).is_closed


@pytest.mark.parametrize("task", [None, "7"])
def test_without_accounting_or_jobs_nothing_is_written(
    accounting: Accounting, store: StorePaths, task: str | None
) -> None:
    attempt(store, A, 1, task, "13:00:05", 50.0)
    accounting.lines = None
    assert settle_bills(store, Ledger([]), [A, "never-begun"]) == Settled(changed=False, is_final=True)
    assert len(accounting.asked) == (0 if task is None else 1) and not store.run(A).bill.exists()


def test_a_store_that_cannot_be_written_is_read_all_the_same(
    accounting: Accounting, store: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt(store, A, 1, "7", "13:00:05", 50.0)
    accounting.lines = [line("7", "13:00:00", "13:01:00", 60)]

    def refuse(*_: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(settling, "write_bill", refuse)
    assert settle_bills(store, ledger((A,)), [A]) == Settled(changed=False, is_final=True)


@pytest.mark.parametrize(
    ("tres", "gpus"),
    [
        ("billing=4,cpu=4,gres/gpu:a100=2,gres/gpu=2,mem=16G,node=1", 2),
        ("cpu=4,gres/gpu:a100=2,gres/gpu:v100=1", 3),
        ("cpu=4,gres/gpu:a100=2,gres/gpumem=80G", 2),
        ("cpu=4,mem=16G", 0),
        ("", 0),
    ],
)
def test_gpus_are_counted_from_what_was_allocated(tres: str, gpus: int) -> None:
    assert gpus_of(tres) == gpus


def test_a_name_may_hold_the_separator() -> None:
    (found,) = parse_sacct(
        "7|COMPLETED|0:0|n1|2026-11-20T12:00:00|2026-11-20T13:00:00|2026-11-20T13:00:09|9|gres/gpu=2|1G||c|a|b\n"
    )
    assert (found.name, found.gpus, found.elapsed_s) == ("a|b", 2, 9.0)


def test_a_hand_written_job_is_billed_on_the_cluster_that_its_attempt_names(
    accounting: Accounting, store: StorePaths
) -> None:
    attempt(store, A, 1, "7", "13:00:05", 50.0)
    owner = durable.read_json(store.run(A).attempt(1))
    durable.write_json(store.run(A).attempt(1), owner | {"slurm_cluster": "beta"})
    accounting.lines = [line("7", "13:00:00", "13:02:00", 120)]
    assert not settle_bills(store, Ledger([]), [A]).changed


def test_lines_that_are_none_of_a_started_job_are_left_out(accounting: Accounting, store: StorePaths) -> None:
    attempt(store, A, 1, "7", "13:00:05", 50.0)
    accounting.lines = ["", "7|x", "7|PENDING|0:0||2026-11-20T12:59:52|Unknown|Unknown|0||1G||alpha|name"]
    assert not settle_bills(store, ledger((A,)), [A]).changed
