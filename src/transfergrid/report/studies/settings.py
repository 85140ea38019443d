"""What each published study did, so that a row can be told apart from it field by field.

The settings are those of the grid files that replay the studies, `conf/grid/*_as_published.yaml`. settings.json holds
their rows as they resolve, so that a report does not load Hydra; `python -m transfergrid.report.studies.settings`
writes it, and a test compares the two. What no setting can repeat is written down here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from transfergrid.specs import FinetuneSettings, ProbeSettings, ScratchSettings, TrainSettings, from_dict, to_dict
from transfergrid.store import durable

FILE = Path(__file__).with_name("settings.json")
REPLAYS = ("individual_vs_parallel_as_published", "scratch_cifar10_as_published", "small_resnet18_as_published")
_KINDS: dict[str, type[TrainSettings]] = {
    "probe": ProbeSettings,
    "finetune": FinetuneSettings,
    "scratch": ScratchSettings,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StudySettings:
    """One published training.

    settings: None where the study does not state them. image_size_px: the side of the network's input.
    weights: label of the weights it started from; None for a network trained from scratch.
    beyond_options: what changes its numbers and no general option can repeat; listed with every row's differences.
    notes: what only reshuffles chance (data order) or cannot be known from what was published; never counted as a
    difference.
    """

    settings: TrainSettings | None
    image_size_px: int
    weights: str | None
    beyond_options: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


_BORDER = "border of the shift"  # theirs is black; ours reflects the image
_BEYOND = {
    # It fills with 255 in images that run from 0 to 1; it turns on a larger canvas that is then resized; its corners
    # move by whole pixels, of 0 to 4.
    "scratch_cifar10": ("fill of the rotation", "interpolation of the rotation", "steps of the perspective"),
    # Its Cutout fills with 0 after normalising, which is the mean colour; ours with mid grey before.
    "small_resnet18": (_BORDER, "fill of Cutout"),
}
# Its slow weights start at step 0 and its fast ones are tested; ours start at step k, and the slow ones are tested.
_LOOKAHEAD = "start of Lookahead and which of its weights are tested"
_BETA1 = "beta1 of Adam"  # torch's OneCycleLR sets it to 0.95, beside its first value that the rate stays at
_NOTES = {
    "individual_vs_parallel": (
        "data order and random numbers of its loader are not repeated, only their distribution",
        "torchvision's version, and so the weights' download and the resize of PIL images, is not stated",
        "its float32 convolutions ran as its GPU does them by default, in TF32; ours do not",
    ),
    "scratch_cifar10": ("its order of images is not repeated, only that they are drawn with replacement",),
}


@lru_cache(maxsize=128)
def study(row: str) -> StudySettings:
    """row: `grid/dataset/model/phase/variant` of the replay, or `not stated`."""
    if row == "not stated":
        # Of no network but resnet50 is the input compared.
        return StudySettings(settings=None, image_size_px=224, weights=None, beyond_options=("settings not stated",))
    grid, _, _, phase, variant = row.split("/")
    stored = _stored()[row]
    settings: TrainSettings = from_dict(_KINDS[phase], stored["settings"])
    name = grid.removesuffix("_as_published")
    beyond = _BEYOND.get(name, (_BORDER,) if settings.shift_px else ())
    beyond += (_LOOKAHEAD,) if settings.lookahead else ()
    beyond += (_BETA1,) if variant.startswith("onecycle") else ()
    return StudySettings(
        settings=settings,
        image_size_px=stored["image_size_px"],
        weights=stored["weights"],
        beyond_options=beyond,
        notes=_NOTES.get(name, ()),
    )


@lru_cache(maxsize=1)
def _stored() -> dict[str, Any]:
    stored: dict[str, Any] = durable.read_json(FILE)
    return stored


def resolved() -> dict[str, Any]:
    """The content of settings.json, from the grid files. Loads Hydra."""
    from transfergrid.config import load_grid

    rows = {}
    for grid in REPLAYS:
        for c in load_grid([f"grid={grid}", "cluster=local"]).configurations:
            run = c.run
            side_px = run.settings.image_size_px if isinstance(run.settings, ScratchSettings) else None
            rows["/".join((grid, run.dataset.name, run.model, run.phase, c.variant))] = {
                "image_size_px": run.backbones[0].preprocess.crop_px if run.backbones else side_px,
                "weights": run.weights_label or None,
                "settings": to_dict(run.settings),
            }
    return rows


def text_of(rows: dict[str, Any]) -> str:
    """As settings.json has it: one line a row."""
    return "{\n" + ",\n".join(f"{json.dumps(row)}: {json.dumps(stored)}" for row, stored in rows.items()) + "\n}\n"


if __name__ == "__main__":
    FILE.write_text(text_of(resolved()), encoding="utf-8")
