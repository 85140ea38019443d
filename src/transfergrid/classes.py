"""Which of a run's classes the classes of a data set are: by name, in whatever order its folders sort."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from transfergrid import data
from transfergrid.errors import DataError
from transfergrid.paths import RunPaths
from transfergrid.records import read_record
from transfergrid.specs import RunSpec

_SHOWN = 6  # names in a message


def classes_of_run(spec: RunSpec, paths: RunPaths) -> tuple[str, ...] | None:
    """A run's class names in the order of its logits: its record's, or those of a published data set.

    None where neither tells: a run on an image folder that has not finished yet.
    """
    record = read_record(paths)
    if record is not None and "class_names" in record.details:
        return tuple(record.details["class_names"])
    return None if spec.dataset.kind == "image_folder" else data.facts(spec.dataset.kind).class_names


def match_classes(own: Sequence[str], shown: Sequence[str], *, run_id: str, dataset: str) -> NDArray[np.int64]:
    """For each class of a data set (`shown`) its position among the run's (`own`), (S,).

    Some of the run's classes may be missing. Raises DataError naming those that the run does not know.
    """
    position = {name: i for i, name in enumerate(own)}
    unknown = [name for name in shown if name not in position]
    if unknown:
        raise DataError(
            f"classes are matched by name: {dataset} has {_some(unknown)}, which run={run_id!r} does not know;"
            f" it knows {_some(own)}"
        )
    return np.array([position[name] for name in shown], dtype=np.int64)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more
