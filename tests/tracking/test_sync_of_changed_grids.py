"""Sync where the grid, or what W&B has of it, is no longer what it was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_cases import entry
from tracked_runs import carry_out, scratch_run, sync, verified, write_grid
from wandb_server import StandIn

from transfergrid.paths import StorePaths
from transfergrid.store import records
from transfergrid.tracking import Followed
from transfergrid.tracking import sync as syncing
from transfergrid.tracking.account import Account
from transfergrid.tracking.client import SETTINGS
from transfergrid.tracking.mirror import RunMirror


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn() as started:
        yield started


@pytest.mark.wandb
def test_a_run_that_the_grid_has_no_more_loses_its_tag_and_nothing_else(server: StandIn, tmp_path: Path) -> None:
    store = StorePaths(tmp_path / "results")
    kept, dropped = scratch_run(0), scratch_run(1)
    for run in (kept, dropped):
        carry_out(store, run)
    write_grid(store, [kept, dropped])
    assert sync(server, store).lines == [verified(2, sent=2)]
    records.write_grid(store.grid("other"), grid="other", entries=[entry(dropped)], select_by="macro_f1")
    assert sync(server, store, grid="other").lines == [verified(1, sent=0)]
    assert json.loads(server.run("grid-other").files["grid.json"])["select_by"] == "macro_f1"

    write_grid(store, [kept])  # launched again with other seeds
    assert sync(server, store).lines == [verified(1, sent=0)]
    assert "grid:g" in server.run(kept.run_id).tags
    assert "grid:g" not in server.run(dropped.run_id).tags
    assert {"grid:other", "baseline_cnn", "scratch"} <= set(server.run(dropped.run_id).tags)
    assert len([row for row in server.run(dropped.run_id).history if "line" in row]) == 12


def test_a_run_that_was_deleted_in_wandb_is_told_with_what_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = StorePaths(tmp_path / "results")
    carry_out(store, scratch_run(0))

    def refused(self: RunMirror, *, over: bool) -> bool:
        self.error, self.is_deleted = "CommError: returned error 409: in whatever words", True
        return True

    monkeypatch.setattr(RunMirror, "step", refused)
    server: Any = None
    one = syncing._Sync("g", store, server, [], None)
    images: Any = None
    mirror = RunMirror(store, Followed(scratch_run(0).run_id, "", 0), grid="g", server=server, images=images)
    [problem] = one._send_and_verify(mirror)
    assert problem == "it was deleted in W&B, which takes no id twice; sync into another project: project=NAME"


@pytest.mark.wandb
def test_a_server_that_has_deleted_a_run_and_refuses_its_id_is_understood(
    server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SETTINGS, "init_timeout", 2.0)  # W&B asks for the id that it cannot have until then
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    store, run = StorePaths(tmp_path / "results"), scratch_run()
    carry_out(store, run)
    write_grid(store, [run])
    account = Account(server.url, "transfergrid")
    assert syncing.sync_grid("g", store, account).problems == []
    server.state.delete_run(server.run(run.run_id))
    [problem] = syncing.sync_grid("g", store, account).problems
    assert str(problem) == (
        f"{run.run_id}: it was deleted in W&B, which takes no id twice; sync into another project: project=NAME"
    )
