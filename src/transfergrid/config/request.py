"""What a launch or a run by hand asks for, checked: all that the other floors see of a command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transfergrid.paths import StorePaths
from transfergrid.resources import ClusterSettings
from transfergrid.specs import Configuration, RunSpec, Runtime, SelectBy
from transfergrid.store.records import GridEntry, entry_of

if TYPE_CHECKING:
    from transfergrid.data import DatasetFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a command line asks for.

    configurations: the rows of the grid. runs: these and the runs they need, by run_id, needed ones first
    (extractions are the plan's business). facts: of each data set, by its name, as far as they have been read.
    replaces_grid: a launch redefines its grid, a run by hand adds to it.
    replace: rows that the grid has and this launch has not may go.
    select_by: the score on val that the grid's report chooses by; None leaves it as the grid has it.
    notes: what the user is told about the pictures, a line each.
    again: runs that the user wants sent again though SLURM may still have them.
    """

    grid: str
    configurations: tuple[Configuration, ...]
    runs: dict[str, RunSpec]
    runtime: Runtime
    cluster: ClusterSettings
    dry_run: bool
    wait: bool | None
    replaces_grid: bool
    replace: bool = False
    cluster_config: dict[str, Any]
    emit: str | None = None
    notify: str | None = None
    needs_only_checked: bool = False
    select_by: SelectBy | None = None
    notes: tuple[str, ...] = ()
    facts: dict[str, DatasetFacts] = field(default_factory=dict)
    again: frozenset[str] = frozenset()

    @property
    def store(self) -> StorePaths:
        return StorePaths(Path(self.runtime.store_dir))

    def entries(self) -> list[GridEntry]:
        return [entry_of(c.run, c.variant) for c in self.configurations]
