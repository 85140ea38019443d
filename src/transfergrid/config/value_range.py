"""Which stored values of pictures deeper than 8 bits become 0 and 255: one range per data set, and words on it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from transfergrid.data import DatasetFacts, ValueRange
from transfergrid.errors import ConfigError

_BITS = "8-bit"
_GIVE = "give dataset.value_range=[low,high], the values that become 0 and 255"


def value_range_of(
    given: Sequence[float] | None, facts: DatasetFacts, name: str, of_run: ValueRange | None
) -> ValueRange | None:
    """What is given; else that of the evaluated run; else the least and the largest value of train. None at 8 bits.

    Raises ConfigError where depths are mixed or train has no such pictures, so that no one range can be found.
    """
    typed = None if given is None else _checked(given)
    deep = {depth: found for depth, found in facts.depths.items() if depth != _BITS}
    if not deep:
        if typed is not None:
            raise ConfigError(f"dataset.value_range: all pictures of {name} have 8 bits, which stay as they are")
        return None
    if typed or of_run:
        return typed or of_run
    if len(facts.depths) > 1:
        depths = ", ".join(f"{count} {depth} ({first})" for depth, (count, first) in facts.depths.items())
        raise ConfigError(
            f"{name} mixes pictures of several depths: {depths}; make them alike, or {_GIVE} in the deeper ones"
            " (8-bit ones stay as they are; 16 bits used in full are [0,65535])"
        )
    extremes = facts.extremes.get("train", ())
    if not extremes:
        _, first = next(iter(deep.values()))
        raise ConfigError(f"{name} is deeper than 8 bits ({first}) and has no train/ to find its range on; {_GIVE}")
    low, high = min(low for low, _ in extremes), max(high for _, high in extremes)
    if low == high:
        raise ConfigError(f"{name}: every value in train/ is {_number(low)}, so there is no range; {_GIVE}")
    return low, high


def about_range(value_range: ValueRange | None, facts: DatasetFacts, name: str) -> tuple[str, ...]:
    """Lines for the user: the range, what lies beyond it, and pictures that it does not concern."""
    if value_range is None:
        return ()
    low, high = value_range
    deep = sum(count for depth, (count, _) in facts.depths.items() if depth != _BITS)
    notes = [
        f"{name}: pictures deeper than 8 bits: {deep}; values {_number(low)} to {_number(high)} become 0 to 255"
        " (dataset.value_range)"
    ]
    for split, count in facts.beyond(value_range).items():
        notes.append(f"{name}: {split} pictures with values beyond that range, which become 0 or 255: {count}")
    if _BITS in facts.depths:
        notes.append(f"{name}: pictures of 8 bits, which stay as they are: {facts.depths[_BITS][0]}")
    return tuple(notes)


def _checked(given: Sequence[float]) -> ValueRange:
    if len(given) != 2 or not all(map(math.isfinite, given)) or not given[0] < given[1]:
        raise ConfigError(f"dataset.value_range={list(given)}; wanted two numbers, the lower first, as [0,4095]")
    return float(given[0]), float(given[1])


def _number(value: float) -> str:
    return f"{value:.6g}" if value != int(value) else str(int(value))
