"""What jobs/sync.py is asked, and what it says of how it went."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from tracked_runs import runtime_of

from transfergrid.cli.sync import destination, show
from transfergrid.config.report import parse_sync
from transfergrid.errors import ConfigError
from transfergrid.paths import StorePaths
from transfergrid.store.records import write_grid
from transfergrid.tracking.sync import Problem, Synced


@pytest.mark.parametrize("argument", ["project=a/b", "entity=my team?", "tracking.project=" + "a" * 129])
def test_a_name_that_wandb_does_not_take_is_refused_before_anything_is_sent(argument: str) -> None:
    with pytest.raises(ConfigError, match="is not a name W&B takes"):
        parse_sync(["grid=g", argument])


def test_a_grid_file_that_is_not_there_is_told_but_is_no_run() -> None:
    console = Console(file=io.StringIO(), width=200)
    of_run = [Problem("a", "no tag 'x'"), Problem("a", "state is 'failed'")]
    of_grid = [Problem("grid.json", "refused", is_of_run=False), Problem("tags", "refused", is_of_run=False)]
    show(console, Synced(runs=2, problems=of_run + of_grid))
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().splitlines() == [
        "a: no tag 'x'",
        "a: state is 'failed'",
        "grid.json: refused",
        "tags: refused",
        "W&B: 2 runs in the store, 0 brought up to date, 1 read back and equal, 1 not",
    ]


@pytest.mark.parametrize(
    ("launched", "asked", "sent"),
    [((True, False), None, False), ((True, True), None, True), ((False, False), True, True)],
)
def test_pictures_go_where_every_grid_was_launched_so_or_it_is_asked(
    launched: tuple[bool, bool], asked: bool | None, sent: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    store = StorePaths(tmp_path)
    for name, images in zip("ab", launched, strict=True):
        write_grid(
            store.grid(name), grid=name, entries=[], runtime=runtime_of(store, wandb_images=images, wandb_project=name)
        )
    for grids in (["a", "b"], ["b", "a"]):
        account, images = destination(grids, store, project=None, entity=None, images=asked)
        assert (account.project, images) == (grids[0], sent)
