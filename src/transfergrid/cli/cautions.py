"""What the plan says of data that are few or unevenly spread over their classes: once per data set, never per run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from transfergrid.cli.console import as_many_as_fit, count
from transfergrid.config.models import missing_parts
from transfergrid.data import DatasetFacts
from transfergrid.data.damaged import lines_of
from transfergrid.data.folds import FEW_STEPS, FEW_VAL_IMAGES, RowCounts
from transfergrid.names import printable
from transfergrid.planning.work import rows_of
from transfergrid.specs import RunSpec, TrainSettings


@dataclass(frozen=True, slots=True)
class _Trained:
    """A run that trains, and how many images it has."""

    run: RunSpec
    settings: TrainSettings
    rows: RowCounts


def cautions(runs: Iterable[RunSpec], facts: Mapping[str, DatasetFacts]) -> list[str]:
    """One line each. facts: by the data set's name. Imports no torch."""
    by_dataset: dict[str, list[_Trained]] = {}
    counted: dict[tuple[object, ...], RowCounts] = {}
    for run in runs:
        if not isinstance(run.settings, TrainSettings) or run.dataset.name not in facts:
            continue  # what is sent again was told of when it was launched
        key = (run.dataset, run.protocol, run.train_fraction, run.shots, run.val_seed)
        if key not in counted:
            counted[key] = rows_of(run, facts[run.dataset.name])
        by_dataset.setdefault(run.dataset.name, []).append(_Trained(run, run.settings, counted[key]))
    return [line for name, members in by_dataset.items() for line in _of_dataset(name, members)]


def lonely_joins(runs: Iterable[RunSpec]) -> Iterator[str]:
    """A line for each data set with joins whose parts have no row of their own: nothing says what joining adds."""
    models_by_place: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        models_by_place.setdefault((run.dataset.name, run.phase), []).append(run.model)
    seen: set[tuple[str, str]] = set()
    for (dataset, _), models in models_by_place.items():
        for part, join in missing_parts(list(dict.fromkeys(models))).items():
            if (dataset, part) not in seen:
                seen.add((dataset, part))
                yield (
                    f"{dataset}: add {part} to grid.models to test whether {join} beats its best part;"
                    " grid.complete_pairs=true adds all such parts"
                )


def inventories(facts: Mapping[str, DatasetFacts], *, on_terminal: bool = False) -> Iterator[tuple[str, bool]]:
    """One sentence on each folder of the user's: what was found; and whether something of it should be looked at. Then
    a line for each picture that is left out."""
    for name, known in facts.items():
        if known.inventory is None:
            continue
        parts = list(known.inventory.parts(known.num_images))
        if known.groups:
            counts = ", ".join(f"{len(set(group_N.tolist()))} in {split}" for split, group_N in known.groups.items())
            parts.append(f"groups: {counts}")
        deeper = {depth: n for depth, (n, _) in known.depths.items() if depth != "8-bit"}
        if deeper:
            parts.append("deeper than 8 bits: " + ", ".join(f"{n} {depth}" for depth, n in deeper.items()))
        if known.newly_read:
            read = ", ".join(f"{n} {suffix}" for suffix, n in known.newly_read.items())
            parts.append(f"read, and left out by earlier releases: {read}")
        yield printable(f"{name}: {'; '.join(parts)}"), known.inventory.is_odd
        damaged = lines_of(known.inventory.damaged.items())
        yield from ((line, True) for line in as_many_as_fit(damaged, on_terminal=on_terminal))


def _of_dataset(name: str, members: Sequence[_Trained]) -> Iterator[str]:
    chosen = [m for m in members if m.run.protocol == "fair"]
    fewest = min((m.rows.val for m in chosen), default=FEW_VAL_IMAGES)
    if fewest == 0:
        yield f"{name}: no class has two training images, so val is empty and nothing is chosen on it"
    elif fewest < FEW_VAL_IMAGES:
        yield (
            f"{name}: {count(fewest, 'val image')}, fewer than {FEW_VAL_IMAGES}: one image moves"
            f" val accuracy, which decides choices, by {100 / fewest:.1f} points"
        )
    yield from _imbalance(name, members)
    for phase in dict.fromkeys(m.run.phase for m in members):
        few = [(s, m) for m in members if m.run.phase == phase and (s := _steps(m)) is not None and s < FEW_STEPS]
        if few:
            steps, images = (_range(values) for values in zip(*((s, m.rows.train) for s, m in few), strict=True))
            yield (
                f"{name}: {phase} takes {steps} optimizer steps on {images} images, fewer than {FEW_STEPS}; raise"
                f" phase.{phase}.epochs or lower phase.{phase}.batch_size, or leave both unset"
            )


def _imbalance(name: str, members: Sequence[_Trained]) -> Iterator[str]:
    uneven = [m for m in members if m.rows.is_imbalanced]
    if not uneven:
        return
    remedies = []
    if all(getattr(m.settings, "select_by", "accuracy") == "accuracy" for m in uneven):
        remedies.append("select_by=balanced_accuracy chooses for it")
    if any(m.settings.class_weights == "none" for m in uneven):
        remedies.insert(0, "class_weights=balanced trains for it")
    train_C = max((m.rows.train_C for m in uneven), key=lambda counts_C: int(counts_C.sum()))
    yield (
        f"{name}: the largest class has {count(int(train_C.max()), 'image')} to train on, the smallest"
        f" {int(train_C.min())}{': ' if remedies else ''}{', '.join(remedies)}"
    )


def _steps(member: _Trained) -> int | None:
    """Optimizer steps of the whole run; None for a head that is solved."""
    if not member.settings.takes_steps or not member.rows.train:
        return None
    return member.settings.epochs * member.settings.count_steps(member.rows.train)


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"
