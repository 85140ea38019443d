"""A launch as files: job scripts, and one shell script that sends them in the order of their dependencies."""

from __future__ import annotations

import shlex
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cluster_cases import evaluate_run, executable, names_in, planned, scratch_run
from replayed_slurm import CLUSTER, ReplayedSlurm

from transfergrid.cluster.emit import emit
from transfergrid.cluster.finish_job import finish_resources
from transfergrid.cluster.groups import make_groups
from transfergrid.cluster.ledger import Submission, read_ledger, record
from transfergrid.cluster.submit import Launch, finish_name
from transfergrid.cluster.task import TaskSettings
from transfergrid.paths import StorePaths
from transfergrid.planning.plan import PlannedRun
from transfergrid.resources import ClusterSettings, Resources

SLURM = ClusterSettings(
    name="slurm", kind="slurm", resources=Resources(partition="gpu", gpus=1), python="apptainer exec tg.sif python"
)
PARENTS = [planned(scratch_run(seed)) for seed in range(3)]
CHILDREN = [planned(evaluate_run(seed), PARENTS[seed].run.run_id) for seed in (0, 2)]
LAUNCH = "20261120T120000-0a1b2c3d"


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ReplayedSlurm:
    """An sbatch that numbers jobs from 101, unless a file `refuses` holds the number it is to refuse.

    Its answer is lost where there is a file `loses`. Jobs 55 and 77 of earlier days are in the queue, and it takes no
    dependency on one that is not."""
    replayed = ReplayedSlurm(tmp_path / "bin", monkeypatch)
    replayed.answers("srun", "")
    folder = replayed.folder
    (folder / "jobs").write_text("55|theirs\n77_0|tg\n77_2|tg\nW\xe4rter\n", encoding="latin-1")
    executable(folder / "squeue", f"cat {folder}/jobs")
    executable(folder / "sleep", ":")
    executable(
        folder / "sbatch",
        f'echo "sbatch $*" >> {folder}/calls',
        f"env > {folder}/env",
        "for script; do :; done",
        f"number=$(($(cat {folder}/number 2>/dev/null || echo 100) + 1))",
        f'[ "$number" = "$(cat {folder}/refuses 2>/dev/null)" ] && echo "error: no" >&2 && exit 1',
        'for id in $(echo "$1" | sed -n "s/--dependency=[a-z]*//p" | tr : " "); do',
        f'grep -qE "^($id|${{id%_*}})[|]" {folder}/jobs || {{ echo "Job dependency problem" >&2; exit 1; }}; done',
        f"echo $number > {folder}/number",
        f'sed -n "s/^#SBATCH --job-name=/$number|/p" $script >> {folder}/jobs',
        f'[ -f {folder}/loses ] && echo "sbatch: error: Unexpected message received" >&2 && exit 1',
        'echo "the maintenance of Monday is job 7"',
        'echo "Submitted batch job $number"',
    )
    return replayed


@pytest.fixture
def store(tmp_path: Path) -> StorePaths:
    return StorePaths(tmp_path / "it's results")


def emitted(
    folder: Path,
    store: StorePaths,
    runs: list[PlannedRun],
    settings: ClusterSettings = SLURM,
    live: tuple[str, ...] = (),
    cluster: str | None = CLUSTER,
) -> Path:
    launch = store.launches / LAUNCH
    groups = make_groups(runs, settings, grid="g", launch=LAUNCH, max_array_size=1001)
    indices = {p.run.run_id: i for i, p in enumerate(runs)}
    asked = Launch(
        grid="g",
        folder=launch,
        payload=launch / "specs.json",
        source=launch / "src",
        settings=settings,
        finish=finish_resources(settings),
        cluster=cluster,
    )
    return emit(folder, asked, groups, read_ledger(store), indices, live)


def send(script: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", str(script)], cwd="/", capture_output=True, text=True)


def sent(slurm: ReplayedSlurm) -> list[str]:
    return [call for call in slurm.calls if call.startswith("sbatch ")]


def stems(folder: Path) -> list[str]:
    return [name.removesuffix(".sbatch") for name in names_in(folder) if name.endswith(".sbatch")]


def test_there_is_a_script_and_a_line_of_the_ledger_per_group_and_for_the_finish_job(
    slurm: ReplayedSlurm, store: StorePaths, tmp_path: Path
) -> None:
    script = emitted(tmp_path / "out", store, [*PARENTS, *CHILDREN])
    parents, one, other, finish = stems(script.parent)
    assert [s[:3] for s in (parents, one, other, finish)] == ["01-", "02-", "03-", "04-"]
    assert finish == f"04-{finish_name_of(store)}"
    expected = [f"{stem}.{kind}" for stem in (parents, one, other, finish) for kind in ("json", "sbatch")]
    assert names_in(script.parent) == sorted([*expected, "submit.sh"])
    assert script == tmp_path / "out" / "submit.sh" and script.stat().st_mode & 0o111
    assert slurm.calls == [] and read_ledger(store).submissions == []
    for name in expected:
        if name.endswith(".sbatch"):
            assert subprocess.run(["bash", "-n", script.parent / name]).returncode == 0


def finish_name_of(store: StorePaths) -> str:
    folder = store.launches / LAUNCH
    rest = {"settings": SLURM, "finish": Resources(), "cluster": CLUSTER}
    launch = Launch(grid="g", folder=folder, payload=folder, source=folder, **rest)  # type: ignore[arg-type]
    return finish_name(launch)


def test_each_job_runs_its_task_with_the_users_python_as_a_launched_one_would(
    slurm: ReplayedSlurm, store: StorePaths, tmp_path: Path
) -> None:
    script = emitted(tmp_path / "out", store, PARENTS)
    parents, finish = stems(script.parent)
    text = (script.parent / f"{parents}.sbatch").read_text()
    folder = store.launches / LAUNCH / "slurm" / parents[3:]
    options = [line for line in text.splitlines() if line.startswith("#SBATCH ")]
    for option in ("partition=gpu", "array=0-2%3", "gpus-per-node=1", "signal=USR2@120"):
        assert f"#SBATCH --{option}" in options
    assert not [line for line in options if "dependency" in line]  # it is given when it is sent
    [command] = [shlex.split(line) for line in text.splitlines() if line.startswith("srun ")]
    expected = [*"apptainer exec tg.sif python -m transfergrid.cluster.task".split(), str(folder)]
    assert command[-len(expected) :] == expected
    told = TaskSettings.read(folder)
    assert told.tasks == ((0,), (1,), (2,)) and told.payload == str(store.launches / LAUNCH / "specs.json")
    text = (script.parent / f"{finish}.sbatch").read_text()
    assert "-m transfergrid.cli.finish" in text and "--array" not in text and "gpus-per-node" not in text
    assert (store.launches / LAUNCH / "slurm" / finish[3:] / "finish.json").is_file()


def test_sent_from_anywhere_every_job_waits_for_its_own_parents_and_the_ledger_knows_them_all(
    slurm: ReplayedSlurm, store: StorePaths, tmp_path: Path
) -> None:
    script = emitted(tmp_path / "out", store, [*PARENTS, *CHILDREN], live=("55",))
    parents, one, other, finish = stems(script.parent)
    done = send(script)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"101  {parents}",
        f"102  {one}",
        f"103  {other}",
        f"104  {finish}",
    ]
    assert sent(slurm) == [
        f"sbatch {parents}.sbatch",
        f"sbatch --dependency=afterok:101_0 --kill-on-invalid-dep=yes {one}.sbatch",
        f"sbatch --dependency=afterok:101_2 --kill-on-invalid-dep=yes {other}.sbatch",
        f"sbatch --dependency=afterany:55:101:102:103 {finish}.sbatch",
    ]
    ledger = read_ledger(store)
    assert {s.name: (s.job_id, s.kind) for s in ledger.submissions} == {
        parents[3:]: ("101", "runs"),
        one[3:]: ("102", "runs"),
        other[3:]: ("103", "runs"),
        finish[3:]: ("104", "finish"),
    }
    found = ledger.newest(PARENTS[1].run.run_id)
    assert found is not None and found[0].task_id(found[1]) == "101_1"
    assert ledger.unsettled == []


def test_run_again_it_sends_nothing(slurm: ReplayedSlurm, store: StorePaths, tmp_path: Path) -> None:
    script = emitted(tmp_path / "out", store, PARENTS)
    first, second = send(script), send(script)
    assert first.stdout == second.stdout and len(sent(slurm)) == 2
    assert (second.returncode, len(read_ledger(store).submissions)) == (0, 2)


def test_after_a_refusal_it_goes_on_where_it_stopped(slurm: ReplayedSlurm, store: StorePaths, tmp_path: Path) -> None:
    script = emitted(tmp_path / "out", store, [*PARENTS, *CHILDREN])
    (slurm.folder / "refuses").write_text("102")
    refused = send(script)
    assert refused.returncode != 0 and "error: no" in refused.stderr
    assert len(sent(slurm)) == 2  # what needs the refused one is not sent without it
    assert [s.job_id for s in read_ledger(store).submissions if s.job_id] == ["101"]
    (slurm.folder / "refuses").unlink()
    assert send(script).returncode == 0
    assert len(sent(slurm)) == 5 and [call.split(".sbatch")[0].split()[-1][:2] for call in sent(slurm)] == [
        "01",
        "02",
        "02",
        "03",
        "04",
    ]
    assert sorted(s.job_id or "" for s in read_ledger(store).submissions) == ["101", "102", "103", "104"]


def test_parents_of_an_earlier_launch_are_named_by_their_ids(
    slurm: ReplayedSlurm, store: StorePaths, tmp_path: Path
) -> None:
    earlier = Submission(
        name="tg-g-scratch-0",
        grid="g",
        launch=store.launches / "20261119T120000-ffffffff",
        tasks=tuple((p.run.run_id,) for p in PARENTS),
        job_id="77",
        submitted=datetime.now(UTC),
    )
    record(earlier)
    assert send(emitted(tmp_path / "out", store, CHILDREN)).returncode == 0
    assert [call.split()[1] for call in sent(slurm)] == [
        "--dependency=afterok:77_0",
        "--dependency=afterok:77_2",
        "--dependency=afterany:101:102",
    ]


def test_runs_that_share_a_job_wait_for_the_end_of_all_they_need(
    slurm: ReplayedSlurm, store: StorePaths, tmp_path: Path
) -> None:
    script = emitted(tmp_path / "out", store, [*PARENTS, *CHILDREN], replace(SLURM, runs_per_job=2))
    assert send(script).returncode == 0
    waiting = sent(slurm)[1].split()
    ids = waiting[1].removeprefix("--dependency=afterany:").split(":")
    assert sorted(ids) == ["101_0", "101_1"]  # PARENTS 0 and 1 share task 0, PARENTS 2 is task 1
    assert not [word for word in waiting if "kill-on-invalid-dep" in word]


def test_each_job_bears_a_token_of_its_own_in_its_name_and_in_the_ledger(
    slurm: ReplayedSlurm, store: StorePaths, tmp_path: Path
) -> None:
    script = emitted(tmp_path / "out", store, PARENTS)
    assert send(script).returncode == 0
    array, finish = sorted(read_ledger(store).submissions, key=lambda s: str(s.job_id))
    lines = (slurm.folder / "jobs").read_text(encoding="latin-1").splitlines()
    jobs = dict(line.split("|") for line in lines if line.startswith("10"))
    assert jobs == {"101": array.job_name, "102": finish.job_name}
    assert array.token != finish.token and {array.cluster, finish.cluster} == {CLUSTER}


def test_killed_after_its_sbatch_it_finds_the_job_whatever_its_tasks_are_called_by_then(
    slurm: ReplayedSlurm, store: StorePaths, tmp_path: Path
) -> None:
    script = emitted(tmp_path / "out", store, PARENTS)
    send(script)
    parents, finish = stems(script.parent)
    for path in (script.parent / f"{parents}.id", script.parent / f"{finish}.id"):
        path.unlink()
    [array] = [s for s in read_ledger(store).submissions if s.kind == "runs"]
    jobs = slurm.folder / "jobs"
    jobs.write_text(jobs.read_text(encoding="latin-1").replace(array.job_name, f"digits-tinynet-{array.token}"))
    assert send(script).stdout.splitlines() == [f"101  {parents}", f"102  {finish}"]
    assert len(sent(slurm)) == 2


def test_a_job_that_slurm_does_not_show_by_its_token_ends_it_without_an_id(
    slurm: ReplayedSlurm, store: StorePaths, tmp_path: Path
) -> None:
    script = emitted(tmp_path / "out", store, PARENTS)
    executable(slurm.folder / "squeue", "echo '101|renamed-by-a-plugin'; echo 'job 7'")
    done = send(script)
    assert done.returncode == 1 and "SLURM shows no job whose name ends with" in done.stderr
    assert [s.job_id for s in read_ledger(store).submissions] == [None] and len(sent(slurm)) == 1


@pytest.mark.parametrize("times", [1, 2])
def test_a_job_whose_answer_is_lost_is_found_and_never_sent_again(
    slurm: ReplayedSlurm, store: StorePaths, tmp_path: Path, times: int
) -> None:
    script = emitted(tmp_path / "out", store, [*PARENTS, *CHILDREN])
    (slurm.folder / "loses").touch()
    for _ in range(times):
        done = send(script)
        assert (done.returncode, [line[:3] for line in done.stdout.splitlines()]) == (0, ["101", "102", "103", "104"])
    assert len(sent(slurm)) == 4
    assert sorted(s.job_id or "" for s in read_ledger(store).submissions) == ["101", "102", "103", "104"]


def test_after_a_try_that_died_it_waits_for_no_parent_that_slurm_has_forgotten(
    slurm: ReplayedSlurm, store: StorePaths, tmp_path: Path
) -> None:
    script = emitted(tmp_path / "out", store, [*PARENTS, *CHILDREN], live=("55",))
    (slurm.folder / "refuses").write_text("103")
    died = send(script)
    assert died.returncode == 1 and "sbatch did not take 03-" in died.stderr
    (slurm.folder / "refuses").unlink()
    jobs = slurm.folder / "jobs"  # the parents have ended long ago
    jobs.write_bytes(b"".join(line for line in jobs.read_bytes().splitlines(True) if line[:3] not in (b"101", b"55|")))
    done = send(script)
    assert (done.returncode, done.stderr) == (0, "")
    *_, other, finish = [call.split(" ", 1)[1] for call in sent(slurm)]
    assert other == f"{stems(script.parent)[2]}.sbatch"
    assert finish == f"--dependency=afterany:102:103 {stems(script.parent)[3]}.sbatch"


def test_written_where_no_slurm_answered_it_is_of_the_cluster_that_it_is_sent_from(
    slurm: ReplayedSlurm, store: StorePaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("PATH", "/usr/bin:/bin")
        script = emitted(tmp_path / "out", store, PARENTS, cluster=None)
    assert send(script).returncode == 0
    submissions = read_ledger(store).submissions
    assert {s.cluster for s in submissions} == {CLUSTER} and {s.job_id for s in submissions} == {"101", "102"}


def test_on_another_cluster_it_sends_nothing_and_says_where_to(
    slurm: ReplayedSlurm, store: StorePaths, tmp_path: Path
) -> None:
    script = emitted(tmp_path / "out", store, PARENTS)
    slurm.is_cluster("elsewhere")
    done = send(script)
    assert done.returncode == 1 and sent(slurm) == [] and read_ledger(store).submissions == []
    assert f"these jobs were written for cluster {CLUSTER}, and this is elsewhere" in done.stderr


def test_what_the_shell_sets_for_slurms_commands_does_not_reach_them(
    slurm: ReplayedSlurm, store: StorePaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SQUEUE_PARTITION", "SBATCH_PARTITION", "SBATCH_JOB_NAME", "SLURM_JOB_ID", "SLURM_CONF", "MINE"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("SBATCH_CLUSTERS", "other")
    assert send(emitted(tmp_path / "out", store, PARENTS)).returncode == 0
    seen = dict(line.partition("=")[::2] for line in (slurm.folder / "env").read_text().splitlines())
    kept = {k: v for k, v in seen.items() if k.startswith(("SQUEUE_", "SBATCH_", "SLURM_", "MINE"))}
    assert kept == {"SLURM_CONF": "x", "MINE": "x", "SLURM_CLUSTERS": "other"}
