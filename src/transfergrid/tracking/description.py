"""What W&B is told about a run: the same words, names and numbers as in the store's own files and tables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from transfergrid.names import readable_in
from transfergrid.specs import RunSpec, digest, safe_name, to_dict
from transfergrid.store import provenance
from transfergrid.store.records import RunRecord

SECRET = re.compile(r"key|token|secret|passw|credential", re.IGNORECASE)
NAMELESS = frozenset(  # failure classes whose messages name no file
    ("cuda_oom", "host_oom", "timeout", "node_failure", "preempted", "cancelled", "disk_full", "lost")
)
TAG_LENGTH = 64  # W&B refuses longer ones
# Curves, and what they are drawn against. `step` of a line is `batch` there: W&B's own step counts rows.
AXES = {
    **dict.fromkeys(("train/*", "head_*", "lr/*"), "batch"),
    **dict.fromkeys(("val/*", "test/*", "images_per_s", "elapsed_s", "gpu/*"), "epoch"),
}


def grid_tag(grid: str) -> str:
    """Every run of a grid carries it; a run that several grids share has one of each, but only one group."""
    return named_tag("grid", grid)


def named_tag(kind: str, name: str) -> str:
    """`kind:name`, another one for every name."""
    return f"{kind}:{shortened(name, TAG_LENGTH - len(kind) - 1)}"


def shortened(name: str, length: int) -> str:
    """The name, or its beginning and a hash where it is longer."""
    name = safe_name(name)
    return name if len(name) <= length else f"{name[: length - 13]}-{digest(name, 12)}"


def describe(spec: RunSpec, *, grid: str, variant: str, record: RunRecord | None = None) -> dict[str, Any]:
    """Arguments of wandb.init: id, name, group, job type, tags and a flat config, which filters and group-by need.
    record: of a run that has ended, which knows the code that it ran with; else it is this process's."""
    config: dict[str, Any] = {"grid": grid, "model": spec.model, "dataset": spec.dataset.name, "phase": spec.phase}
    if variant:
        config["variant"] = variant
    tags = [grid_tag(grid), *(tag[:TAG_LENGTH] for name, tag in config.items() if name != "grid")]
    known = {} if record is None else record.provenance
    commit = known["git_commit"] if "git_commit" in known else provenance.git_state()[0]
    config |= {"seed": spec.seed, "weights": spec.weights_label, "protocol": spec.protocol, "val_seed": spec.val_seed}
    config |= {"run_id": spec.run_id, "max_images": spec.dataset.max_images, "git_commit": commit}
    config |= {"data_fingerprint": spec.dataset.fingerprint, "train_fraction": spec.train_fraction, "shots": spec.shots}
    if spec.extract is not None and spec.phase != "extract":
        config |= {f"extract_{name}": value for name, value in to_dict(spec.extract).items()}
    described = {
        "id": spec.run_id,
        "name": spec.slug,
        "group": grid[:128],
        "job_type": spec.phase,
        "tags": list(dict.fromkeys(tags)),
        "config": redacted(config | to_dict(spec.settings)),
    }
    return dict(readable_in(described))


def redacted(config: Mapping[str, Any]) -> dict[str, Any]:
    """Values whose names look like a secret's do not leave the machine."""
    return {name: "redacted" if SECRET.search(name) else value for name, value in config.items()}


def as_row(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl as W&B gets it."""
    return {"batch" if name == "step" else name: value for name, value in line.items()}


def as_line(row: Mapping[str, Any]) -> dict[str, Any]:
    """The line that a row of W&B's was, without what W&B adds (`_step`, `_timestamp`, ...)."""
    return {"step" if name == "batch" else name: value for name, value in row.items() if not name.startswith("_")}


def summarise(record: RunRecord) -> dict[str, Any]:
    """The record's scalars under the record's names; `attempt` and `status` also tell a later mirror what was told."""
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    scalars = {name: value for name, value in values.items() if isinstance(value, (str, int, float))}
    return dict(readable_in(redacted(dict(record.metrics) | scalars)))


def withheld(failure_class: str | None) -> dict[str, Any]:
    """What stands for the message of a run that failed so, and for its remedy, where names of files are not sent; empty
    where it holds none."""
    if failure_class in NAMELESS:
        return {}
    message = f"{failure_class}: the message may name files, so it stays in the store (tracking.images=true sends it)"
    return {"error": message, "remedy": None}
