"""The finish job: where it may run, what became of it, and that a queue without a place for it is no refusal."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from typing import Any, cast

import pytest
from cluster_cases import planned, scratch_run
from replayed_slurm import ReplayedSlurm, ago, completed, make_grid, queue_line, submit
from rich.console import Console
from state_cases import a_slurm, a_store

from transfergrid.cli.sending import send_what_fits
from transfergrid.cluster import slurm as slurm_commands
from transfergrid.cluster.evidence import FINISHED
from transfergrid.cluster.finish_job import find_place, is_due, settings_of_finish
from transfergrid.cluster.groups import Group, make_groups
from transfergrid.cluster.ledger import Submission, read_ledger, record
from transfergrid.cluster.limits import Limits, NodeShape, Partition
from transfergrid.cluster.ownership import Here
from transfergrid.cluster.run_state import RunState
from transfergrid.cluster.slurm import SlurmRefused
from transfergrid.cluster.states import take_snapshot
from transfergrid.cluster.submit import Sender
from transfergrid.paths import StorePaths
from transfergrid.resources import ClusterSettings, Resources

store, slurm = a_store, a_slurm

GPU_NODE = NodeShape(count=2, usable=2, cpus=32, mem_mib=256_000, gpus_by_type={"a100": 4})
CPU_NODE = replace(GPU_NODE, gpus_by_type={})
GPU = Partition(name="gpu", shapes=(GPU_NODE,), is_default=True, max_time_min=1440)
SETTINGS = ClusterSettings(name="lab", kind="slurm", resources=Resources(partition="gpu", gpu_type="a100"))
REFUSED = "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, ...)"
NO_ROOM = "sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed: Job violates ..."


def limits(*partitions: Partition) -> Limits:
    found = {p.name: p for p in partitions}
    return Limits(here=Here("lab"), max_array_size=1001, max_jobs=None, partitions=found)


class Asked:
    """sbatch --test-only: refuses, with these words, what asks for a partition that is listed and for no GPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **refused: str) -> None:
        self.refused, self.calls = refused, list[str]()
        monkeypatch.setattr(slurm_commands, "test_only", self.answer)

    def answer(self, options: list[str]) -> str | None:
        text = " ".join(options)
        self.calls.append(text)
        for partition, said in self.refused.items():
            if f"--partition={partition} " in f"{text} " and "gpu:" not in text and "gpus" not in text:
                raise SlurmRefused("QOSMinGRES", said)
        return None


# --------------------------------------------------------------------------------------------------------------- place
def test_where_the_runs_partition_takes_it_it_goes_there_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch)
    place = find_place(SETTINGS, limits(GPU))
    assert (place.resources.partition, place.resources.gpus, place.note) == ("gpu", 0, "")
    assert (place.resources.cpus, place.resources.mem_gb, place.resources.timeout_min) == (2, 4.0, 60)
    assert len(asked.calls) == 1 and "--time=60" in asked.calls[0]
    short = find_place(SETTINGS, limits(replace(GPU, max_time_min=20)))
    assert short.resources.timeout_min == 20


@pytest.mark.parametrize("by", ["its QOS", "sbatch"])
def test_where_that_starts_only_jobs_with_gpus_another_partition_is_taken_and_the_plan_says_so(
    monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    Asked(monkeypatch, **({"gpu": REFUSED} if by == "sbatch" else {}))
    gpu = replace(GPU, qos="big", demands_gpu=by == "its QOS")
    closed, other = replace(GPU, name="a", state="DOWN"), replace(GPU, name="b")
    cpu = Partition(name="long", shapes=(CPU_NODE,), max_time_min=30)
    place = find_place(SETTINGS, limits(gpu, closed, other, cpu))
    assert (place.resources.partition, place.resources.gpus, place.resources.timeout_min) == ("long", 0, 30)
    assert place.note.startswith("the finish job goes to partition long, since ") and "gpu" in place.note


def test_where_nothing_takes_it_without_a_gpu_it_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    Asked(monkeypatch, gpu=REFUSED, b=REFUSED)
    place = find_place(SETTINGS, limits(GPU, replace(GPU, name="b")))
    assert (place.resources.partition, place.resources.gpus, place.resources.gpu_type) == ("gpu", 1, "a100")
    assert place.note.startswith("the finish job asks for 1 GPU, since SLURM refuses it in partition gpu (QOSMinGRES)")


def test_what_the_user_named_for_it_is_taken_or_refused_never_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    Asked(monkeypatch, gpu=REFUSED)
    place = find_place(
        replace(SETTINGS, finish_partition="gpu"), limits(GPU, Partition(name="cpu", shapes=(CPU_NODE,)))
    )
    assert place.refusal.startswith("the finish job (cluster.finish_partition): SLURM refuses it in partition gpu (")


def test_a_full_queue_is_no_reason_to_look_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    Asked(monkeypatch, gpu=NO_ROOM)
    assert find_place(SETTINGS, limits(GPU, Partition(name="cpu", shapes=(CPU_NODE,)))).resources.partition == "gpu"


def test_it_is_not_held_by_what_holds_the_runs() -> None:
    settings = replace(SETTINGS, sbatch={"hold": True, "begin": "22:00", "mail-type": "END", "gres": "lscratch:10"})
    assert settings_of_finish(settings, Resources(gpus=0)).sbatch == {"mail-type": "END"}
    assert settings_of_finish(settings, Resources(gpus=1)).sbatch == {"mail-type": "END", "gres": "lscratch:10"}


# --------------------------------------------------------------------------------------------------------------- state
def send_finish(store: StorePaths, seconds_ago: float = 3000) -> Submission:
    sent = replace(submit(store, (), job_id="9", seconds_ago=seconds_ago, name="tg-g-finish"), kind="finish")
    record(sent)
    return sent


def finish_of(store: StorePaths) -> RunState | None:
    return take_snapshot(["a"], store, read_ledger(store), grid="g").finish


STATES: dict[str, tuple[str, str, bool, str]] = {
    "waits": (queue_line("9", "PENDING", "Dependency"), "pending", False, "waits for what it needs (Dependency)"),
    "held": (queue_line("9", "PENDING", "JobHeldUser"), "pending", False, "held; `scontrol release` lets it start"),
    "never starts": (queue_line("9", "PENDING", "QOSMinGRES"), "pending", True, "asks for less than its QOS demands"),
    "runs": (queue_line("9", "RUNNING", node="n1"), "running", False, ""),
    "done": (queue_line("9", "COMPLETED", started=ago(900), used="1:00"), "done", False, ""),
    "failed": (queue_line("9", "FAILED", started=ago(900), used="1:00", status=256), "lost", True, "exit code 1"),
    "cancelled": (queue_line("9", "CANCELLED", started=ago(900), used="1:00"), "cancelled", True, "was cancelled"),
    "gone": ("", "lost", True, "SLURM no longer knows job 9"),
    "a stranger's": (queue_line("9", "RUNNING", name="theirs", uid=4711), "lost", True, "no longer knows job 9"),
}


@pytest.mark.parametrize(("queue", "state", "due", "reason"), STATES.values(), ids=STATES)
def test_its_state_is_told_as_a_runs_is(
    store: StorePaths, slurm: ReplayedSlurm, queue: str, state: str, due: bool, reason: str
) -> None:
    submit(store, ("a",))
    send_finish(store)
    completed(store, "a")
    slurm.answers("squeue", queue)
    found = finish_of(store)
    assert found is not None and (found.state, is_due(found)) == (state, due)
    assert reason in found.reason


def test_one_that_said_it_has_finished_is_done_and_nobody_is_asked(store: StorePaths, slurm: ReplayedSlurm) -> None:
    submit(store, ("a",))
    sent = send_finish(store)
    completed(store, "a")
    sent.folder.mkdir(parents=True)
    (sent.folder / FINISHED).touch()
    found = finish_of(store)
    assert found is not None and found.state == "done" and slurm.calls == []


def test_it_is_missing_where_jobs_were_sent_after_it_and_unknown_to_a_grid_without_jobs(
    store: StorePaths, slurm: ReplayedSlurm
) -> None:
    assert finish_of(store) is None
    record(replace(submit(store, ("s",), job_id="6", name="sweep-1"), sender="sweep"))  # has none by design
    assert finish_of(store) is None
    send_finish(store)
    submit(store, ("a",), seconds_ago=60)
    completed(store, "a")
    found = finish_of(store)
    assert found is not None and (found.state, is_due(found)) == ("not submitted", True)


def test_status_has_a_line_for_it_and_the_command_that_makes_the_table_meanwhile(
    store: StorePaths, slurm: ReplayedSlurm, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transfergrid.cli.status import status

    monkeypatch.chdir(store.root.parent)
    make_grid(store, "a")
    submit(store, ("a",))
    send_finish(store)
    completed(store, "a", metrics={"val_accuracy": 0.5})
    slurm.answers("squeue", queue_line("9", "PENDING", "QOSMinGRES"))
    assert status(["grid=g"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "finish job 9: pending: asks for less than its QOS demands (QOSMinGRES); never starts" in said
    assert "; launch again sends it; the table until then: python jobs/report.py grid=g" in said
    slurm.answers("squeue", queue_line("9", "PENDING", "Dependency"))
    assert status(["grid=g"]) == 0
    assert "finish job 9: pending: waits for what it needs (Dependency) grid g" in " ".join(
        capsys.readouterr().out.split()
    )


# ------------------------------------------------------------------------------------------------------------- no room
class Places:
    """A sender whose SLURM has so many places."""

    def __init__(self, places: int, said: str = NO_ROOM) -> None:
        self.places, self.said, self.sent = places, said, list[Group]()

    def send(self, group: Group) -> None:
        if len(group.tasks) > self.places:
            raise SlurmRefused(f"sbatch refused it: {self.said}", self.said)
        self.places -= len(group.tasks)
        self.sent.append(group)


def sent_with(places: Places, runs: int) -> tuple[int, str]:
    groups = make_groups(
        [planned(scratch_run(seed)) for seed in range(runs)], SETTINGS, grid="g", launch="x-1", max_array_size=1001
    )
    said = Console(file=StringIO(), width=300)
    left = send_what_fits(said, cast(Sender, places), groups)
    return left, cast(Any, said.file).getvalue()


@pytest.mark.parametrize(("places", "sent", "left"), [(9, 8, 0), (5, 4, 4), (3, 2, 6), (1, 1, 7), (0, 0, 8)])
def test_as_many_runs_are_sent_as_there_are_places_that_nobody_could_read(places: int, sent: int, left: int) -> None:
    has = Places(places)
    assert sent_with(has, 8)[0] == left
    assert sum(len(g.tasks) for g in has.sent) == sent
    assert len({g.name for g in has.sent}) == len(has.sent)


def test_a_refusal_for_good_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SlurmRefused):
        sent_with(Places(0, "sbatch: error: Batch job submission failed: Invalid qos specification"), 2)
    left, said = sent_with(Places(0), 2)
    assert left == 2 and "SLURM's queue has no place for more runs now" in said
