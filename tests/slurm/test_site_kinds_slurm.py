"""A site with GPU types that are numbers, gres of other kinds, no memory told to SLURM, a hidden partition and one for
a group alone: what its users ask for, as root and as an ordinary user, on a real SLURM."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from sandbox import Options, Sandbox
from slurm_runs import ROOT, Said, jobs, records, submissions
from slurm_sandbox import started

from transfergrid.cli.launch import launch
from transfergrid.cli.status import status

pytestmark = pytest.mark.slurm

TINY = (
    *("grid.models=[baseline_cnn]", "grid.phases=[scratch]", "grid.seeds=[0]", "device=cpu", "tracking=disabled"),
    *("cluster.cpus=1", "report.figures=false", "phase.scratch.epochs=1", "cluster.poll_s=1"),
)
LEFT_OUT = (
    "jobs ask for cluster.mem_gb=null (default 16), all that partition main has; nobody has told SLURM what memory its"
    " nodes have"
)
ORDINARY = "nobody"


@pytest.fixture(scope="module")
def site() -> Iterator[Sandbox]:
    """Where an ordinary user may look, which pytest's own folders are not for."""
    folder = Path(tempfile.mkdtemp(prefix="tg-site-"))
    folder.chmod(0o755)
    try:
        slurm = started(
            folder / "box",
            Options(gpu_types="1080,3090", more_gres="shard:4,nvme:2,tmpdisk:100", memory_mb=None, requeue_wait_s=5),
        )
        slurm.run("scontrol", "create", "PartitionName=hid", "Nodes=ALL", "Hidden=YES", "MaxTime=60")
        slurm.run("scontrol", "create", "PartitionName=theirs", "Nodes=ALL", "AllowGroups=daemon")
        slurm.run("scontrol", "create", "PartitionName=ours", "Nodes=ALL", "AllowGroups=nogroup")
        yield slurm
        slurm.stop()
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def theirs(site: Sandbox) -> Iterator[Path]:
    """An ordinary user's folder."""
    folder = Path(tempfile.mkdtemp(dir=site.dir.parent))
    shutil.chown(folder, ORDINARY)
    yield folder
    site.run("scancel", "-u", ORDINARY)


def as_ordinary(script: str, *arguments: str, slurm: Sandbox, cwd: Path, env: Mapping[str, str] | None = None) -> Said:
    """As that user types it. Reading everything is its one right more: this Python may lie in root's own folder."""
    reading = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
    own = {"USER": ORDINARY, "LOGNAME": ORDINARY, "HOME": str(cwd), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["setpriv", f"--reuid={ORDINARY}", "--regid=nogroup", "--clear-groups", *reading, "--"]
        + [sys.executable, str(ROOT / "jobs" / script), *arguments],
        env=slurm.env | own | dict(env or {}),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
    )
    assert "Traceback" not in done.stdout, done.stdout
    return Said(done.returncode, done.stdout)


def requested(slurm: Sandbox, store: Path) -> list[tuple[str, str]]:
    """(memory, gres) of the jobs of runs, then of the finish job, as SLURM has them."""
    sent = sorted(submissions(store), key=lambda s: s["kind"], reverse=True)
    said = [slurm.run("squeue", "-a", "-h", "-j", s["job_id"], "-o", "%m|%b").strip().split("|") for s in sent]
    return [(memory, gres) for memory, gres in said]


def test_typed_gpus_that_are_numbers_other_gres_and_no_memory_stand_in_one_request(
    site: Sandbox, tmp_path: Path
) -> None:
    asked = (*TINY, "cluster=slurm", "cluster.gpu_type=1080")
    more = "cluster.sbatch={gres: 'nvme:1,tmpdisk:10', hold: true}"
    said = jobs("launch_grid.py", *asked, more, env=site.env, cwd=tmp_path)
    assert said.code == 0 and said.text.count(LEFT_OUT) == 1, said.text
    assert requested(site, tmp_path / "results") == [
        ("0", "gres:gpu:1080:1,gres:nvme:1,gres:tmpdisk:10"),
        ("0", "N/A"),
    ]
    assert jobs("status.py", "grid=quickstart", "cancel=true", env=site.env, cwd=tmp_path).code == 0


def test_the_same_from_a_cluster_file(
    site: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "conf" / "cluster").mkdir(parents=True)
    (tmp_path / "conf" / "cluster" / "mylab.yaml").write_text(
        "name: mylab\nkind: slurm\ngpu_type: 3090\ngpu_request: gpus-per-node\nmem_gb: null\n"
        "sbatch: {gres: 'nvme:2', hold: true}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_CONF", str(site.conf))
    assert launch([*TINY, "cluster=mylab"]) == 0
    assert "memory" not in capsys.readouterr().out
    [(memory, gres), _] = requested(site, tmp_path / "results")
    assert (memory, sorted(gres.split(","))) == ("0", ["gres:gpu:3090:1", "gres:nvme:2"])
    assert status(["grid=quickstart", "cancel=true"]) == 0


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (
            "cluster.mem_gb=4",
            "SLURM refuses the memory asked for; give less as cluster.mem_gb=, or cluster.mem_gb=null",
        ),
        ("cluster.sbatch={gres: 'shard:1'}", "SLURM refuses the GPUs or gres asked for"),
        ("cluster.sbatch={gres: 'gpu:1080:1,nvme:1'}", "holds GPUs; cluster.gpus= and cluster.gpu_type= ask for them"),
        ("cluster.gpu_type=2080", "cluster.gpu_type='2080' is unknown in partition main; known: 1080, 3090"),
    ],
)
def test_what_collides_or_is_not_there_is_refused_before_sending(
    site: Sandbox, tmp_path: Path, asked: str, told: str
) -> None:
    said = jobs("launch_grid.py", *TINY, "cluster=slurm", asked, env=site.env, cwd=tmp_path)
    assert said.code == 2 and told in said.text, said.text
    assert not (tmp_path / "results").exists()


def test_a_job_that_slurm_refuses_and_shows_as_failed_all_the_same_was_not_sent(site: Sandbox, tmp_path: Path) -> None:
    """Three of what each node has two of: sbatch fails, and squeue and sacct have a job FAILED of that name."""
    asked = (*TINY, "cluster=slurm", "cluster.sbatch={gres: 'nvme:3'}")
    said = jobs("launch_grid.py", *asked, env=site.env, cwd=tmp_path)
    assert said.code == 1 and "sbatch refused tg-quickstart-scratch-" in said.text, said.text
    assert "Requested node configuration is not available" in said.text and "Traceback" not in said.text
    assert submissions(tmp_path / "results") == []
    assert jobs("launch_grid.py", *asked, "emit=scripts", env=site.env, cwd=tmp_path).code == 0
    command = ["bash", "scripts/submit.sh"]
    sent = subprocess.run(command, env=site.env, cwd=tmp_path, capture_output=True, text=True, timeout=180)
    assert sent.returncode == 1 and "SLURM shows no such job" in sent.stderr, sent.stderr
    assert [s["job_id"] for s in submissions(tmp_path / "results")] == [None]
    shown = site.run("squeue", "-a", "-h", "-t", "all", "-o", "%T|%r|%j").splitlines()
    assert sum(row.startswith("FAILED|BadConstraints|tg-quickstart-scratch-") for row in shown) >= 2


def test_an_ordinary_user_meets_hidden_partitions_and_those_of_other_groups(site: Sandbox, theirs: Path) -> None:
    asked = (*TINY, "cluster=slurm")
    refused = as_ordinary("launch_grid.py", *asked, "cluster.partition=theirs", slurm=site, cwd=theirs)
    assert refused.code == 2 and "cluster.partition: none of your groups may use it; name another" in refused.text
    assert not (theirs / "results").exists()
    taken = as_ordinary(
        *("launch_grid.py", *asked, "cluster.partition=[theirs,ours]", "dry_run=true"), slurm=site, cwd=theirs
    )
    assert taken.code == 0 and "SLURM expects scratch jobs to start at" in taken.text, taken.text
    held = ("cluster.partition=hid", "cluster.sbatch={hold: true}")
    said = as_ordinary("launch_grid.py", *asked, *held, slurm=site, cwd=theirs)
    assert said.code == 0 and "cluster.timeout_min=60 (default 240), all that partition hid has" in said.text, said.text
    rows, squeue = [f"hid|{ORDINARY}|Dependency", f"hid|{ORDINARY}|JobHeldUser"], ("squeue", "-a", "-h", "-u", ORDINARY)
    assert site.wait_for(lambda: sorted(site.run(*squeue, "-o", "%P|%u|%r").split()) == rows, 60)
    status = as_ordinary("status.py", "grid=quickstart", slurm=site, cwd=theirs)
    assert "1 pending" in status.text and "held" in status.text, status.text
    again = as_ordinary("launch_grid.py", *asked, *held, slurm=site, cwd=theirs)
    assert again.code == 0 and "nothing to submit" in again.text
    cancelled = as_ordinary("status.py", "grid=quickstart", "cancel=true", slurm=site, cwd=theirs)
    assert "cancelled 1 job of 1 run" in cancelled.text


@pytest.mark.full
def test_an_ordinary_users_runs_and_doctors_probes_go_through_there(site: Sandbox, theirs: Path) -> None:
    """Jobs have no right but their user's, so their Python lies where they may read it."""
    python = theirs.parent / "python"
    python.mkdir()
    subprocess.run(["mount", "--bind", sys.base_prefix, str(python)], check=True)
    packages = next(p for p in sys.path if p.endswith("site-packages"))
    binary = python / Path(os.path.realpath(sys.executable)).relative_to(os.path.realpath(sys.base_prefix))
    env = {"PYTHONPATH": packages}
    there = ("cluster=slurm", "cluster.partition=hid", f"cluster.python={binary}", "device=cpu")
    try:
        doctor = as_ordinary("doctor.py", *there, slurm=site, cwd=theirs, env=env)
        assert doctor.code == 0 and "4 CPUs, memory that SLURM was not told, 1 1080 1 3090" in doctor.text, doctor.text
        asked = (*TINY, *there, "cluster.gpu_type=3090", "wait=true")
        said = as_ordinary("launch_grid.py", *dict.fromkeys(asked), slurm=site, cwd=theirs, env=env)
        assert said.code == 0, said.text
        [record] = records(theirs / "results").values()
        assert record["status"] == "completed"
        assert (theirs / "results/reports/quickstart/comparison.md").exists()
        job_id = record["provenance"]["slurm_job_id"]
        told = site.run("sacct", "-n", "-X", "-P", "-j", job_id, "-o", "User,Partition,AllocTRES")
        assert told.startswith(f"{ORDINARY}|hid|") and "gres/gpu=1" in told
    finally:
        subprocess.run(["umount", "-l", str(python)], check=True)
