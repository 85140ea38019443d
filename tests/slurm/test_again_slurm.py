"""`again=` on a real SLURM: the command by which a row of the table is run once more; and the logs that it leaves."""

from __future__ import annotations

from pathlib import Path

import pytest
from sandbox import Sandbox
from slurm_runs import QUICK, jobs, records, submissions
from small_runs import DATASET

pytestmark = pytest.mark.slurm


def test_a_run_that_failed_on_its_node_is_sent_again_by_its_name_and_its_epochs_are_shown_once(
    slurm: Sandbox, tmp_path: Path
) -> None:
    """The sandbox's GPUs are no torch's: device=cuda fails on the node, device=cpu does not."""
    machine = ("cluster=slurm", *(a for a in QUICK if not a.startswith("device=")))
    asked = ("model=baseline_cnn", "phase=scratch", "phase.scratch.epochs=2", *DATASET)
    said = jobs("run_phase.py", *asked, *machine, "device=cuda", env=slurm.env, cwd=tmp_path)
    assert said.code == 0, said.text
    store = tmp_path / "results"
    slurm.wait_for(lambda: records(store), timeout_s=240)
    [(run_id, failed)] = records(store).items()
    assert (failed["status"], failed["failure_class"]) == ("failed", "environment"), failed["error"]

    name, beginning = f"again={run_id[-12:]}", f"run={run_id[:20]}"
    again = jobs("run_phase.py", name, *machine, "device=cpu", "wait=true", env=slurm.env, cwd=tmp_path)
    assert again.code == 0, again.text
    record = records(store)[run_id]
    assert (record["status"], record["attempt"]) == ("completed", 2)
    first, second = (s for s in submissions(store) if s["kind"] == "runs")
    assert record["provenance"]["slurm_job_id"] == second["job_id"] != first["job_id"]
    done = jobs("run_phase.py", name, *machine, "device=cpu", env=slurm.env, cwd=tmp_path)
    assert done.code == 0 and f"{run_id} is done: " in done.text
    assert len(submissions(store)) == len({s["name"] for s in submissions(store)}) == 4

    epochs = [f" INFO epoch {number}/2: train loss " for number in (1, 2)]
    [errors] = store.glob(f"launches/*/slurm/{second['name']}/{second['job_id']}_0_log.err")
    for log in (store / "runs" / run_id / "log.txt", errors):
        assert [log.read_text().count(epoch) for epoch in epochs] == [1, 1]
    followed = jobs("status.py", beginning, "logs=true", env=slurm.env, cwd=tmp_path)
    assert followed.code == 0 and followed.text.endswith(f"{run_id}: done\n")
    assert [followed.text.count(epoch) for epoch in epochs] == [1, 1], followed.text
