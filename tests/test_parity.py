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

from transfergrid import feature_store, job, records, results
from transfergrid.backbones.build import build as real_build
from transfergrid.config import Request
from transfergrid.network import JoinedNetwork
from transfergrid.paths import cache_paths
from transfergrid.phases import _on_images, _parity
from transfergrid.records import RunRecord
from transfergrid.specs import BackboneSpec, RunSpec, Runtime

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
    assert record.status == "completed" and gate["rows"] == 10
    assert gate["largest_ratio"] < 0.5 and gate["changed_predictions"] == 0 and gate["counting_share"] >= 0.9


@pytest.mark.parametrize(
    "arguments",
    [
        ["model=shufflenet_v2_x0_5", "phase.extract.bn_statistics=target"],
        ["model=googlenet"],
        ["model=mobilenet_v3_small+shufflenet_v2_x0_5", "phase.extract.storage=float32"],
        ["model=resnet18", "phase.extract.precision=bf16", "phase.probe.epochs=40"],
    ],
)
def test_other_statistics_transforms_joins_and_precisions_pass_too(arguments: list[str], tmp_path: Path) -> None:
    asked = request(tmp_path, *arguments, *SMALL[1:], "dataset.max_images=200")
    carry_out(asked)
    record = record_of(final_run(asked), asked.runtime)
    assert record.status == "completed", record.error
    assert record.details["gate"]["rows"] == 20 and record.details["gate"]["largest_ratio"] < 0.9


def test_a_random_head_has_no_gate_and_the_record_says_so(probed: Request, tmp_path: Path) -> None:
    asked = request(tmp_path, *SMALL, "phase.finetune.head=random")
    assert carry_out(asked) == "completed"
    assert record_of(final_run(asked), asked.runtime).details["gate"] == "none: the head is random"


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


def spoil_network(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Any], None]) -> None:
    def build(*arguments: Any, **options: Any) -> Any:
        trunk = real_build(*arguments, **options)
        with torch.no_grad():
            spoil(trunk)
        return trunk

    monkeypatch.setattr(_on_images, "build", build)


@pytest.mark.parametrize("buffer", ["bn1.running_var", "layer2.0.bn1.running_mean", "layer4.1.bn2.running_var"])
def test_one_batchnorm_buffer_one_percent_off_is_refused(
    probed: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, buffer: str
) -> None:
    spoil_network(monkeypatch, lambda trunk: trunk.get_buffer(buffer).mul_(1.01))
    assert_refused(fine_tune(probed, tmp_path), "times what rounding allows")


def test_a_constant_block_of_features_is_refused(
    probed: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_network(monkeypatch, lambda trunk: trunk.get_parameter("conv1.weight").zero_())
    assert_refused(fine_tune(probed, tmp_path), "backbone 1 gives the same features for every image")


def test_columns_of_the_probes_head_in_another_order_are_refused(
    probed: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = results.load_weights

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
    from transfergrid.errors import ParityError
    from transfergrid.records import make_predictions

    logits_NC = torch.zeros(20, 10, dtype=torch.float64)
    logits_NC[torch.arange(20), torch.arange(20) % 10] = 1.0
    stored = make_predictions(np.arange(20), np.arange(20) % 10, logits_NC.numpy())
    judged = _parity._judge(logits_NC, torch.full_like(logits_NC, 0.01), stored, remedy="")
    assert (judged.largest_ratio, judged.counting_share, judged.changed_predictions) == (0.0, 1.0, 0)
    with pytest.raises(ParityError, match="only 0% of the rows tell rounding from error, 90% must; train more"):
        _parity._judge(logits_NC, torch.full_like(logits_NC, 0.6), stored, remedy="train more")
    bounds_NC = torch.full_like(logits_NC, 0.01)
    bounds_NC[:3] = 0.6
    with pytest.raises(ParityError, match="only 85% of the rows"):
        _parity._judge(logits_NC, bounds_NC, stored, remedy="")
    with pytest.raises(ParityError, match="a logit differs by 0.02 from the probe's, 2.00 times what rounding allows"):
        _parity._judge(logits_NC + 0.02, torch.full_like(logits_NC, 0.01), stored, remedy="")


def test_finer_features_have_a_tighter_bound_and_the_remedy_is_one_that_helps(probed: Request) -> None:
    made = final_run(probed).extract
    assert made is not None
    coarse = _parity.feature_roundoff(replace(made, precision="bf16"))
    usual = _parity.feature_roundoff(made)
    fine = _parity.feature_roundoff(replace(made, storage="float32"))
    assert coarse[0] > usual[0] > fine[0]
    assert coarse[1] == "use phase.extract.precision=fp32" and usual[1] == "use phase.extract.storage=float32"


def test_the_gate_leaves_the_network_as_it_was(probed: Request) -> None:
    from transfergrid.attempts import Attempt
    from transfergrid.phases import RunContext
    from transfergrid.stopping import StopFlag

    run = final_run(probed)
    attempt: Attempt = None  # type: ignore[assignment]
    setting = _on_images.open_setting(
        RunContext(run, probed.runtime, attempt, StopFlag()), (run.backbones[0].preprocess,)
    )
    network: JoinedNetwork = _on_images.build_joined(run, probed.runtime, setting, auxiliary=False).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    _parity.gate_features(network, setting, precision="fp32")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(module.training for module in network.modules())
