"""Commands that messages name, to be pasted into a shell."""

from __future__ import annotations

from pathlib import Path

import pytest

from transfergrid.config.spelling import command_of_grid
from transfergrid.paths import StorePaths


def test_a_command_names_the_store_where_it_is_not_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for default in (Path("results"), tmp_path / "results"):
        assert command_of_grid("report.py", "g", StorePaths(default)) == "python jobs/report.py grid=g"
    elsewhere = StorePaths(tmp_path / "a b")
    told = command_of_grid("status.py", "a+b", elsewhere, "retry=oom")
    assert told == f"python jobs/status.py grid=a+b 'store.dir={elsewhere.root}' retry=oom"
