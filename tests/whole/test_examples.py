"""examples/: the scripts as a person starts them from the checkout, and the cluster files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from transfergrid.config.cluster import cluster_settings
from transfergrid.config.compose import compose_config
from transfergrid.config.folders import VARIABLE
from transfergrid.resources import ONE_TASK

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_the_cluster_files_ask_for_what_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(EXAMPLES / "conf"))
    assert sorted(path.stem for path in (EXAMPLES / "conf/cluster").iterdir()) == ["cpu_only", "mylab"]
    lab = cluster_settings(compose_config(["cluster=mylab"]).cluster)
    assert (lab.name, lab.kind, lab.finish_partition, lab.setup) == ("mylab", "slurm", "cpu", ("module purge",))
    options = lab.options(lab.of_phase("finetune"))
    assert options["partition"] == "gpu,gpu-long" and options["gres"] == "gpu:a100:1" and options["mail-type"] == "FAIL"
    assert (options["time"], options["mem"], options["constraint"]) == ("480", "65536M", "nvlink")
    assert lab.options(lab.of_phase("extract"))["time"] == "60"
    cpus = cluster_settings(compose_config(["cluster=cpu_only"]).cluster)
    of_probe = cpus.options(cpus.of_phase("probe"))
    assert of_probe == ONE_TASK | {"partition": "compute", "cpus-per-task": "16"}


@pytest.mark.slow
def test_own_pictures_are_compared_and_new_ones_named_and_the_results_read(tmp_path: Path) -> None:
    """The printed figures are those of the records; nine of ten new digits get their name."""

    def printed(*command: str) -> str:
        script = [sys.executable, str(EXAMPLES / command[0]), *command[1:]]
        done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    _, _, answer = printed("own_pictures.py").partition("\nbest on val: ")
    best, *named = answer.splitlines()
    assert len(named) == 10 and sum(line.split("_")[0] == line.split()[-1] for line in named) >= 9

    records = [json.loads(path.read_text()) for path in tmp_path.glob("results/runs/*-probe-*/record.json")]
    assert len(records) == 3
    top = max(records, key=lambda record: record["metrics"]["val_accuracy"])["metrics"]["val_accuracy"]
    tied = [record for record in records if record["metrics"]["val_accuracy"] == top]
    assert best in [f"{r['spec']['model']} (probe), test accuracy {r['metrics']['test_accuracy']:.3f}" for r in tied]

    rows, _, runs = printed("read_results.py", "compare-pictures").partition("\n\n")
    for record in records:
        (row,) = [line.split() for line in rows.splitlines() if line.startswith(f"{record['spec']['model']} ")]
        assert row[1:3] == ["probe", f"{100 * record['metrics']['test_accuracy']:.1f}"]
        (line,) = [line for line in runs.splitlines() if line.startswith(f"{record['run_id']} ")]
        assert f"{record['phase_s']:.1f} s" in line and "(800, 64)" in line
