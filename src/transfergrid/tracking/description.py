"""What W&B is told about a run, beside its rows: the same words and names as in the store's own files and tables."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

from transfergrid import provenance, records
from transfergrid.specs import RunSpec, to_dict

SECRET = re.compile(r"key|token|secret|password", re.IGNORECASE)


def describe(spec: RunSpec, *, grid: str, variant: str) -> dict[str, Any]:
    """Arguments of wandb.init: id, name, group, job type, tags and a flat config, which filters and group-by need."""
    config: dict[str, Any] = {"grid": grid, "model": spec.model, "dataset": spec.dataset.name, "phase": spec.phase}
    if variant:
        config["variant"] = variant
    tags = [tag[:64] for tag in config.values()]
    config |= {"seed": spec.seed, "weights": spec.weights_label, "protocol": spec.protocol, "val_seed": spec.val_seed}
    config |= {"run_id": spec.run_id, "max_images": spec.dataset.max_images, "git_commit": provenance.git_state()[0]}
    if spec.extract is not None and spec.phase != "extract":
        config |= {f"extract_{name}": value for name, value in to_dict(spec.extract).items()}
    return {
        "id": spec.run_id,
        "name": spec.slug,
        "group": grid[:128],
        "job_type": spec.phase,
        "tags": list(dict.fromkeys(tags)),
        "config": redacted(config | to_dict(spec.settings)),
    }


def redacted(config: dict[str, Any]) -> dict[str, Any]:
    """Values whose names look like a secret's do not leave the machine."""
    return {name: "redacted" if SECRET.search(name) else value for name, value in config.items()}


def summarise(record: records.RunRecord) -> dict[str, Any]:
    """The record's scalars under the record's names; `attempt` and `status` also tell a later mirror what was told."""
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    scalars = {name: value for name, value in values.items() if isinstance(value, (str, int, float))}
    return redacted(dict(record.metrics) | scalars)
