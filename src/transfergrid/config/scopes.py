"""The configurations that the rows of one command line have, each composed and checked once."""

from __future__ import annotations

import contextlib
import copy
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from omegaconf import DictConfig, OmegaConf

from transfergrid.config.compose import check_choice, compose_config, is_setting, parse_overrides, set_value
from transfergrid.config.dataset import DatasetChoice, resolve_dataset
from transfergrid.config.folders import choices
from transfergrid.config.keys import choice
from transfergrid.config.resolve import Scope
from transfergrid.config.settings import check_settings
from transfergrid.config.variants import Rule, Variant
from transfergrid.data import DatasetFacts, ValueRange
from transfergrid.errors import ConfigError
from transfergrid.paths import CachePaths
from transfergrid.specs import Phase, Protocol

FolderProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a grid's table, all its seeds."""

    dataset: str
    model: str
    phase: Phase
    variant: Variant


@dataclass
class Scopes:
    """Of open_scopes(). What all runs share (facts, folders, files) is read off the scopes once these are there."""

    arguments: Sequence[str]
    config: DictConfig
    rules: Sequence[Rule]
    protocol: Protocol
    catalog_dir: Path
    progress: FolderProgress | None
    _by_dataset: dict[str, Scope] = field(default_factory=dict)
    _by_changes: dict[tuple[str, str, tuple[int, ...]], Scope] = field(default_factory=dict)

    @property
    def named_dataset(self) -> str:
        return next((a.split("=", 1)[1] for a in self.arguments if a.startswith("dataset=")), "digits")

    def skips(self, row: Row) -> bool:
        return any(r.skip and r.selection.holds(row.model, row.dataset, row.phase) for r in self.rules)

    def of(self, row: Row) -> Scope:
        """Shared by all rows of a data set and a variant for which the same rules hold."""
        numbered = enumerate(self.rules)
        holding = tuple(i for i, r in numbered if not r.skip and r.selection.holds(row.model, row.dataset, row.phase))
        key = (row.dataset, row.variant.name, holding)
        if key not in self._by_changes:
            self._by_changes[key] = self._changed(row.dataset, row.variant, [self.rules[i] for i in holding])
        return self._by_changes[key]

    def of_dataset(self, dataset: str, *, of_run: ValueRange | None = None) -> Scope:
        """The grid's defaults over one data set. of_run: the value range of the finished run evaluated on it."""
        if dataset not in self._by_dataset:
            check_choice("dataset", dataset)
            config = self.config
            if dataset != self.named_dataset:
                arguments = [a for a in self.arguments if not a.startswith("dataset=")]
                config = compose_config([*arguments, f"dataset={dataset}"])
            scope = Scope(config, self._resolved(config, of_run), self.protocol, self.catalog_dir)
            name, folder = scope.dataset.spec.name, scope.dataset.folder
            if folder is not None and self.folders.get(name, folder) != folder:
                raise ConfigError(f"two folders are both named {name!r}; give one a dataset.name")
            self._by_dataset[dataset] = scope
        return self._by_dataset[dataset]

    @property
    def folders(self) -> dict[str, str]:
        """Data set -> where its pictures lie."""
        choices_ = (scope.dataset for scope in self._by_dataset.values())
        return {choice_.spec.name: choice_.folder for choice_ in choices_ if choice_.folder is not None}

    @property
    def tables(self) -> dict[str, str]:
        """Data set -> its table."""
        choices_ = (scope.dataset for scope in self._by_dataset.values())
        return {choice_.spec.name: choice_.table for choice_ in choices_ if choice_.table is not None}

    @property
    def facts(self) -> dict[str, DatasetFacts]:
        return {scope.dataset.spec.name: scope.dataset.facts for scope in self._all}

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(note for scope in self._all for note in scope.dataset.notes))

    @property
    def weights_files(self) -> dict[str, str]:
        return {identity: file for scope in self._all for identity, file in scope.weights_files.items()}

    @property
    def _all(self) -> list[Scope]:
        return [*self._by_dataset.values(), *self._by_changes.values()]

    def _changed(self, dataset: str, variant: Variant, rules: list[Rule]) -> Scope:
        base = self.of_dataset(dataset)
        if not rules and not variant.changes:
            return base
        config = copy.deepcopy(base.config)
        # The order is the precedence: grid file, rules, command line, variant.
        for rule in rules:
            for name, value in rule.changes.items():
                set_value(config, name, value, where="grid.rules")
        keys = [str(override.key_or_group) for override in parse_overrides(self.arguments)] if rules else []
        for name in filter(is_setting, keys):  # what the command line sets wins over a grid file's rules, too
            set_value(config, name, OmegaConf.select(base.config, name), where="command line")
        for name, value in variant.changes.items():
            set_value(config, name, value, where=f"grid.variants.{variant.name}")
        checked_protocol(config)
        same = config.dataset == base.config.dataset  # then the folder's thousands of files are not looked at again
        dataset_choice = base.dataset if same else self._resolved(config, None)
        if dataset_choice.table != base.dataset.table:
            raise ConfigError(
                f"{dataset_choice.spec.name}: the rows of one grid have one split; launch another as its own grid"
            )
        return Scope(config, dataset_choice, self.protocol, self.catalog_dir)

    def _resolved(self, config: DictConfig, of_run: ValueRange | None) -> DatasetChoice:
        keep = not self.config.dry_run
        return resolve_dataset(config, cache_of(config), keep=keep, progress=self.progress, of_run=of_run)


@contextlib.contextmanager
def open_scopes(
    arguments: Sequence[str], config: DictConfig, *, rules: Sequence[Rule] = (), progress: FolderProgress | None
) -> Iterator[Scopes]:
    """Raises ConfigError. A dry run writes nothing: what it has described of timm's networks goes after the block."""
    protocol, catalog_dir = checked_protocol(config), cache_of(config).catalog
    with contextlib.ExitStack() as stack:
        if config.dry_run and any("timm/" in argument for argument in arguments):
            described, catalog_dir = catalog_dir, Path(stack.enter_context(tempfile.TemporaryDirectory()))
            for description in described.glob("timm-*.json"):
                shutil.copy(description, catalog_dir)
        yield Scopes(arguments, config, rules, protocol, catalog_dir, progress)


def cache_of(config: DictConfig) -> CachePaths:
    return CachePaths(Path(config.cache.dir))


def checked_protocol(config: DictConfig) -> Protocol:
    """The protocol, once every value is checked that needs no data. Raises ConfigError."""
    choice("tracking.mode", config.tracking.mode, choices("tracking"))
    check_settings(config)
    for key in ("store.dir", "cache.dir", "data.dir", "weights_dir"):
        value = OmegaConf.select(config, key)
        if value is not None:
            _check_folder_name(key, value)
    if config.protocol == "published" and config.grid.study is None:
        raise ConfigError(
            "protocol=published belongs to a published study; use a grid file that names one (grid.study)"
        )
    return cast(Protocol, config.protocol)


def _check_folder_name(key: str, value: str) -> None:
    """A folder that is there or can be made; whether it can be written is seen when it is."""
    if not value.strip() or "\0" in value:
        raise ConfigError(f"{key}={value!r} is not the name of a folder")
    path = Path(value)
    try:
        there = next((p for p in (path, *path.parents) if p.exists()), path)
    except OSError as error:
        raise ConfigError(f"{key}={value!r} cannot be a folder: {error.strerror}") from error
    if there.exists() and not there.is_dir():
        raise ConfigError(f"{key}={value!r} cannot be a folder: {there} is a file")
