"""What remains of a plan -> job arrays: which runs share one, what it waits for, how it is called."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from cluster_cases import evaluate_run, extract_run, planned, scratch_run

from transfergrid.cluster.groups import Group, first_tasks, make_groups
from transfergrid.planning.plan import PlannedRun
from transfergrid.resources import ClusterSettings, Resources
from transfergrid.specs import RunSpec

SLURM = ClusterSettings(name="slurm", kind="slurm")
EXTRACTIONS = [extract_run("resnet18"), extract_run("googlenet")]
ONE, TWO = (e.run_id for e in EXTRACTIONS)


def groups_of(
    todo: Sequence[PlannedRun], settings: ClusterSettings = SLURM, *, max_array_size: int = 1001, launch: str = "l1"
) -> list[Group]:
    return make_groups(todo, settings, grid="g", launch=launch, max_array_size=max_array_size)


def evaluations(count: int, *needs: str, first: int = 0) -> list[PlannedRun]:
    return [planned(evaluate_run(seed), *needs) for seed in range(first, first + count)]


def ids(runs: Sequence[PlannedRun]) -> tuple[tuple[str, ...], ...]:
    """One task each."""
    return tuple((p.run.run_id,) for p in runs)


# ------------------------------------------------------------------------------------------------------------ together
def test_runs_of_one_phase_that_wait_for_the_same_are_one_array_in_their_order() -> None:
    runs = evaluations(4, ONE)
    [group] = groups_of(runs)
    assert group.run_ids == ids(runs)
    assert (group.phase, group.edge, group.waits_for) == ("evaluate", "afterok", (ONE,))


def test_every_set_of_needs_is_an_array_of_its_own_and_waits_for_exactly_that_set() -> None:
    of_one, of_both, of_none = evaluations(2, ONE), evaluations(2, TWO, ONE, first=2), evaluations(1, first=4)
    swapped = planned(evaluate_run(5), ONE, TWO)  # the same set in another order
    groups = groups_of([of_one[0], of_both[0], of_none[0], of_one[1], swapped, of_both[1]])
    assert {g.waits_for: g.run_ids for g in groups} == {
        (ONE,): ids(of_one),
        tuple(sorted((ONE, TWO))): ids([of_both[0], swapped, of_both[1]]),
        (): ids(of_none),
    }
    assert {g.edge for g in groups} == {"afterok"}


def test_parents_come_before_their_children_whatever_the_order_of_the_plan() -> None:
    todo = [*evaluations(1, ONE), planned(scratch_run()), *map(planned, EXTRACTIONS)]
    assert [g.phase for g in groups_of(todo)] == ["extract", "scratch", "evaluate"]


def test_a_phase_has_the_resources_that_the_cluster_gives_it() -> None:
    large = Resources(mem_gb=64, gpus=2)
    settings = ClusterSettings(by_phase={"extract": large})
    groups = groups_of([*map(planned, EXTRACTIONS), planned(scratch_run())], settings)
    assert [(g.phase, g.resources) for g in groups] == [("extract", large), ("scratch", settings.resources)]


def test_nothing_to_do_is_no_group() -> None:
    assert groups_of([]) == []


# ----------------------------------------------------------------------------------------------------------------- cut
@pytest.mark.parametrize(
    ("count", "largest", "sizes"), [(7, 3, [3, 3, 1]), (6, 3, [3, 3]), (3, 3, [3]), (2, 1, [1, 1])]
)
def test_an_array_is_cut_at_the_size_the_cluster_takes(count: int, largest: int, sizes: list[int]) -> None:
    runs = evaluations(count, ONE)
    groups = groups_of(runs, max_array_size=largest)
    assert [len(g.tasks) for g in groups] == sizes
    assert tuple(run_ids for g in groups for run_ids in g.run_ids) == ids(runs)
    assert {g.waits_for for g in groups} == {(ONE,)}
    assert len({g.name for g in groups}) == len(groups)


def test_of_a_group_its_first_tasks_can_be_sent_alone_under_a_name_of_their_own() -> None:
    [group] = groups_of(evaluations(5, ONE))
    some = first_tasks(group, 2)
    assert some.run_ids == group.run_ids[:2]
    assert (some.waits_for, some.edge, some.resources) == (group.waits_for, group.edge, group.resources)
    assert some.name == f"{group.name}-2"


# -------------------------------------------------------------------------------------------------------------- packed
def test_runs_that_share_a_job_wait_for_all_that_any_of_them_needs_to_end_however_it_ends() -> None:
    """One failed extraction must not keep the others' children from running."""
    runs = [*evaluations(2, ONE), *evaluations(2, TWO, first=2), *evaluations(1, first=4)]
    [group] = groups_of(runs, ClusterSettings(runs_per_job=2))
    assert [len(task) for task in group.tasks] == [2, 2, 1]
    assert [r for task in group.run_ids for r in task] == [p.run.run_id for p in runs]
    assert (group.edge, group.waits_for) == ("afterany", tuple(sorted((ONE, TWO))))


def test_where_all_jobs_are_full_each_array_waits_for_what_its_own_runs_need() -> None:
    runs = [*evaluations(2, ONE), *evaluations(2, TWO, first=2)]
    groups = groups_of(runs, ClusterSettings(runs_per_job=2), max_array_size=1)
    assert [(g.waits_for, g.edge) for g in groups] == [((ONE,), "afterany"), ((TWO,), "afterany")]


def test_a_run_that_finds_no_other_to_share_its_job_waits_for_what_it_needs() -> None:
    [alone] = groups_of(evaluations(1, TWO, ONE), ClusterSettings(runs_per_job=8))
    assert (alone.waits_for, alone.edge) == (tuple(sorted((ONE, TWO))), "afterok")
    groups = groups_of(evaluations(3, ONE), ClusterSettings(runs_per_job=2), max_array_size=1)
    assert [(len(g.tasks[0]), g.waits_for, g.edge) for g in groups] == [(2, (ONE,), "afterany"), (1, (ONE,), "afterok")]


# --------------------------------------------------------------------------------------------------------------- names
def test_names_are_the_same_for_the_same_launch_and_others_for_another() -> None:
    todo = [*map(planned, EXTRACTIONS), *evaluations(3, ONE), *evaluations(3, TWO, first=3)]
    names = [g.name for g in groups_of(todo)]
    assert names == [g.name for g in groups_of(todo)]
    again = [g.name for g in groups_of(todo, launch="l2")]
    assert len(names) == 3 and len({*names, *again}) == 6


@pytest.mark.parametrize("grid", ["g", "My Grid; rm -rf $HOME", "../../etc", "x" * 200, "größe\n#SBATCH --uid=0"])
def test_names_are_safe_as_a_path_a_job_and_in_a_shell(grid: str) -> None:
    def name(run: RunSpec) -> str:
        [group] = make_groups([planned(run)], SLURM, grid=grid, launch="l1", max_array_size=10)
        return group.name

    names = {name(scratch_run(seed)) for seed in range(3)}
    assert len(names) == 3
    for each in names:
        assert re.fullmatch(r"tg-[a-z0-9._+-]{1,40}-scratch-[0-9a-f]{10}", each)
        assert "/" not in each and len(each) <= 64
