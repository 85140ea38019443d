"""wait=true: what the launcher says when all has ended."""

from __future__ import annotations

from pathlib import Path

from replayed_slurm import ago

from transfergrid.cli.waiting import published_lines
from transfergrid.cluster.evidence import FINISHED
from transfergrid.cluster.ledger import Submission, read_ledger, record
from transfergrid.paths import StorePaths
from transfergrid.store import durable


def test_the_end_of_a_watched_launch_tells_what_its_newest_finish_job_said_of_wandb(tmp_path: Path) -> None:
    store = StorePaths(tmp_path / "results")
    assert published_lines(read_ledger(store), "g") == []
    for job_id, lines in (
        ("7", ["W&B: all is there: http://old"]),
        ("8", ["error: no key", "W&B: run sync.py"]),
    ):
        launch = store.launches / f"20261120T12000{job_id}-aaaaaaaa"
        sent = Submission(
            name=f"finish-{job_id}",
            grid="g",
            launch=launch,
            tasks=((),),
            job_id=job_id,
            submitted=ago(100 - int(job_id)),
            kind="finish",
        )
        record(sent)
        durable.write_json(sent.folder / FINISHED, {"wandb": lines})
    assert published_lines(read_ledger(store), "g") == ["error: no key", "W&B: run sync.py"]
