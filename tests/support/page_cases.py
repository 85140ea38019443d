"""Stores for tests of the page: a small grid whose numbers are known, and one whose names would like to be HTML."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import report_cases as cases
from prediction_cases import finished

from transfergrid.paths import StorePaths
from transfergrid.report.figures import Figure
from transfergrid.specs import RunSpec

SCRIPT = "<script>alert(1)</script>"
IMAGE = '"><img src=x onerror=alert(1)>'
QUOTES = 'it\'s a "set" & `more` {{7*7}} | <b>'
N_TEST = 200


def right_N(correct: int) -> np.ndarray[Any, Any]:
    return np.arange(N_TEST) < correct


def small_grid(store: StorePaths, name: str = "small") -> dict[str, RunSpec]:
    """Two singles and their pair with two seeds, one row that failed, one that was never started; by their names."""
    runs: dict[str, RunSpec] = {}
    told = {"code_hash": "c0de", "git_commit": "f" * 40, "git_dirty": False, "torch": "2.13.0", "device": "cpu"}
    chosen = {
        "choices": [{"lr": 0.001, "weight_decay": 0.0}, {"lr": 0.01, "weight_decay": 0.0}],
        "chosen": {"head": 1, "lr": 0.01, "weight_decay": 0.0},
    }
    for model, correct in (("resnet18", 180), ("googlenet", 170), ("resnet18+googlenet", 190)):
        for seed in (0, 1):
            run = runs[f"{model} {seed}"] = cases.spec("probe", model, seed=seed)
            details = {"n_test": N_TEST, "class_names": [str(i) for i in range(10)]} | chosen
            finished(
                store,
                run,
                right_N(correct + seed),
                val=correct / N_TEST,
                details=details,
                provenance=told
                | {"host": f"node{seed}", "started": "2026-01-01T00:00:00+00:00", "ended": "2026-01-02"},
            )
    runs["failed"] = cases.spec("finetune", "resnet18")
    cases.failed(store, runs["failed"], failure_class="cuda_oom", error="out of memory: <8 GB> & more\nsecond line")
    runs["missing"] = cases.spec("finetune", "googlenet")
    cases.write_grid(store, name, [(run, "") for run in runs.values()])
    return runs


def hostile_grid(store: StorePaths) -> None:
    """Every name that comes from outside tries to leave the place where it stands."""
    classes = [IMAGE, SCRIPT, *(f"{QUOTES} {i}" for i in range(8))]
    rows = []
    for seed, model in enumerate((SCRIPT, "</script></style>" + IMAGE)):
        run = cases.spec("scratch", model, dataset=QUOTES, image_size_px=32)
        run = replace(run, dataset=replace(run.dataset, name=QUOTES, kind="image_folder", fingerprint=IMAGE))
        provenance = {"git_commit": SCRIPT, "code_hash": f"{IMAGE} {seed}", "host": SCRIPT, "torch": IMAGE}
        finished(
            store,
            run,
            right_N(150 + seed),
            details={"n_test": N_TEST, "class_names": classes, "choices": [{SCRIPT: IMAGE}, {SCRIPT: "2"}]},
            provenance=provenance,
        )
        rows.append((run, f"{IMAGE}{seed}"))
    failed = cases.spec("scratch", IMAGE, dataset=QUOTES, image_size_px=32)
    cases.failed(store, failed, failure_class="data", error=f"no class {IMAGE} in {QUOTES} {SCRIPT}")
    cases.write_grid(store, "hostile", [*rows, (failed, "")])


def figure(folder: Path, name: str, *, width_px: int = 900, noise: bool = False, **changes: Any) -> Figure:
    """A PNG, and an SVG too large to be embedded in its place."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    shape = (width_px // 2, width_px, 3)
    pixels = np.random.default_rng(0).integers(0, 255, shape) if noise else np.full(shape, 200)
    Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{name}.png")
    (folder / f"{name}.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>" + " " * 100_000)
    content: dict[str, Any] = {"section": "accuracy", "models": ("a", "b"), "title": name}
    content["caption"] = f"About {name}."
    return Figure(name=name, png=folder / f"{name}.png", svg=folder / f"{name}.svg", **content | changes)
