"""The gate between probe and fine-tuning: it lets the same network through and no other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import carry_out, final_run, paths_of, record_of, request

from transfergrid.config import Request
from transfergrid.networks import finished
from transfergrid.networks.backbones.build import build as real_build
from transfergrid.networks.joined import JoinedNetwork
from transfergrid.paths import cache_paths
from transfergrid.phases import _on_images, _parity, _setting
from transfergrid.phases._start import hand_over
from transfergrid.planning import job
from transfergrid.specs import BackboneSpec, FinetuneSettings, RunSpec, Runtime
from transfergrid.store import feature_store, records
from transfergrid.store.records import RunRecord, make_predictions

SMALL = ["model=resnet18", "weights=random", "phase=finetune", "phase.finetune.epochs=1"]


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Request:
    """A fine-tuning whose extraction and probe are done."""
    torch.set_num_threads(1)
    asked = request(tmp_path_factory.mktemp("probed"), *SMALL)
    for run in (*probe_of(asked).extractions, probe_of(asked)):
        assert job.carry_out(run, asked.runtime) == "completed"
    return asked


def probe_of(asked: Request) -> RunSpec:
    return next(run for run in asked.runs.values() if run.phase == "probe")


def fine_tune(asked: Request, folder: Path, **changes: Any) -> RunRecord:
    """The fine-tuning of a probe that is done, in a store of its own."""
    runtime = replace(asked.runtime, store_dir=str(folder))
    probe = paths_of(probe_of(asked), runtime).root
    probe.parent.mkdir(parents=True)
    probe.symlink_to(paths_of(probe_of(asked), asked.runtime).root)
    run = replace(final_run(asked), **changes)
    job.carry_out(run, runtime)
    return record_of(run, runtime)


def assert_refused(record: RunRecord, why: str) -> None:
    assert (record.status, record.failure_class) == ("failed", "code")
    assert record.error is not None and why in record.error, record.error


# ------------------------------------------------------------------------------------------------------------- passes
def test_the_same_network_passes_with_room_to_spare(probed: Request, tmp_path: Path) -> None:
    record = fine_tune(probed, tmp_path)
    gate = record.details["gate"]
    assert record.status == "completed" and gate["rows"] == 100
    assert gate["judged"] and gate["largest_ratio"] < 0.5 and gate["counting_rows"] >= 90


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["model=shufflenet_v2_x0_5", "phase.extract.bn_statistics=target"],
        pytest.param(["model=googlenet"], marks=pytest.mark.slow),
        pytest.param(
            ["model=mobilenet_v3_small+shufflenet_v2_x0_5", "phase.extract.storage=float32"], marks=pytest.mark.slow
        ),
        pytest.param(["model=resnet18", "phase.extract.precision=bf16"], marks=pytest.mark.slow),
    ],
)
def test_other_statistics_transforms_joins_and_precisions_pass_too(arguments: list[str], tmp_path: Path) -> None:
    asked = request(tmp_path, *arguments, *SMALL[1:], "dataset.max_images=200")
    carry_out(asked)
    record = record_of(final_run(asked), asked.runtime)
    assert record.status == "completed", record.error
    assert record.details["gate"]["rows"] == 200 and record.details["gate"]["largest_ratio"] < 0.9
    assert record.details["gate"]["judged"] and record.details["gate"]["constant_backbones"] == []


def test_a_random_head_has_no_gate_and_the_record_says_so(probed: Request, tmp_path: Path) -> None:
    asked = request(tmp_path, *SMALL, "phase.finetune.head=random")
    assert carry_out(asked) == "completed"
    assert record_of(final_run(asked), asked.runtime).details["gate"] == {"judged": False, "reason": "random_head"}


def little(tmp_path: Path, *arguments: str, num_images: int) -> dict[str, Any]:
    """The gate of a fine-tuning of so many digits; it completes."""
    few = [f"dataset.max_images={num_images}", "phase=finetune", "phase.finetune.epochs=1"]
    asked = request(tmp_path, *few, *arguments)
    assert carry_out(asked) == "completed", record_of(final_run(asked), asked.runtime).error
    gate: dict[str, Any] = record_of(final_run(asked), asked.runtime).details["gate"]
    return gate


@pytest.mark.parametrize("num_images", [11, 14])
def test_one_held_out_image_is_enough(tmp_path: Path, num_images: int) -> None:
    gate = little(tmp_path, "model=tinynet_cifar", num_images=num_images)
    assert gate["judged"] and gate["rows"] == num_images and gate["constant_backbones"] == []
    assert gate["counting_rows"] >= 10 and gate["largest_ratio"] < 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [["phase.probe.solver=sgd", "phase.probe.lrs=[1e-9]"], ["phase.extract.precision=bf16"]]
)
def test_weak_heads_and_coarse_features_are_no_failure(tmp_path: Path, arguments: list[str]) -> None:
    gate = little(tmp_path, "model=shufflenet_v2_x0_5+resnet18", "weights=random", *arguments, num_images=90)
    assert gate["rows"] == 90 and gate["largest_ratio"] <= 1


@pytest.mark.slow
def test_what_cannot_be_judged_is_recorded_as_such_and_trained_all_the_same(
    probed: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_parity, "ABSOLUTE_SLACK", 1e6)
    record = fine_tune(probed, tmp_path)
    gate = record.details["gate"]
    assert (record.status, gate["judged"], gate["reason"], gate["counting_rows"]) == ("completed", False, "rounding", 0)


def test_a_backbone_that_was_constant_for_the_probe_too_is_no_mismatch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_network(monkeypatch, lambda trunk: trunk.get_parameter("conv1.0.weight").zero_(), extraction_too=True)
    gate = little(tmp_path, "model=shufflenet_v2_x0_5", "weights=random", num_images=60)
    assert gate["constant_backbones"] == ["shufflenet_v2_x0_5"] and gate["rows"] == 60


# -------------------------------------------------------------------------------------------------------------- fails
def other_transform(backbone: BackboneSpec, **changes: Any) -> tuple[BackboneSpec, ...]:
    return (replace(backbone, preprocess=replace(backbone.preprocess, **changes)),)


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": (0.5, 0.5, 0.5)},
        {"std": (0.25, 0.25, 0.25)},
        {"crop_px": 40, "resize_px": 40},
        {"interpolation": "bicubic"},
        {"mode": "recipe", "resize_px": 40},
    ],
)
def test_another_transform_is_refused(probed: Request, tmp_path: Path, changes: dict[str, Any]) -> None:
    (backbone,) = final_run(probed).backbones
    record = fine_tune(probed, tmp_path, backbones=other_transform(backbone, **changes))
    assert_refused(record, "times what rounding allows")


def test_weights_of_another_seed_are_refused(probed: Request, tmp_path: Path) -> None:
    (backbone,) = final_run(probed).backbones
    weights = replace(backbone.weights, identity="random:v1:1")
    record = fine_tune(probed, tmp_path, backbones=(replace(backbone, weights=weights),))
    assert_refused(record, "times what rounding allows")


def spoil_network(
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Any], None],
    *,
    only: str | None = None,
    extraction_too: bool = False,
) -> None:
    def build(backbone: BackboneSpec, *arguments: Any, **options: Any) -> Any:
        trunk = real_build(backbone, *arguments, **options)
        if only in (None, backbone.name):
            with torch.no_grad():
                spoil(trunk)
        return trunk

    monkeypatch.setattr(_on_images, "build", build)
    if extraction_too:
        monkeypatch.setattr("transfergrid.networks.backbones.build.build", build)


@pytest.mark.parametrize("buffer", ["bn1.running_var", "layer2.0.bn1.running_mean", "layer4.1.bn2.running_var"])
def test_one_batchnorm_buffer_one_percent_off_is_refused(
    probed: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, buffer: str
) -> None:
    spoil_network(monkeypatch, lambda trunk: trunk.get_buffer(buffer).mul_(1.01))
    assert_refused(fine_tune(probed, tmp_path), "times what rounding allows")


def test_a_network_that_computes_no_numbers_is_refused(
    probed: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_network(monkeypatch, lambda trunk: trunk.get_buffer("bn1.running_var").fill_(-1.0))
    assert_refused(fine_tune(probed, tmp_path), "resnet18")


def test_a_constant_block_of_features_is_refused(
    probed: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_network(monkeypatch, lambda trunk: trunk.get_parameter("conv1.weight").zero_())
    assert_refused(fine_tune(probed, tmp_path), "resnet18 gives the same features for every image")


@pytest.mark.slow
def test_of_a_pair_the_backbone_that_differs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = request(tmp_path, "model=shufflenet_v2_x0_5+resnet18", *SMALL[1:])
    spoil_network(monkeypatch, lambda trunk: trunk.get_buffer("bn1.running_var").mul_(1.01), only="resnet18")
    assert carry_out(asked) == "failed"
    record = record_of(final_run(asked), asked.runtime)
    assert record.error is not None and record.error.startswith("resnet18: a logit differs by")
    assert_refused(record, "times what rounding allows: transform, weights, statistics or order differ")


def test_columns_of_the_probes_head_in_another_order_are_refused(
    probed: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = finished.load_weights

    def swapped(*arguments: Any) -> dict[str, torch.Tensor]:
        state = real(*arguments)
        state["head.weight"] = state["head.weight"].roll(1, dims=1)
        return state

    monkeypatch.setattr(_parity, "load_weights", swapped)
    assert_refused(fine_tune(probed, tmp_path), "times what rounding allows")


def rewrite_features(run: RunSpec, runtime: Runtime, change: Callable[[Any], Any]) -> None:
    """The cache as a faulty writer would have left it: valid, and wrong."""
    for split in ("train", "test"):
        key = run.feature_key(run.backbones[0], split)
        found = feature_store.read(cache_paths(runtime).features(key), key)
        changed_ND = change(found.features_ND.astype(np.float32))
        made: dict[str, Any] = {"labels_N": found.labels_N, "index_N": found.index_N, "provenance": {}}
        with feature_store.writing(cache_paths(runtime), key, feature_dim=changed_ND.shape[1], **made) as writer:
            writer.write(0, changed_ND)


@pytest.mark.parametrize("what", ["columns", "rows"])
def test_features_in_another_order_in_the_cache_are_refused(tmp_path: Path, what: str) -> None:
    asked = request(tmp_path, "model=shufflenet_v2_x0_5", *SMALL[1:])
    probe = probe_of(asked)
    assert job.carry_out(probe.extractions[0], asked.runtime) == "completed"
    rewrite_features(probe, asked.runtime, lambda f: np.roll(f, 1, axis=1 if what == "columns" else 0))
    assert job.carry_out(probe, asked.runtime) == "completed"
    assert job.carry_out(final_run(asked), asked.runtime) == "failed"
    assert_refused(record_of(final_run(asked), asked.runtime), "times what rounding allows")


def test_shuffled_labels_are_refused(probed: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = records.read_predictions

    def shuffled(*arguments: Any) -> Any:
        found = real(*arguments)
        return found | {"gate": replace(found["gate"], label_N=np.roll(found["gate"].label_N, 1))}

    monkeypatch.setattr(_parity, "read_predictions", shuffled)
    assert_refused(fine_tune(probed, tmp_path), "the gate's rows or labels are not those the probe stored")


def test_a_head_of_another_shape_has_no_place(probed: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_parity, "load_weights", lambda paths: {"head.weight": torch.zeros(7, 512)})
    assert_refused(fine_tune(probed, tmp_path), "head.weight (7, 512) has no place in this network")


def test_rows_that_cannot_tell_rounding_from_error_do_not_count() -> None:
    logits_NC = torch.zeros(20, 10, dtype=torch.float64)
    logits_NC[torch.arange(20), torch.arange(20) % 10] = 1.0
    stored = make_predictions(np.arange(20), np.arange(20) % 10, logits_NC.numpy())
    bounds_NC = torch.full_like(logits_NC, 0.01)
    compared = _parity._compare(logits_NC, bounds_NC, stored)
    assert (compared.largest_ratio, compared.counting_rows) == (0.0, 20)
    bounds_NC[:3] = 0.6
    assert _parity._compare(logits_NC, bounds_NC, stored).counting_rows == 17
    assert _parity._compare(logits_NC, torch.full_like(logits_NC, 0.6), stored).counting_rows == 0
    other = _parity._compare(logits_NC + 0.02, torch.full_like(logits_NC, 0.0099), stored)
    assert other.largest_ratio == pytest.approx(2.0, rel=0.01) and other.largest_difference == pytest.approx(0.02)


def test_logits_beyond_float16_are_compared_as_they_are_stored() -> None:
    logits_NC = torch.tensor([[2e5, -3e5, 0.0]], dtype=torch.float64)
    stored = make_predictions(np.arange(1), np.zeros(1, dtype=np.int64), logits_NC.numpy())
    assert _parity._compare(logits_NC, torch.zeros_like(logits_NC), stored).largest_ratio == 0.0


def test_coarser_arithmetic_and_storage_have_a_wider_bound(probed: Request) -> None:
    made = final_run(probed).extract
    assert made is not None
    assert _parity.feature_roundoff(made) == 2.0**-11
    assert _parity.feature_roundoff(replace(made, precision="bf16")) == 2.0**-7
    assert _parity.feature_roundoff(replace(made, storage="float32")) == 2.0**-14
    assert _parity.PRECISION_ROUNDOFF["tf32"] == 2.0**-10


def test_the_gate_leaves_the_network_as_it_was(probed: Request) -> None:
    from transfergrid.phases import RunContext
    from transfergrid.store.attempts import Attempt
    from transfergrid.training.stopping import StopFlag
    from transfergrid.training.usage import UsageMeter

    run = final_run(probed)
    attempt: Attempt = None  # type: ignore[assignment]
    setting = _setting.open_setting(
        RunContext(run, probed.runtime, attempt, StopFlag(), UsageMeter()), (run.backbones[0].preprocess,)
    )
    network: JoinedNetwork = _on_images.build_joined(run, probed.runtime, setting, auxiliary=False).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    _parity.gate_features(network, setting, precision="fp32")
    settings = run.settings
    assert isinstance(settings, FinetuneSettings)
    as_it_is = replace(settings, head="probe")
    options: Any = {"strength": 1.0, "held_out": True, "kept_in_eval": frozenset(), "precision": "fp32"}
    start = hand_over(network, setting, as_it_is, **options)
    assert start["measured"] and start["rows"] == 10 and start["batch_size"] == 32
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(module.training for module in network.modules())
    hand_over(network, setting, settings, **options)
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert settings.head == "refitted" and changed == {"head.weight", "head.bias"}
    assert all(module.training for module in network.modules())
