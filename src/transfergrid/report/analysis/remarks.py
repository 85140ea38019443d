"""What a reader of one row must know: it was chosen at an end of a search, rests on little or uneven data, is old."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from itertools import chain, count, product
from string import ascii_lowercase
from typing import Any

from transfergrid.data.folds import FEW_STEPS, FEW_VAL_IMAGES, IMBALANCE
from transfergrid.report.analysis.rows import ComparisonRow
from transfergrid.report.analysis.selection import best_on_val, choice_of
from transfergrid.specs import RULES_VERSION, RunSpec
from transfergrid.store.records import RunRecord

UNDERSTATES = "▲"
_UNDERSTATED = (
    "another head on the same features has more test images right (kNN, LDA or QDA: better_than_head in"
    " comparison.csv), so this one understates them"
)
_EDGES = {"lowest": "smallest", "highest": "largest"}
_SEARCH = 3  # so many values of one setting are a search, whatever the variants are called; two are a comparison


def with_remarks(rows: Sequence[ComparisonRow], runs: Sequence[Sequence[RunRecord]]) -> list[ComparisonRow]:
    """The rows with all that is to be said of them."""
    ends = ends_of_variants(rows, runs)
    return [
        replace(row, remarks=(*_edges_of_seeds(row_runs), *ends.get(i, ()), *_doubts(row, row_runs)))
        for i, (row, row_runs) in enumerate(zip(rows, runs, strict=True))
    ]


def footnotes(rows: Sequence[ComparisonRow]) -> tuple[list[str], list[tuple[str, str]]]:
    """Beside each row its marks (`a,b`, mostly empty), and below the table what each mark says, once.

    Last the mark ▲ where a probe's head understates the features.
    """
    texts = dict.fromkeys(text for row in rows for text in row.remarks)
    pairs = map("".join, product(ascii_lowercase, repeat=2))
    mark_by_text = dict(zip(texts, chain(ascii_lowercase, pairs, map(str, count(26 + 26 * 26))), strict=False))
    marks = [
        ",".join([*(mark_by_text[text] for text in row.remarks), *([UNDERSTATES] if row.better_than_head else [])])
        for row in rows
    ]
    understated = [(UNDERSTATES, _UNDERSTATED)] if any(row.better_than_head for row in rows) else []
    return marks, [(mark, text) for text, mark in mark_by_text.items()] + understated


# ---------------------------------------------------------------------------------------------- the search of one run
def edges(record: RunRecord) -> tuple[str, ...]:
    """Each searched quantity whose chosen value is the smallest or the largest offered, in words.

    A search that says of itself where it ended (`details.search`, a mapping or one per quantity) is believed. Zero is
    no end: nothing lies below it.
    """
    searches = record.details.get("search")
    if searches is not None:
        listed = [searches] if isinstance(searches, Mapping) else searches if isinstance(searches, Sequence) else []
        return tuple(text for search in listed if isinstance(search, Mapping) for text in _ends_of_search(search))
    chosen, choices = record.details.get("chosen"), record.details.get("choices")
    if not isinstance(chosen, Mapping) or not isinstance(choices, Sequence):
        return ()
    choices = [choice for choice in choices if isinstance(choice, Mapping)]
    texts = []
    for name in dict.fromkeys(str(name) for choice in choices for name in choice):
        values = {choice.get(name) for choice in choices if _is_number(choice.get(name))}
        if end := _end(chosen.get(name), values):
            texts.append(f"{name} {chosen[name]:g} is the {end} of the search")
    return tuple(texts)


def _ends_of_search(search: Mapping[str, Any]) -> Iterator[str]:
    """Of one quantity: {name, chosen, at_edge, edge: lowest, highest, weakest or strongest, not_converged: values}."""
    name, chosen, edge = search.get("name") or "the chosen value", search.get("chosen"), search.get("edge")
    value = f"{name} {chosen:g}" if _is_number(chosen) else str(name)
    if search.get("at_edge"):
        yield f"{value} is the {_EDGES.get(str(edge), edge or 'last')} of the search"
    unfinished = search.get("not_converged")
    if isinstance(unfinished, list) and chosen in unfinished:
        yield f"{value} has not converged"


def _edges_of_seeds(runs: Sequence[RunRecord]) -> Iterator[str]:
    """Of a row's runs, with how many of the seeds where not all chose it."""
    counts = Counter(text for record in runs for text in edges(record))
    for text, seeds in counts.items():
        yield text if seeds == len(runs) else f"{text} ({seeds} of {len(runs)} seeds)"


def _end(value: Any, values: set[Any]) -> str | None:
    """`smallest` or `largest` of two values or more."""
    if not _is_number(value) or value == 0 or len(values) < 2:
        return None
    return "smallest" if value <= min(values) else "largest" if value >= max(values) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# ------------------------------------------------------------------------------------------------ a search by variants
def ends_of_variants(rows: Sequence[ComparisonRow], runs: Sequence[Sequence[RunRecord]]) -> dict[int, tuple[str, ...]]:
    """Of rows that differ in numbers of their settings alone: position of the best on val -> at which ends it lies.

    Settings that rise and fall together, as a learning rate scaled with the batch, are one search.
    """
    searches: dict[tuple[Any, ...], dict[int, dict[str, float]]] = {}
    for i, (row, row_runs) in enumerate(zip(rows, runs, strict=True)):
        if row.status == "completed" and row_runs:
            numbers, others = _settings(row_runs[0].spec)
            choice = choice_of(row.variant)
            key = (row.grid, choice and choice[0], others)
            searches.setdefault(key, {})[i] = numbers
    texts = {}
    for (_, subject, _), settings in searches.items():
        best = best_on_val(rows, settings)
        if best is not None:
            texts[best] = tuple(_ends(best, settings, at_least=_SEARCH if subject is None else 2))
    return texts


def _settings(spec: RunSpec) -> tuple[dict[str, float], tuple[Any, ...]]:
    """A run's settings that are numbers, and all else that makes it, but its seed and what it is made from."""
    values = {f.name: getattr(spec.settings, f.name) for f in fields(spec.settings)}
    numbers = {name: value for name, value in values.items() if _is_number(value)}
    other_values = tuple((name, value) for name, value in values.items() if name not in numbers)
    identity = (spec.phase, spec.model, spec.backbones, spec.dataset, spec.extract, spec.protocol, spec.val_seed)
    return numbers, (*identity, spec.train_fraction, spec.shots, other_values)


def _ends(best: int, settings: Mapping[int, Mapping[str, float]], *, at_least: int) -> Iterator[str]:
    of_best = settings[best]
    columns = {name: tuple(numbers[name] for numbers in settings.values()) for name in of_best}
    searched = {name: values for name, values in columns.items() if len(set(values)) > 1}
    for names in _together(searched):
        name = names[0]
        others = searched.keys() - names
        line = {numbers[name] for numbers in settings.values() if all(numbers[o] == of_best[o] for o in others)}
        if len(line) >= at_least and (end := _end(of_best[name], line)):
            yield f"best on val at an end of the search: {name} {of_best[name]:g} is the {end} of {len(line)} tried"


def _together(searched: Mapping[str, Sequence[float]]) -> list[list[str]]:
    """Names of the settings, in groups of those that order the rows alike or the other way round."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, values in searched.items():
        ranks = {value: rank for rank, value in enumerate(sorted(set(values)))}
        upwards = tuple(ranks[value] for value in values)
        downwards = tuple(len(ranks) - 1 - rank for rank in upwards)
        groups.setdefault(downwards if downwards in groups else upwards, []).append(name)
    return list(groups.values())


# -------------------------------------------------------------------------------- too little, uneven, left out, or old
def _doubts(row: ComparisonRow, runs: Sequence[RunRecord]) -> Iterator[str]:
    if row.n_val == 0 and row.phase in ("probe", "finetune", "scratch") and row.protocol == "fair":
        yield "no val image: nothing was chosen on val"
    if row.val_accuracy is not None and row.n_val is not None and row.n_val < FEW_VAL_IMAGES:
        yield f"only {row.n_val} val {'image' if row.n_val == 1 else 'images'} (below {FEW_VAL_IMAGES})"
    if row.optimizer_steps and row.optimizer_steps < FEW_STEPS:  # a head that is solved takes none
        steps = "optimizer step" if row.optimizer_steps == 1 else "optimizer steps"
        yield f"only {row.optimizer_steps} {steps} (below {FEW_STEPS})"
    trained_on = runs[0].details.get("class_counts") if runs else None
    if isinstance(trained_on, Mapping) and trained_on["largest"] > IMBALANCE * trained_on["smallest"]:
        yield f"uneven classes: {trained_on['smallest']} to {trained_on['largest']} images trained on"
    if unusable := max((record.spec.dataset.left_out for record in runs), default=0):
        files = "file" if unusable == 1 else "files"
        yield f"without {unusable} {files} of the data set that cannot be used (dataset.skip_damaged=true)"
    # Probes and fine-tunings of the first release: their rules, and so their numbers, are others.
    if any(record.spec.phase in ("probe", "finetune") and record.spec.rules < RULES_VERSION for record in runs):
        yield "made by an older release, under other rules (docs/storage.md); launch the grid again to make it anew"
