"""A grid on a real SLURM: one job per configuration, edges between the phases, the table made with nobody watching."""

from __future__ import annotations

import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_slurm import noisy
from sandbox import Sandbox
from slurm_runs import LIMITED, QUICK, ROOT, assert_same_numbers, jobs, records, sent_jobs, submissions
from wandb_server import StandIn

pytestmark = pytest.mark.slurm

# The quickstart's own grid at one seed and one epoch, its variant of random weights left out.
SMALL = (
    *("grid=quickstart", "grid.seeds=[0]", "grid.variants={}", "phase.finetune.epochs=1", "phase.scratch.epochs=1"),
    *("dataset.max_images=300", *QUICK),
)
HELD = "cluster.sbatch={hold: true}"


@pytest.fixture(scope="module")
def local_store(tmp_path_factory: pytest.TempPathFactory, slurm: Sandbox) -> Path:
    """The small grid carried out by a local launch: the numbers that SLURM's must equal."""
    folder = tmp_path_factory.mktemp("local")
    said = jobs("launch_grid.py", *SMALL, "cluster=local", env=slurm.env, cwd=folder)
    assert said.code == 0, said.text
    return folder / "results"


@pytest.fixture(scope="module")
def wandb_server() -> Iterator[StandIn]:
    with StandIn() as server:
        yield server


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory, slurm: Sandbox, wandb_server: StandIn) -> tuple[Path, str]:
    """The small grid on SLURM, waited for, its jobs telling W&B: its folder and what the launcher said."""
    folder = tmp_path_factory.mktemp("launched")
    notify = "notify.command='cat > told.txt; echo $TRANSFERGRID_FAILED >> told.txt'"
    asked = [
        a for a in SMALL if a not in ("report.figures=false", "tracking=disabled")
    ]  # figures: unless told otherwise
    asked += ["cluster=slurm", "wait=true", "tracking=online", notify]
    said = jobs("launch_grid.py", *asked, env=slurm.env | wandb_server.environment(), cwd=folder)
    assert said.code == 0, said.text
    return folder, said.text


def test_a_grid_on_slurm_gives_the_numbers_of_the_local_run(launched: tuple[Path, str], local_store: Path) -> None:
    assert_same_numbers(launched[0] / "results", local_store)


def test_every_configuration_is_one_job_with_one_gpu(launched: tuple[Path, str], slurm: Sandbox) -> None:
    store = launched[0] / "results"
    runs = [s for s in submissions(store) if s["kind"] == "runs"]
    sent = [run_id for s in runs for task in s["tasks"] for run_id in task]
    assert sorted(sent) == sorted(records(store))
    assert len(sent) == len(set(sent)) == sent_jobs(launched[1])
    ids = ",".join(s["job_id"] for s in runs)

    def counted() -> list[str] | None:
        lines = slurm.run("sacct", "-n", "-P", "-X", "-j", ids, "-o", "JobID,State,AllocTRES").split()
        whole = len(lines) == len(sent) and all("COMPLETED" in line and "gres/gpu=1" in line for line in lines)
        return lines if whole else None

    assert slurm.wait_for(counted, timeout_s=60)  # the database is some seconds late


def test_no_child_started_before_its_parents_ended(launched: tuple[Path, str], slurm: Sandbox) -> None:
    store = launched[0] / "results"
    times: dict[str, tuple[str, str]] = {}
    for submission in submissions(store):
        sacct = ("sacct", "-n", "-P", "-X", "-j", submission["job_id"], "-o", "JobID,Start,End")
        # The database is some seconds late, the last job's end above all.
        slurm.wait_for(lambda sacct=sacct: (said := slurm.run(*sacct)) and "Unknown" not in said, 60)  # type: ignore[misc]
        for line in slurm.run(*sacct).split():
            job_id, start, end = line.split("|")
            index = int(job_id.partition("_")[2] or 0)
            key = submission["tasks"][index][0] if submission["kind"] == "runs" else "finish"
            times[key] = (start, end)
    checked = 0
    for run_id, record in records(store).items():
        needs = list(record["spec"]["needs"])
        if record["spec"]["phase"] == "probe":
            parts = record["spec"]["model"].split("+")
            needs += [r for r in times if "-extract-" in r and any(f"-{p}-extract" in r for p in parts)]
        for parent in needs:
            assert times[parent][1] <= times[run_id][0], f"{run_id} started before {parent} ended"
            checked += 1
    assert checked >= 7
    assert all(end <= times["finish"][0] for key, (_, end) in times.items() if key != "finish")


def test_the_finish_job_made_the_table_and_told_once(launched: tuple[Path, str], local_store: Path) -> None:
    folder = launched[0]
    finish = next(s for s in submissions(folder / "results") if s["kind"] == "finish")
    [log] = folder.glob(f"results/launches/*/slurm/{finish['name']}/{finish['job_id']}_0_log.out")
    assert "test accuracy" in log.read_text()
    assert "report:" in log.read_text()
    told = next(iter(folder.rglob("told.txt"))).read_text()
    assert "0 not" in told
    assert told.strip().endswith("0")
    figures = re.compile(r"^\| .*", re.MULTILINE)
    ours = figures.findall((folder / "results/reports/quickstart/comparison.md").read_text())
    assert len(ours) > 6
    report = folder / "results/reports/quickstart"
    kinds = [path.name.partition("-")[0] for path in (report / "figures").glob("*.png")]
    assert {"accuracy", "pareto", "curves", "errors", "reliability", "architecture"} <= set(kinds) and len(kinds) > 15
    assert (report / "index.html").read_text().count("data:image/") > 15


def test_the_jobs_told_wandb_of_every_line_and_the_finish_job_published_the_table(
    launched: tuple[Path, str], wandb_server: StandIn
) -> None:
    store = launched[0] / "results"
    for run_id, record in records(store).items():
        run = wandb_server.run(run_id)
        metrics = store / "runs" / run_id / "metrics.jsonl"
        lines = len(metrics.read_text().splitlines()) if metrics.exists() else 0
        assert (run.state, sum("line" in row for row in run.history)) == ("finished", lines)
        assert run.summary.get("test_accuracy") == record["metrics"].get("test_accuracy")
    rows = [run for run in wandb_server.runs.values() if run.job_type == "summary"]
    assert len(rows) == 7 and len(wandb_server.reports) == 1
    finish = next(s for s in submissions(store) if s["kind"] == "finish")
    [log] = store.glob(f"launches/*/slurm/{finish['name']}/{finish['job_id']}_0_log.out")
    assert "W&B: all is there" in log.read_text()


def test_launched_again_it_submits_nothing(launched: tuple[Path, str], slurm: Sandbox) -> None:
    before = set(slurm.run("squeue", "-h", "-t", "all", "-o", "%i").split())
    said = jobs("launch_grid.py", *SMALL, "cluster=slurm", env=slurm.env, cwd=launched[0])
    assert said.code == 0
    assert "nothing to submit" in said.text
    now = set(slurm.run("squeue", "-h", "-t", "all", "-o", "%i").split())
    assert now <= before, "what ended minutes ago may be forgotten meanwhile; nothing is new"


ONE = (
    *("grid=quickstart", "grid.seeds=[0]", "grid.variants={}", "grid.models=[tinynet_mnist]", "grid.phases=[probe]"),
    *("dataset.max_images=300", *QUICK),
)


def test_the_same_through_an_sbatch_script(slurm: Sandbox, tmp_path: Path, local_store: Path) -> None:
    """A job that submits jobs: what SLURM set for the first must not reach the others."""
    env = slurm.env | {"TRANSFERGRID_HOME": str(ROOT), "TRANSFERGRID_PYTHON": sys.executable}
    places = (f"store.dir={tmp_path}/results", f"cache.dir={tmp_path}/cache")
    command = ["sbatch", "--parsable", "--mem=1G", "--cpus-per-task=1", str(ROOT / "slurm" / "launch_grid.sbatch")]
    subprocess.run([*command, *ONE, *places], env=env, cwd=tmp_path, check=True, timeout=90, capture_output=True)
    store = tmp_path / "results"
    table = store / "reports" / "quickstart" / "comparison.md"
    slurm.wait_for(lambda: table.exists() and "completed" in table.read_text(), timeout_s=300)
    found = records(store)
    assert len(found) == 2
    for run_id, record in found.items():
        assert record["metrics"] == records(local_store)[run_id]["metrics"]


def test_a_job_that_meets_damaged_features_extracts_them_again_itself(
    slurm: Sandbox, tmp_path: Path, local_store: Path
) -> None:
    """One job: the extraction is a run of its own in it, with its record and its log."""
    shutil.copytree(local_store.parent, tmp_path / "copy")
    store = tmp_path / "copy" / "results"
    [extraction] = [run for run in records(store) if "extract" in run and "tinynet_mnist" in run]
    [probe] = [run for run in records(store) if "probe" in run and "tinynet_mnist" in run and "cifar" not in run]
    shutil.rmtree(store / "runs" / probe)
    [path] = (tmp_path / "copy" / "cache" / "features").glob("digits/train/tinynet_mnist-*.h5")
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)
    said = jobs("launch_grid.py", *SMALL, "cluster=slurm", "wait=true", env=slurm.env, cwd=tmp_path / "copy")
    assert said.code == 0, said.text
    assert [s["tasks"] for s in submissions(store) if s["kind"] == "runs"] == [[[probe]]]
    found = records(store)
    assert found[probe]["metrics"] == records(local_store)[probe]["metrics"]
    assert found[extraction]["attempt"] == 2 and found[probe]["attempt"] == 2
    assert found[extraction]["attempts"][-1]["task"] == found[probe]["attempts"][-1]["task"] is not None
    log = (store / "runs" / probe / "log.txt").read_text()
    assert "does not match its checksum; kept as" in log and "Traceback" not in log
    assert path.with_name(path.name + ".damaged").read_bytes() == content


def test_the_same_through_scripts_that_are_written_out(slurm: Sandbox, tmp_path: Path, local_store: Path) -> None:
    said = jobs("launch_grid.py", *ONE, "cluster=slurm", "emit=scripts", env=slurm.env, cwd=tmp_path)
    assert said.code == 0, said.text
    assert not submissions(tmp_path / "results")
    for _ in range(2):  # a second time sends nothing
        command = ["bash", "scripts/submit.sh"]
        sent = subprocess.run(command, env=slurm.env, cwd=tmp_path, check=True, timeout=180, capture_output=True)
        assert len(sent.stdout.splitlines()) == 3
    assert len({s["job_id"] for s in submissions(tmp_path / "results")}) == 3
    table = tmp_path / "results" / "reports" / "quickstart" / "comparison.md"
    slurm.wait_for(lambda: table.exists() and "completed" in table.read_text(), timeout_s=300)
    for run_id, record in records(tmp_path / "results").items():
        assert record["metrics"] == records(local_store)[run_id]["metrics"]


@pytest.mark.parametrize("way", ["launch", "emit"])
def test_where_sbatch_loses_every_answer_and_all_commands_print_notes_each_job_is_sent_once(
    slurm: Sandbox, tmp_path: Path, way: str
) -> None:
    real = Path(str(shutil.which("sbatch", path=slurm.env["PATH"]))).parent
    lost = f"{real}/sbatch \"$@\" >/dev/null || exit 1\necho 'sbatch: error: Unexpected message received' >&2\nexit 1"
    site = noisy(tmp_path / "site", real)
    (site / "sbatch").write_text(f"#!/bin/sh\necho 'the maintenance is job 7'\n{lost}\n")
    env = slurm.env | {"PATH": f"{site}:{slurm.env['PATH']}"}
    asked = ("grid.models=[baseline_cnn]", "grid.phases=[scratch]", "grid.seeds=[0]", *QUICK, HELD, "cluster=slurm")
    before = set(slurm.run("squeue", "-h", "-o", "%i").split())
    for _ in range(2):
        more = () if way == "launch" else ("emit=scripts",)
        if not (tmp_path / "scripts").exists():
            said = jobs("launch_grid.py", *asked, *more, env=env, cwd=tmp_path)
            assert said.code == 0 and "Traceback" not in said.text, said.text
        if way == "emit":
            command = ["bash", "scripts/submit.sh"]
            done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, errors="replace")
            assert done.returncode == 0, done.stderr
    new = set(slurm.run("squeue", "-h", "-o", "%i").split()) - before
    assert new == {s["job_id"] for s in submissions(tmp_path / "results")} and len(new) == 2
    said = jobs("status.py", "grid=quickstart", "cancel=true", env=env, cwd=tmp_path)
    assert said.code == 0 and "cancelled 1 job of 1 run" in said.text and "Traceback" not in said.text, said.text
    slurm.run("scancel", *new)


def test_a_run_by_hand_in_a_job_of_its_own(slurm: Sandbox, tmp_path: Path, local_store: Path) -> None:
    env = slurm.env | {"TRANSFERGRID_HOME": str(ROOT), "TRANSFERGRID_PYTHON": sys.executable}
    places = (f"store.dir={tmp_path}/results", f"cache.dir={tmp_path}/cache", "device=cpu", "cluster.num_threads=1")
    command = ["sbatch", "--parsable", "--mem=1500M", "--cpus-per-task=1", str(ROOT / "slurm" / "run_phase.sbatch")]
    sent = subprocess.run(
        [*command, "model=tinynet_mnist", "phase=probe", *places],
        env=env,
        cwd=tmp_path,
        check=True,
        timeout=90,
        capture_output=True,
        text=True,
    )
    slurm.wait_for(lambda: len(records(tmp_path / "results")) == 2, timeout_s=300)
    found = records(tmp_path / "results")
    assert {r["status"] for r in found.values()} == {"completed"}
    assert {r["provenance"]["slurm_job_id"] for r in found.values()} == {sent.stdout.strip()}


# ------------------------------------------------------------------------------------------------ many, and at once
SEEDS_200 = f"grid.seeds=[{','.join(map(str, range(200)))}]"
OF_CNN = ("grid=quickstart", "grid.models=[baseline_cnn]", "grid.phases=[scratch]", *QUICK)
MANY = (*OF_CNN, "grid.variants={}")


def test_two_hundred_configurations_are_submitted_in_ten_seconds(slurm: Sandbox, tmp_path: Path) -> None:
    before = processor_s()
    said = jobs("launch_grid.py", *MANY, SEEDS_200, "cluster=slurm", HELD, env=slurm.env, cwd=tmp_path)
    taken_s = processor_s() - before
    try:
        assert said.code == 0, said.text
        assert sent_jobs(said.text) == 200
        taken = re.search(r"a finish job, ([\d.]+) s", said.text)
        assert taken is not None
        assert float(taken[1]) < 10 or taken_s < 10  # of processor time, where others use the machine
        waiting = slurm.run("squeue", "-h", "-r", "-t", "PENDING", "-o", "%i").split()
        assert len(waiting) == 201
    finally:
        slurm.run("scancel", "-u", "root")


def processor_s() -> float:
    """Of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_the_status_of_a_thousand_takes_two_seconds_and_three_commands(slurm: Sandbox, tmp_path: Path) -> None:
    """Two seconds of processor time, which does not depend on who else is using the machine."""
    seeds = f"grid.seeds=[{','.join(map(str, range(1000)))}]"
    counted = tmp_path / "bin"
    counted.mkdir()
    for name in ("squeue", "sacct", "scontrol", "sinfo", "scancel"):
        (counted / name).write_text(f'#!/bin/sh\necho {name} >> {tmp_path}/calls\nexec {shutil.which(name)} "$@"\n')
        (counted / name).chmod(0o755)
    try:
        said = jobs("launch_grid.py", *MANY, seeds, "cluster=slurm", HELD, env=slurm.env, cwd=tmp_path)
        assert sent_jobs(said.text) == 1000, said.text
        env = slurm.env | {"PATH": f"{counted}:{slurm.env['PATH']}"}
        taken_s = []
        for _ in range(3):
            (tmp_path / "calls").unlink(missing_ok=True)
            before = processor_s()
            status = jobs("status.py", "grid=quickstart", env=env, cwd=tmp_path)
            taken_s.append(processor_s() - before)
            assert "1000 pending" in status.text
            assert len((tmp_path / "calls").read_text().split()) <= 3  # which cluster, its queue, its accounts
        assert min(taken_s) < 2
    finally:
        slurm.run("scancel", "-u", "root")


def test_every_finetune_waits_for_its_own_probe_alone(slurm: Sandbox, tmp_path: Path) -> None:
    asked = ("grid=quickstart", "grid.models=[tinynet_mnist]", "grid.seeds=[0,1,2]", "grid.variants={}", *QUICK)
    by_sgd = ("grid.phases=[probe,finetune]", "phase.probe.solver=sgd")  # a probe for each seed
    said = jobs("launch_grid.py", *asked, *by_sgd, "cluster=slurm", HELD, env=slurm.env, cwd=tmp_path)
    try:
        assert sent_jobs(said.text) == 7
        sent = {s["name"]: s for s in submissions(tmp_path / "results")}
        probes = next(s for s in sent.values() if "-probe-" in s["name"])
        assert len(probes["tasks"]) == 3  # one array: the three wait for the same features
        for submission in sent.values():
            if "-finetune-" not in submission["name"]:
                continue
            [[run_id]] = submission["tasks"]
            seed = run_id.rsplit("-", 2)[1]
            index = next(i for i, [probe] in enumerate(probes["tasks"]) if f"-{seed}-" in probe)
            shown = slurm.run("scontrol", "show", "job", submission["job_id"])
            assert f"afterok:{probes['job_id']}_{index}(unfulfilled)" in shown
            assert "KillOnInvalidDependent=Yes" in shown or "KillOInInvalidDependent=Yes" in shown
    finally:
        slurm.run("scancel", "-u", "root")


def test_two_launchers_at_the_same_second_send_each_configuration_once(slurm: Sandbox, tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "jobs" / "launch_grid.py"),
        *MANY,
        "grid.seeds=[0,1,2]",
        "cluster=slurm",
        HELD,
    ]
    try:
        for round_number in range(5):
            folder = tmp_path / str(round_number)
            folder.mkdir()
            launchers = [
                subprocess.Popen(command, env=slurm.env, cwd=folder, stdout=subprocess.PIPE, text=True)
                for _ in range(2)
            ]
            said = [launcher.communicate(timeout=120)[0] for launcher in launchers]
            assert [launcher.returncode for launcher in launchers] == [0, 0], said
            sent = [run_id for s in submissions(folder / "results") for task in s["tasks"] for run_id in task]
            assert len(sent) == len(set(sent)) == 3
            assert sorted(sent_jobs(text) for text in said) == [0, 3]
            in_queue = slurm.run("squeue", "-h", "-r", "-t", "PENDING", "-o", "%j").split()
            assert len([name for name in in_queue if "-scratch-" in name]) == 3
            slurm.run("scancel", "-u", "root")
            slurm.wait_for(lambda: not slurm.run("squeue", "-h", "-t", "PENDING", "-o", "%i").split(), timeout_s=90)
    finally:
        slurm.run("scancel", "-u", "root")


def test_an_array_larger_than_the_cluster_takes_is_cut(slurm_variant: object, tmp_path: Path) -> None:
    """Nine equal configurations where an array may have 4 tasks: 4, 4 and 1; all completed."""
    assert callable(slurm_variant)
    slurm = slurm_variant(**LIMITED)
    seeds = f"grid.seeds=[{','.join(map(str, range(9)))}]"
    epoch = ("phase.scratch.epochs=1", "dataset.max_images=100")
    said = jobs("launch_grid.py", *MANY, seeds, *epoch, "cluster=slurm", "wait=true", env=slurm.env, cwd=tmp_path)
    assert said.code == 0, said.text
    arrays = [len(s["tasks"]) for s in submissions(tmp_path / "results") if s["kind"] == "runs"]
    assert arrays == [4, 4, 1]
    assert [r["status"] for r in records(tmp_path / "results").values()] == ["completed"] * 9


# ---------------------------------------------------------------------------------------------- waves, packs, requests
def test_runs_that_share_a_job_have_their_own_records_logs_and_failures(slurm: Sandbox, tmp_path: Path) -> None:
    """Of four runs in one job two diverge; the others complete."""
    variants = "grid.variants={wild: {phase.scratch.lr: 99, phase.scratch.clip_norm: null}}"
    asked = (*OF_CNN, "grid.seeds=[0,1]", "phase.scratch.epochs=2", variants, "cluster.runs_per_job=4")
    said = jobs("launch_grid.py", *asked, "cluster=slurm", "wait=true", env=slurm.env, cwd=tmp_path)
    store = tmp_path / "results"
    assert [len(task) for s in submissions(store) if s["kind"] == "runs" for task in s["tasks"]] == [4]
    states = sorted((r["status"], r["failure_class"]) for r in records(store).values())
    assert states == [("completed", None)] * 2 + [("failed", "code")] * 2
    assert said.code == 1
    for run_id in records(store):
        assert (store / "runs" / run_id / "log.txt").stat().st_size > 0


def test_more_jobs_than_the_user_may_have_go_in_waves(slurm_variant: object, tmp_path: Path) -> None:
    assert callable(slurm_variant)
    slurm = slurm_variant(**LIMITED)
    allow = ("sacctmgr", "-i", "modify", "user", "root", "set")
    slurm.run(*allow, "MaxSubmitJobs=4")
    try:
        _go_in_waves(slurm, tmp_path)
    finally:
        slurm.run(*allow, f"MaxSubmitJobs={LIMITED['max_submit_jobs']}")


def _go_in_waves(slurm: Sandbox, tmp_path: Path) -> None:
    epoch = ("phase.scratch.epochs=1", "dataset.max_images=100")
    asked = (*MANY, "grid.seeds=[0,1,2,3,4]", *epoch, "cluster=slurm")
    refused = jobs("launch_grid.py", *asked, env=slurm.env, cwd=tmp_path)
    assert refused.code == 2
    assert "wait=true" in refused.text
    assert "cluster.runs_per_job=" in refused.text
    assert not (tmp_path / "results").exists()
    said = jobs("launch_grid.py", *asked, "wait=true", env=slurm.env, cwd=tmp_path)
    assert said.code == 0, said.text
    assert [r["status"] for r in records(tmp_path / "results").values()] == ["completed"] * 5


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("cluster.partition=mian", "main"),
        ("cluster.timeout_min=9999999", "timeout_min"),
        ("cluster.mem_gb=900", "mem_gb"),
        ("cluster.gpus=5", "gpus"),
        ("cluster.gpu_type=a100", "gpu_type"),
        ("cluster.cpus=64", "cpus"),
    ],
)
def test_what_can_never_start_is_refused_before_anything_is_sent(
    slurm: Sandbox, tmp_path: Path, asked: str, told: str
) -> None:
    others = [a for a in MANY if not a.startswith(asked.partition("=")[0] + "=")]
    partition = ["cluster.partition=short"] if "timeout" in asked else []
    said = jobs("launch_grid.py", *others, *partition, "cluster=slurm", asked, env=slurm.env, cwd=tmp_path)
    assert said.code == 2, said.text
    assert told in said.text
    assert len(said.text.strip().splitlines()) == 1
    assert not any(tmp_path.iterdir())


def test_a_launcher_that_is_stopped_while_it_waits_leaves_the_jobs_alone(slurm: Sandbox, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "jobs" / "launch_grid.py"), *ONE, "cluster=slurm", "wait=true"]
    launcher = subprocess.Popen(command, env=slurm.env, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    assert any("submitted 2 jobs" in line for line in launcher.stdout)  # then it waits
    assert len(submissions(tmp_path / "results")) == 3
    launcher.send_signal(signal.SIGINT)
    launcher.communicate(timeout=90)
    assert launcher.returncode == 130
    table = tmp_path / "results" / "reports" / "quickstart" / "comparison.md"
    slurm.wait_for(lambda: table.exists() and "completed" in table.read_text(), timeout_s=300)
