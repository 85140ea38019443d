"""The jobs by which doctor looks at nodes: how they are sent, found and read."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cluster_cases import executable
from fake_slurm import FakeSlurm, a_fake

from transfergrid.doctor import node_findings
from transfergrid.doctor.nodecheck_jobs import ProbeAnswer, ProbeJobs, job_script, parse_output
from transfergrid.resources import ClusterSettings, Resources

SETTINGS = ClusterSettings(name="slurm", kind="slurm", resources=Resources(partition="gpu"))
fake = a_fake


def sent(fake: FakeSlurm, folder: Path, *, queue_s: float = 5.0, visible_s: float = 0.0) -> ProbeAnswer:
    with ProbeJobs(queue_s=queue_s, visible_s=visible_s) as jobs:
        jobs.send("node", "#!/bin/bash\n", folder=folder / "node-job", settings=SETTINGS, gpus=1, nodes=1)
        return jobs.wait()["node"]


def test_a_job_that_does_not_start_in_time_is_cancelled_and_unknown(fake: FakeSlurm, tmp_path: Path) -> None:
    fake.states["71"] = "PENDING"
    fake.save()
    check = node_findings.check_probe(sent(fake, tmp_path, queue_s=0.2))
    assert check.ok is None
    assert check.message == "could not be checked: the probe job did not start in 0 s (SLURM says: Priority)"
    assert fake.called("scancel") == [["71"]]


def test_a_strangers_job_of_the_same_number_is_neither_believed_nor_cancelled(
    fake: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sbatch took the probe, and the queue shows the number under another name."""
    monkeypatch.setattr("transfergrid.doctor.nodecheck_jobs.new_token", iter(("a" * 12, "b" * 12)).__next__)
    fake.states["71"] = "RUNNING"
    fake.save()
    with ProbeJobs(queue_s=5.0, visible_s=0.0) as jobs:
        jobs.send("node", "#!/bin/bash\n", folder=tmp_path / "job", settings=SETTINGS, gpus=1, nodes=1)
        (fake.folder / "names.json").write_text('{"71": "train-their-net"}')
        assert jobs.wait()["node"].job_id == ""
    assert fake.called("scancel") == []


def test_a_job_that_slurm_refuses_is_told_in_its_words(fake: FakeSlurm, tmp_path: Path) -> None:
    fake.say("sbatch", "!sbatch: error: Batch job submission failed: Invalid account")
    check = node_findings.check_probe(sent(fake, tmp_path))
    assert check.ok is False and check.message.endswith("Invalid account")


def test_a_probe_whose_answer_is_lost_is_found_by_its_name(
    fake: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site").mkdir()
    lines = (f'{fake.folder}/sbatch "$@" >/dev/null', "printf 'Unspecified error im M\\344rz\\n' >&2; exit 1")
    executable(tmp_path / "site" / "sbatch", *lines)
    monkeypatch.setenv("PATH", f"{tmp_path / 'site'}{os.pathsep}{os.environ['PATH']}")
    answer = sent(fake, tmp_path)
    assert (answer.job_id, answer.problem) == ("71", "")


def test_a_job_whose_output_does_not_show_points_to_the_store(fake: FakeSlurm, tmp_path: Path) -> None:
    fake.outputs["node"] = None
    fake.save()
    check = node_findings.check_probe(sent(fake, tmp_path))
    assert check.ok is False and "its output does not show in" in check.message and "store.dir=" in check.remedy


def test_a_job_that_fails_is_told_with_its_last_words(fake: FakeSlurm, tmp_path: Path) -> None:
    fake.states["71"] = "FAILED"
    fake.outputs["node"] = '{"host": "n7"}\n/usr/bin/python: No module named transfergrid\n'
    fake.save()
    answer = sent(fake, tmp_path)
    assert answer.problem == "job 71 ended as FAILED: /usr/bin/python: No module named transfergrid"
    assert answer.findings == {"host": "n7"}


def test_a_probe_asks_for_what_a_run_would_ask_for(fake: FakeSlurm, tmp_path: Path) -> None:
    resources = Resources(partition="gpu,cpu", account="lab", gpus=2, gpu_type="a100", mem_gb=2)
    options: dict[str, str | bool] = {"reservation": "lab", "mail-type": "END"}
    settings = ClusterSettings(exclude="n9", sbatch=options, resources=resources)
    with ProbeJobs(queue_s=1.0, visible_s=0.0) as jobs:
        jobs.send("node", "#!/bin/bash\n", folder=tmp_path / "node-job", settings=settings, gpus=1, nodes=1)
        jobs.wait()
    asked = set(fake.called("sbatch")[0])
    assert {"--partition=gpu,cpu", "--account=lab", "--gres=gpu:a100:1", "--mem=2048M", "--time=2"} <= asked
    assert {"--exclude=n9", "--reservation=lab", "--no-requeue"} <= asked
    [name] = [option for option in asked if option.startswith("--job-name=")]
    assert re.fullmatch(r"--job-name=tg-doctor-[0-9a-f]{12}", name)
    assert not any("mail" in option for option in asked)


def test_a_probe_starts_python_as_a_run_does(tmp_path: Path) -> None:
    settings = ClusterSettings(setup=("module load python",), python="apptainer exec image.sif python")
    lines = job_script(settings, tmp_path, ["pair", "--folder=store=/a b"], nodes=2).splitlines()
    first = lines.index("set -eo pipefail")
    assert lines[first + 1 : first + 4] == ["tg_line='module load python'", "module load python", "tg_line="]
    assert str(tmp_path) in lines[first + 4]
    assert lines[-1] == (
        "srun --mpi=none --nodes=2 --ntasks=2 --ntasks-per-node=1 apptainer exec image.sif python"
        " -m transfergrid.doctor.nodecheck pair '--folder=store=/a b'"
    )


def test_the_probes_script_tells_what_it_has_itself_and_which_line_of_setup_failed(tmp_path: Path) -> None:
    executable(tmp_path / "bin" / "squeue", "true")
    (tmp_path / "bin" / "bash").symlink_to("/bin/bash")

    def said(*setup: str) -> tuple[dict[str, Any], str]:
        script = job_script(ClusterSettings(setup=setup, python="true"), tmp_path, ["node"], nodes=1)
        (tmp_path / "job.sh").write_text(script)
        done = subprocess.run(
            ["/bin/bash", tmp_path / "job.sh"],
            env={"PATH": str(tmp_path / "bin")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return parse_output(done.stdout)

    assert said("X=1") == ({"batch_script": {"squeue": True, "scontrol": False}}, "")
    assert said("false") == ({}, "transfergrid: cluster.setup failed with exit code 1 at: false")


def test_findings_are_told_apart_from_what_modules_print() -> None:
    text = 'Loading CUDA 13\n{"host": "n1"}\n[1]\n\n{"cores": 4}\nslurmstepd: error: killed\n'
    assert parse_output(text) == ({"host": "n1", "cores": 4}, "slurmstepd: error: killed")
