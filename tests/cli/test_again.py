"""run_phase again=RUN_ID: what it needs is run first, the same numbers come out, and what is done is not done twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import MACHINE, carry_out, final_run, metrics_without_times, paths_of, record_of, request

from transfergrid.cli.console import OK, make_console
from transfergrid.cli.grid_file import write_grid_of
from transfergrid.cli.run_phase import run_phase
from transfergrid.config import load_run
from transfergrid.errors import ConfigError
from transfergrid.specs import to_dict
from transfergrid.store import durable
from transfergrid.store.records import launched_with


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


def test_it_joins_its_grid_and_leaves_where_that_is_sent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = request(tmp_path, "model=tinynet", "phase=scratch", "grid_name=mine", "tracking.project=of-the-lab")
    run, console = final_run(first), make_console()
    write_grid_of(console, first)
    durable.write_json(paths_of(run, first.runtime).spec, to_dict(run))
    again = load_run([f"again={run.run_id}", f"store.dir={first.runtime.store_dir}", "cluster=local", *MACHINE])
    assert (again.grid, again.runtime.wandb_project) == ("mine", "transfergrid")
    write_grid_of(console, again)
    kept = launched_with(first.store.grid("mine"))
    assert kept is not None and kept.wandb_project == "of-the-lab"


def test_of_several_runs_at_once_it_is_refused() -> None:
    with pytest.raises(ConfigError, match="again= carries out one run; leave -m out"):
        run_phase(["-m", "again=some-run", "dry_run=true"])


def test_a_grids_name_is_checked_as_of_every_run(tmp_path: Path) -> None:
    first = request(tmp_path, "model=tinynet", "phase=scratch")
    run = final_run(first)
    durable.write_json(paths_of(run, first.runtime).spec, to_dict(run))
    with pytest.raises(ConfigError, match="grid name 'My Grid' may hold only"):
        load_run([f"again={run.run_id}", f"store.dir={first.runtime.store_dir}", "grid_name='My Grid'", *MACHINE])
