"""Identities: what a run is called, and that everything that changes its numbers changes its name."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from transfergrid.config import load_grid, load_run
from transfergrid.paths import CachePaths
from transfergrid.specs import (
    PHASES,
    FeatureKey,
    RunSpec,
    Runtime,
    canonical_json,
    digest,
    from_dict,
    safe_name,
    seed_for,
    to_dict,
)


def run_of(phase: str, *more: str) -> RunSpec:
    """One run as a command line makes it, with random weights, so that nothing is looked for."""
    model = "baseline_cnn" if phase == "scratch" else "resnet18"
    dataset = [] if any(a.startswith("dataset=") for a in more) else ["dataset=digits"]
    if phase == "evaluate":
        model = "baseline_cnn"
    named = [] if any(a.startswith("model=") for a in more) else [f"model={model}"]
    request = load_run([*named, *dataset, f"phase={phase}", "weights=random", "dry_run=true", *more])
    return request.configurations[0].run


@pytest.fixture(scope="module", params=PHASES)
def spec(request: pytest.FixtureRequest) -> RunSpec:
    return run_of(request.param)


def changed(value: Any, hint: Any) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 + 0.001
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, tuple):
        inner = get_args(hint)[0]
        return (*value, value[-1] if value else {int: 7, float: 0.5, str: "x"}[inner])
    assert value is None
    inner = next(a for a in get_args(hint) if a is not type(None))
    return {int: 7, float: 0.5}.get(inner, "x")


def variations(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(field, the same object with that one field changed), for every field at every depth."""
    hints = get_type_hints(type(value))
    for f in fields(value):
        old = getattr(value, f.name)
        name = f"{path}{f.name}"
        if is_dataclass(old) and not isinstance(old, type):
            for inner_name, inner in variations(old, f"{name}."):
                yield inner_name, replace(value, **{f.name: inner})
        elif isinstance(old, tuple) and old and is_dataclass(old[0]):
            for inner_name, inner in variations(old[0], f"{name}[0]."):
                yield inner_name, replace(value, **{f.name: (inner, *old[1:])})
            yield name, replace(value, **{f.name: old[:-1]})
        elif get_origin(hints[f.name]) is tuple and is_dataclass(get_args(hints[f.name])[0]):
            continue  # empty here; another phase's run has one
        else:
            yield name, replace(value, **{f.name: changed(old, hints[f.name])})


def test_a_spec_survives_json_unchanged(spec: RunSpec) -> None:
    again = from_dict(RunSpec, json.loads(json.dumps(to_dict(spec))))
    assert again == spec
    assert type(again.settings) is type(spec.settings)
    assert again.run_id == spec.run_id


def test_every_field_at_every_depth_changes_the_run_id(spec: RunSpec) -> None:
    ids = {name: other.run_id for name, other in variations(spec)}
    assert len(ids) > 20 if spec.phase in ("probe", "finetune", "scratch") else len(ids) > 10
    assert [name for name, run_id in ids.items() if run_id == spec.run_id] == []
    hashes = [run_id[-12:] for run_id in ids.values()]
    assert len(set(hashes)) == len(hashes)


def test_a_run_id_is_a_slug_and_twelve_hex_digits(spec: RunSpec) -> None:
    assert re.fullmatch(r"digits-[a-z0-9._+-]+-[a-z]+(-s0)?-[0-9a-f]{12}", spec.run_id)
    assert spec.run_id == f"{spec.slug}-{digest(spec, 12)}"


@pytest.mark.parametrize("seed", [0, 2**31])
def test_run_ids_stay_within_80_characters_however_long_the_names_are(seed: int) -> None:
    spec = run_of("probe")
    dataset = replace(spec.dataset, name="Fische & Vögel/../" * 9)
    long = replace(spec, model="+".join(["timm/vit_base_patch16_224.augreg_in21k"] * 4), dataset=dataset, seed=seed)
    for phase in PHASES:
        run_id = replace(long, phase=phase).run_id
        assert len(run_id) <= 80
        assert re.fullmatch(r"[a-z0-9][a-z0-9._+-]*", run_id)
        assert f"-{phase}-s{seed}-" in run_id


def test_names_that_reach_a_path_cannot_leave_their_folder() -> None:
    assert safe_name("../../etc/passwd") == "etc-passwd"
    assert safe_name("ResNet18+Übung\n$(rm)") == "resnet18+-bung---rm-"
    assert safe_name("...") == "x"


def test_canonical_json_has_one_spelling_per_value() -> None:
    assert canonical_json({"b": (1, 2.5), "a": None}) == '{"a":null,"b":[1,2.5]}'
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json({"lr": float("nan")})


def test_the_hash_is_that_of_the_canonical_json(spec: RunSpec) -> None:
    """_canonical spells shared parts once; it must spell them as canonical_json does."""
    assert digest(spec, 12) == hashlib.sha256(canonical_json(spec).encode()).hexdigest()[:12]


def test_a_number_keeps_its_spelling_beside_an_equal_one_of_another_type() -> None:
    spec = replace(run_of("probe"), seed=1, train_fraction=1.0)
    assert digest(spec, 12) == hashlib.sha256(canonical_json(spec).encode()).hexdigest()[:12]


def test_unknown_and_missing_fields_of_a_stored_spec_are_refused() -> None:
    stored = to_dict(run_of("probe"))
    with pytest.raises(ValueError, match="RunSpec: unknown field 'colour'"):
        from_dict(RunSpec, stored | {"colour": 1})
    del stored["seed"]
    with pytest.raises(ValueError, match="RunSpec: field 'seed' is missing"):
        from_dict(RunSpec, stored)


def test_a_field_of_a_later_release_is_left_out_at_the_value_of_the_release_before(spec: RunSpec) -> None:
    stored = to_dict(replace(spec, rules=1))
    assert "rules" not in stored and "orientation" not in stored["dataset"]
    assert from_dict(RunSpec, stored).rules == 1
    turned = replace(spec, rules=2, dataset=replace(spec.dataset, orientation="exif"))
    assert to_dict(turned)["rules"] == 2 and to_dict(turned)["dataset"]["orientation"] == "exif"
    assert len({spec.run_id, turned.run_id, replace(turned, rules=1).run_id}) == 3


# As the first release wrote them: what it made is found under the same names.
FIRST_RELEASE = {
    "extract": "digits-resnet18-extract-e86b06f829ad",
    "scratch": "digits-baseline_cnn-scratch-s0-bfc8d9e48461",
}


@pytest.mark.parametrize("phase", sorted(FIRST_RELEASE))
def test_extractions_and_scratch_runs_keep_the_names_of_the_first_release(phase: str) -> None:
    assert run_of(phase).run_id == FIRST_RELEASE[phase]


def test_a_runtime_survives_json_unchanged() -> None:
    runtime = Runtime(store_dir="s", cache_dir="c", data_dir="d", weights_dir="w", cache_also_read=("a", "b"))
    assert from_dict(Runtime, json.loads(json.dumps(to_dict(runtime)))) == runtime


def test_T17_a_features_key_covers_everything_that_changes_the_features_and_a_mismatch_is_a_miss() -> None:
    spec = run_of("probe")
    key = spec.feature_key(spec.backbones[0], "train")
    cache = CachePaths(Path("cache"))
    others = dict(variations(key))
    expected = {
        "split",
        "bn_statistics",
        "precision",
        "storage",
        "version",
        "backbone.name",
        "backbone.tap",
        "backbone.weights.label",
        "backbone.weights.identity",
        *(f"backbone.preprocess.{n}" for n in ("mode", "resize_px", "crop_px", "interpolation", "mean", "std")),
        *(f"backbone.preprocess.{n}" for n in ("antialias", "channels", "normalise", "small")),
        *(f"dataset.{n}" for n in ("name", "kind", "fingerprint", "num_classes", "max_images")),
        *(f"dataset.{n}" for n in ("value_range", "orientation", "left_out")),
    }
    assert set(others) == expected
    for name, other in others.items():
        assert isinstance(other, FeatureKey)
        assert other.digest != key.digest, name
        assert cache.features(other) != cache.features(key), name
    assert len({other.digest for other in others.values()}) == len(others)


def test_extractions_are_shared_by_singles_joins_seeds_and_protocols() -> None:
    grid = ["grid.models=[resnet18,googlenet,resnet18+googlenet]", "grid.phases=[probe]", "weights=random"]
    rows = load_grid([*grid, "grid.datasets=[digits]", "grid.seeds=[0,1]", "grid.variants={}", "dry_run=true"])
    extractions = {e.run_id for row in rows.configurations for e in row.run.extractions}
    assert len(rows.configurations) == 3  # solved: one run for both seeds
    assert len(extractions) == 2
    join = next(c.run for c in rows.configurations if c.run.model == "resnet18+googlenet")
    assert [e.model for e in join.extractions] == ["resnet18", "googlenet"]
    other = replace(join, protocol="published", seed=9, val_seed=4)
    assert other.run_id != join.run_id
    assert other.extractions == join.extractions
    assert join.extractions[0].seed is None and join.extractions[0].protocol is None


def test_a_probe_on_images_extracts_nothing() -> None:
    one_head = ("phase.probe.lrs=[0.001]", "phase.probe.weight_decays=[0]")
    assert run_of("probe", "phase.probe.solver=sgd", "phase.probe.source=images", *one_head).extractions == ()
    assert len(run_of("probe").extractions) == 1


def test_derived_seeds_never_change() -> None:
    """Data order, augmentation and dropout of every run hang on these numbers."""
    assert seed_for(0) == 5254295370254170289
    assert seed_for(0, 1, 2) == 8462395873746552714
    assert seed_for("augment", 3, 7) == 5361358040752977284
    assert len({seed_for(s, e, i) for s in range(5) for e in range(5) for i in range(40)}) == 1000
    assert all(0 <= seed_for(s) < 2**63 for s in range(100))
    assert seed_for(1, 2) != seed_for(12) and seed_for("1", 2) != seed_for(1, 2)
