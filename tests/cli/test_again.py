"""run_phase again=RUN_ID: what it needs is run first, the same numbers come out, and what is done is not done twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import MACHINE, carry_out, final_run, metrics_without_times, paths_of, record_of, request

from transfergrid.cli.console import OK
from transfergrid.cli.run_phase import run_phase
from transfergrid.config import load_run


def test_a_run_is_computed_anew_into_another_store_with_what_it_needs_and_the_same_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = request(tmp_path, "model=tinynet_mnist", "phase=finetune")
    run = final_run(first)
    assert carry_out(first) == "completed"
    folder = paths_of(run, first.runtime).root

    assert run_phase([f"again={run.run_id}", f"store.dir={tmp_path / 'store'}", "cluster=local", *MACHINE]) == OK
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"{run.run_id} is done: its results are in {folder}"
    assert told[1].endswith(f"python jobs/run_phase.py again={folder} store.dir=DIR")

    places = (f"store.dir={tmp_path / 'anew'}", f"cache.dir={tmp_path / 'empty'}", "cluster=local")
    anew = load_run([f"again={folder}", *places, *MACHINE])
    assert carry_out(anew) == "completed"
    assert final_run(anew) == run and list(anew.runs) == list(first.runs)
    assert record_of(run, anew.runtime).metrics == record_of(run, first.runtime).metrics
    lines = [metrics_without_times(paths_of(run, asked.runtime)) for asked in (anew, first)]
    assert lines[0] == lines[1] and lines[0]
