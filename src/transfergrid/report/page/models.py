"""The page's section of each model: what it is, how each of its rows was trained and chosen, and how to do it again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeGuard

from transfergrid.config.spelling import launch_again
from transfergrid.errors import DataError
from transfergrid.paths import StorePaths
from transfergrid.report.analysis.cells import accuracy_with_interval, percent, weights_text
from transfergrid.report.analysis.columns import status_with_class
from transfergrid.report.analysis.comparison import Comparison
from transfergrid.report.analysis.rerun import Command, commands_of
from transfergrid.report.analysis.rows import ComparisonRow
from transfergrid.report.blocks import Table, plain
from transfergrid.report.page.provenance import Flag
from transfergrid.specs import RunSpec, from_dict, to_dict
from transfergrid.store import durable, records
from transfergrid.store.records import GridEntry, RunRecord

CHOICES_SHOWN = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class RowDetails:
    """One row, in full. choices: what it was selected from; None where nothing was chosen. launch: the command of its
    grid, for where no run tells the exact one."""

    index: int
    row: ComparisonRow
    title: str
    flags: tuple[Flag, ...]
    commands: tuple[Command, ...]
    launch: str
    choices: Table[Sequence[str]] | None
    choice_notes: tuple[str, ...]
    settings: tuple[tuple[str, str], ...]
    run_ids: tuple[str, ...]

    @property
    def accuracy(self) -> str:
        return accuracy_with_interval(self.row)

    @property
    def status(self) -> str:
        return status_with_class(self.row)

    @property
    def published(self) -> str:
        rule = f" ({self.row.published_rule.replace('_', ' ')})" if self.row.published_rule else ""
        return "" if self.row.published_accuracy is None else f"{percent(self.row.published_accuracy)} %{rule}"


def row_details(comparison: Comparison, flags: Sequence[Sequence[Flag]]) -> list[RowDetails]:
    """Beside each row of the comparison."""
    store = comparison.store
    entries_of = {grid: _entries(grid, store) for grid in {row.grid for row in comparison.rows}}
    details = []
    for index, (row, runs) in enumerate(zip(comparison.rows, comparison.runs, strict=True)):
        run_ids = tuple(dict.fromkeys(e.run_id for e in entries_of[row.grid] if _key(e) == _key(row)))
        specs = [spec for run_id in run_ids if (spec := _spec_of(run_id, store)) is not None]
        weights = weights_text(row.weights) if row.weights else ""
        parts = (row.grid, row.dataset, row.phase, row.variant, weights, f"protocol {row.protocol}")
        details.append(
            RowDetails(
                index=index,
                row=row,
                title=" · ".join(part for part in parts if part),
                flags=tuple(flags[index]),
                commands=commands_of(specs, store),
                launch=launch_again(row.grid, store),
                choices=_choices(runs),
                choice_notes=_choice_notes(row, runs),
                settings=(*_settings(specs[0]), *_files_taken(runs, store)) if specs else (),
                run_ids=run_ids,
            )
        )
    return details


def _key(row: ComparisonRow | GridEntry) -> tuple[str, ...]:
    return (row.dataset, row.model, row.phase, row.variant, row.weights, row.protocol)


def _entries(grid: str, store: StorePaths) -> list[GridEntry]:
    return [e for e in records.read_grid(store.grid(grid)) if e.phase != "extract"]


def _spec_of(run_id: str, store: StorePaths) -> RunSpec | None:
    """From its record, else from spec.json, which an attempt leaves; None where neither is there."""
    try:
        record = records.read_record(store.run(run_id))
        return record.spec if record is not None else from_dict(RunSpec, durable.read_json(store.run(run_id).spec))
    except (DataError, OSError, ValueError, KeyError, TypeError):
        return None


# ---------------------------------------------------------------------------------------------- what it was chosen from
def _choices(runs: Sequence[RunRecord]) -> Table[Sequence[str]] | None:
    """One line per candidate with the seeds that chose it."""
    candidates = next((c for r in runs if _is_list_of_dicts(c := r.details.get("choices")) and len(c) > 1), None)
    if candidates is None:
        return None
    names = list(dict.fromkeys(name for candidate in candidates for name in candidate))
    lines = []
    for candidate in candidates[:CHOICES_SHOWN]:
        seeds = [
            "the one run" if r.spec.seed is None else str(r.spec.seed)
            for r in runs
            if _choice_of(r) == {name: candidate.get(name) for name in names}
        ]
        lines.append((*(_text(candidate.get(name)) for name in names), ", ".join(seeds)))
    header = [*names, "chosen on val by seed"]
    return plain(header, lines, left=len(header))


def _is_list_of_dicts(value: Any) -> TypeGuard[list[dict[str, Any]]]:
    return isinstance(value, list) and all(isinstance(v, dict) for v in value)


def _choice_of(run: RunRecord) -> dict[str, Any]:
    chosen = run.details.get("chosen")
    return {k: v for k, v in chosen.items() if k != "head"} if isinstance(chosen, dict) else {}


def _choice_notes(row: ComparisonRow, runs: Sequence[RunRecord]) -> tuple[str, ...]:
    if not runs:
        return ()
    notes = []
    candidates = runs[0].details.get("choices")
    if _is_list_of_dicts(candidates) and len(candidates) > CHOICES_SHOWN:
        notes.append(f"{len(candidates) - CHOICES_SHOWN} more candidates are in record.json")
    selection = getattr(runs[0].spec.settings, "selection", None)
    if selection == "best_on_test":
        notes.append("epoch: the best on the test set, as the study did; the number is therefore optimistic")
    elif selection is not None:
        notes.append(f"epoch: the last of {row.epochs}")
    if not candidates and row.protocol == "fair" and row.phase in ("finetune", "scratch"):
        notes.append("one fixed setting; nothing was chosen for this row")
    return tuple(notes)


# ---------------------------------------------------------------------------------------------------------- settings
def _settings(spec: RunSpec) -> tuple[tuple[str, str], ...]:
    """Everything that its identity covers, but the seed: (name, value), dotted."""
    named: dict[str, Any] = {}
    for part in spec.backbones:
        named[f"backbone {part.name}"] = f"tap {part.tap}, weights {part.weights.label} ({part.weights.identity})"
        prep = part.preprocess
        crop = f"{prep.crop_px} px"
        how = f"to {crop}" if prep.mode == "direct" else f"edge {prep.resize_px} px, centre {crop}"
        named[f"input of {part.name}"] = f"{how}, {prep.interpolation}, mean {_text(prep.mean)}, std {_text(prep.std)}"
    named |= {f"dataset.{name}": value for name, value in to_dict(spec.dataset).items()}
    named["val_seed"] = spec.val_seed
    named |= {f"dataset.{name}": getattr(spec, name) for name in ("train_fraction", "shots") if getattr(spec, name)}
    if spec.extract is not None:
        named |= {f"extract.{name}": value for name, value in to_dict(spec.extract).items()}
    named |= {f"{spec.phase}.{f.name}": getattr(spec.settings, f.name) for f in fields(spec.settings)}
    for run_id in spec.needs:
        named["made from"] = run_id
    return tuple((name, _text(value)) for name, value in named.items())


def _files_taken(runs: Sequence[RunRecord], store: StorePaths) -> Iterator[tuple[str, str]]:
    """What was taken of each weights file of the user's, by the runs themselves or the extractions they read."""
    lines: dict[tuple[str, str], None] = {}
    for run in runs:
        for record in (run, *(_record_of(e.run_id, store) for e in run.spec.extractions)):
            files = None if record is None else record.details.get("weights_taken")
            for name, facts in files.items() if isinstance(files, Mapping) else ():
                if isinstance(facts, Mapping):
                    text = ", ".join(f"{k.replace('_', ' ')} {_text(v)}" for k, v in facts.items() if v)
                    lines[f"weights file of {name}", text] = None
    yield from lines


def _record_of(run_id: str, store: StorePaths) -> RunRecord | None:
    try:
        return records.read_record(store.run(run_id))
    except DataError:
        return None


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value)) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_text(v)}" for k, v in value.items())
    return str(value)
