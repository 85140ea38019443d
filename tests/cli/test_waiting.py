"""wait=true: the code of its waves, and what the launcher says when all has ended."""

from __future__ import annotations

import shutil
from pathlib import Path

from replayed_slurm import ago
from small_runs import request

from transfergrid.cli.sending import Submitting, make_launch
from transfergrid.cli.waiting import published_lines
from transfergrid.cluster.evidence import FINISHED
from transfergrid.cluster.finish_job import finish_resources
from transfergrid.cluster.ledger import Submission, read_ledger, record
from transfergrid.cluster.limits import unseen_limits
from transfergrid.paths import StorePaths
from transfergrid.planning.plan import Plan
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


def test_a_later_wave_has_code_of_its_own_where_the_first_one_s_was_tidied_up(tmp_path: Path) -> None:
    asked = request(tmp_path, "model=tinynet_mnist", "phase=probe", "grid_name=mine")
    submitting = Submitting(asked, unseen_limits(), finish_resources(asked.cluster))
    first, second = (make_launch(submitting, Plan(()))[0] for _ in range(2))
    assert second.source == first.source
    shutil.rmtree(first.folder / "code")
    third, _ = make_launch(submitting, Plan(()))
    assert third.source.is_relative_to(third.folder) and (third.source / "transfergrid").is_dir()
