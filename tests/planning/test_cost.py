"""What runs are expected to cost, from records and from FLOPs, against what they then take."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_cases import completed, failed, spec
from small_runs import carry_out, final_run, record_of, request

from transfergrid.config import Request
from transfergrid.networks import architectures, backbones
from transfergrid.paths import store_paths
from transfergrid.planning import cost, history, work
from transfergrid.planning.cost import Estimate, estimate, gpu_hours, packing_advice, start_overhead_s
from transfergrid.planning.plan import PlannedRun
from transfergrid.specs import EvaluateSettings, RunSpec, ScratchSettings
from transfergrid.store.records import RunRecord, read_record
from transfergrid.training.speed import assumed_speed

FLOPS_ALONE = replace(assumed_speed(cores=1, on_gpu=False), image_s=0.0, step_s=0.0, parameter_s=0.0)
SCRATCH = ("phase=scratch", "model=tinynet")
PROBE = ("phase=probe", "model=tinynet_mnist")


def work_s(run: RunSpec, asked: Request, *, gpus: int = 0) -> float:
    """Expected seconds beyond the start of the process."""
    runtime = replace(asked.runtime, device="auto") if gpus else asked.runtime
    return estimate([run], runtime, gpus=gpus)[run.run_id].seconds - start_overhead_s(on_gpu=gpus > 0)


def basis(run: RunSpec, asked: Request, *, gpus: int = 0) -> str:
    runtime = replace(asked.runtime, device="auto") if gpus else asked.runtime
    told = estimate([run], runtime, gpus=gpus)[run.run_id]
    return f"records ({told.record})" if told.basis == "records" else told.basis


def record(asked: Request, **changes: Any) -> RunRecord:
    """Of the request's run: 1,000 images a second, 2 epochs of 90 images, so 0.18 s of training in 1.18 s."""
    facts = {"images_per_s": 1000.0, "n_train": 90, "epochs": 2, "wall_s": 1.18, "gpu_s": 0.0} | changes
    return completed(store_paths(asked.runtime), final_run(asked), **facts)


# ------------------------------------------------------------------------------------------------- against real runs
@pytest.mark.slow
def test_a_record_foretells_another_seed_of_more_epochs_and_images_within_a_factor_of_three(tmp_path: Path) -> None:
    first = request(tmp_path, *SCRATCH, "dataset.max_images=300", "phase.scratch.epochs=2")
    assert carry_out(first) == "completed"
    other = request(tmp_path, *SCRATCH, "dataset.max_images=600", "phase.scratch.epochs=4", "seed=1")
    run = final_run(other)
    expected_s = work_s(run, other)
    assert basis(run, other) == f"records ({final_run(first).run_id})"
    began = time.monotonic()
    assert carry_out(other) == "completed"
    took_s = time.monotonic() - began
    assert took_s / 3 < expected_s < took_s * 3
    assert work.gflops_per_image(run, other.runtime) == pytest.approx(
        record_of(run, other.runtime).gflops_per_image, rel=0.01
    )


def test_what_is_cached_costs_nothing_and_what_is_half_cached_half(tmp_path: Path) -> None:
    asked = request(tmp_path, *PROBE)
    [extraction] = final_run(asked).extractions
    whole_s = work_s(extraction, asked)
    assert carry_out(asked) == "completed"
    assert estimate([extraction], asked.runtime, gpus=0)[extraction.run_id] == Estimate(0.0, "flops")
    [test_file] = (tmp_path / "cache" / "features" / "digits" / "test").iterdir()
    test_file.unlink()
    assert basis(extraction, asked) == f"records ({extraction.run_id})"
    for path in (tmp_path / "store" / "runs").glob("*/record.json"):
        path.unlink()
    assert work_s(extraction, asked) == pytest.approx(whole_s / 2)


# --------------------------------------------------------------------------------------------------------- by records
def test_training_grows_with_images_and_epochs_and_the_rest_with_images(tmp_path: Path) -> None:
    record(request(tmp_path, *SCRATCH))
    longer = request(tmp_path, *SCRATCH, "phase.scratch.epochs=20")
    assert work_s(final_run(longer), longer) == pytest.approx(10 * 0.18 + 1.0)
    larger = request(tmp_path, *SCRATCH, "dataset.max_images=1000")
    assert work_s(final_run(larger), larger) == pytest.approx(10 * 0.18 + 10 * 1.0)


def test_a_probes_imports_are_part_of_its_start_and_not_scaled(tmp_path: Path) -> None:
    record(request(tmp_path, *PROBE), wall_s=5.28, images_per_s=1000.0, provenance={"slurm_job_id": "1"})
    longer = request(tmp_path, *PROBE, "phase.probe.epochs=20")
    assert work_s(final_run(longer), longer) == pytest.approx(10 * 0.18 + 0.1)


def test_the_nearest_record_counts_and_among_those_the_newest(tmp_path: Path) -> None:
    now_s = time.time()
    cases = [("seed=1", 40.0, 300), ("seed=2", 20.0, 200), ("phase.scratch.epochs=7", 90.0, 100)]
    for argument, wall_s, age_s in cases:
        asked = request(tmp_path, *SCRATCH, argument)
        epochs = 7 if "epochs" in argument else 2
        record(asked, wall_s=wall_s, epochs=epochs)
        path = store_paths(asked.runtime).run(final_run(asked).run_id).record
        os.utime(path, (now_s - age_s, now_s - age_s))
    asked = request(tmp_path, *SCRATCH, "seed=5")
    assert work_s(final_run(asked), asked) == pytest.approx(20.0)
    other = request(tmp_path, *SCRATCH, "phase.scratch.epochs=3")
    assert "-s0-" in basis(final_run(other), other)  # none has 3 epochs: the newest of all


@pytest.mark.parametrize(
    ("argument", "changes"),
    [
        ("seed=1", {"gpu_s": 1.18}),
        ("phase.scratch.precision=bf16", {}),
        ("dataset.image_size_px=64", {}),
        ("model=baseline_cnn", {}),
    ],
)
def test_a_record_of_another_kind_tells_nothing(tmp_path: Path, argument: str, changes: dict[str, Any]) -> None:
    arguments = [a for a in SCRATCH if a.split("=")[0] != argument.split("=")[0]]
    record(request(tmp_path, *arguments, argument), **changes)
    asked = request(tmp_path, *SCRATCH)
    assert basis(final_run(asked), asked) == "flops"
    if changes.get("gpu_s"):
        assert basis(final_run(asked), asked, gpus=1).startswith("records (digits-tinynet-scratch-s1-")


def test_a_join_is_the_same_in_either_order_and_a_data_set_of_any_name_counts_by_its_kind(tmp_path: Path) -> None:
    one = request(tmp_path, "phase=probe", "model=tinynet_mnist+tinynet_cifar", "dataset.name=mine")
    record(one, wall_s=6.18)
    other = request(tmp_path, "phase=probe", "model=tinynet_cifar+tinynet_mnist")
    assert basis(final_run(other), other) == f"records ({final_run(one).run_id})"


def test_a_failed_or_damaged_record_is_passed_over(tmp_path: Path) -> None:
    asked = request(tmp_path, *SCRATCH)
    failed(store_paths(asked.runtime), final_run(asked), failure_class="code", error="no")
    assert basis(final_run(asked), asked) == "flops"
    record(asked)
    assert basis(final_run(asked), asked) != "flops"
    store_paths(asked.runtime).run(final_run(asked).run_id).record.write_text('{"format": 1}')
    assert basis(final_run(asked), asked) == "flops"


def test_of_ten_thousand_records_only_the_newest_that_may_match_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request(tmp_path, *SCRATCH)
    runs = store_paths(asked.runtime).runs
    runs.mkdir(parents=True)
    for number in range(9_960):
        (runs / f"digits-cnn_{number % 50}-scratch-s{number}-{number:012x}").mkdir()
    for seed in range(1, 41):
        run = replace(final_run(asked), seed=seed)
        record(replace(asked, configurations=(replace(asked.configurations[0], run=run),)))
    opened: list[str] = []

    def counted(paths: Any) -> RunRecord | None:
        opened.append(paths.root.name)
        return read_record(paths)

    monkeypatch.setattr(history, "read_record", counted)
    seeds = [replace(final_run(asked), seed=seed) for seed in range(100, 200)]
    told = estimate(seeds, asked.runtime, gpus=0)
    assert [e.seconds for e in told.values()] == pytest.approx([start_overhead_s() + 1.18] * 100)
    assert len(opened) == 12 and all(name.startswith("digits-tinynet-scratch-s") for name in opened)


# ----------------------------------------------------------------------------------------------------------- by FLOPs
def test_flops_of_known_networks_are_the_known_ones() -> None:
    known = {
        "resnet18": 1.81,
        "resnet50": 4.09,
        "vgg16": 15.47,
        "googlenet": 1.50,
        "densenet121": 2.83,
        "vit_b_16": 17.56,
    }
    assert {name: round(backbones.entry(name).gmacs, 2) for name in known} == known
    assert backbones.entry("tinynet_mnist").gmacs == pytest.approx(0.0034, rel=0.01)


@pytest.mark.parametrize("name", architectures.names())
def test_every_architecture_states_the_flops_that_are_counted(name: str) -> None:
    from transfergrid.networks.size import describe

    counted = describe(architectures.build(name, 10, 0), [(3, 32, 32)]).gflops_per_image
    assert architectures.entry(name).gflops_at_32_px == pytest.approx(counted, rel=0.01)


def test_attention_is_counted_on_a_device_where_torch_would_fuse_it() -> None:
    """One multi-head attention of 16 tokens of width 32: 4 projections and 2 products."""
    from torch import nn

    from transfergrid.networks.size import describe

    layer = nn.TransformerEncoderLayer(32, nhead=2, dim_feedforward=64, batch_first=True)
    counted = describe(nn.Sequential(layer), [(16, 32)]).gflops_per_image * 1e9 / 2
    assert counted == 4 * 16 * 32 * 32 + 2 * 16 * 16 * 32 + 2 * 16 * 32 * 64


def test_flops_grow_with_the_area_and_joined_backbones_add_up(tmp_path: Path) -> None:
    def gflops(*arguments: str) -> float:
        asked = request(tmp_path, "phase=probe", "weights=random", *arguments)
        return work.gflops_per_image(final_run(asked), asked.runtime)

    at_224 = gflops("model=resnet18", "dataset.image_size_px=224")
    assert at_224 == pytest.approx(3.63, abs=0.01)
    assert gflops("model=resnet18", "dataset.image_size_px=112") == pytest.approx(at_224 / 4)
    joined = gflops("model=resnet18+googlenet", "dataset.image_size_px=224")
    assert joined == pytest.approx(at_224 + 2 * 1.497, rel=0.001)


def test_finetuning_by_flops_is_what_the_code_passes_through_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "assumed_speed", lambda **_: FLOPS_ALONE)
    asked = request(tmp_path, "phase=finetune", "model=resnet18", "weights=random", "dataset.max_images=300")
    forward_s = work.gflops_per_image(final_run(asked), asked.runtime) * 1e9 / FLOPS_ALONE.flop_per_s["fp32"]
    # 270 to train on in 8 whole batches of 32, 30 held out, 300 to test on: two epochs, val after each; in the end all
    # folds; in the beginning the gate's 256, and those trained on for the head.
    images = 2 * (3 * 256 + 30) + 270 + 30 + 300 + 256 + 270
    assert work_s(final_run(asked), asked) == pytest.approx(images * forward_s)
    [extraction] = asked.runs[final_run(asked).needs[0]].extractions
    assert work_s(extraction, asked) == pytest.approx(600 * forward_s)


def test_the_epochs_that_little_data_gets_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "assumed_speed", lambda **_: FLOPS_ALONE)
    left_open = ("phase.finetune.epochs=null", "phase.finetune.batch_size=null", "dataset.max_images=90")
    asked = request(tmp_path, "phase=finetune", "model=resnet18", "weights=random", *left_open)
    forward_s = work.gflops_per_image(final_run(asked), asked.runtime) * 1e9 / FLOPS_ALONE.flop_per_s["fp32"]
    # 20 epochs of 5 batches of 16 of 81 images, 9 held out; the gate's 90, and those trained on for the head.
    images = 20 * (3 * 80 + 9) + 81 + 9 + 90 + 90 + 81
    assert work_s(final_run(asked), asked) == pytest.approx(images * forward_s)


def test_a_gpu_and_more_threads_are_faster(tmp_path: Path) -> None:
    asked = request(tmp_path, "phase=finetune", "model=resnet18", "weights=random", "dataset.image_size_px=224")
    run = final_run(asked)
    on_cpu_s, on_gpu_s = work_s(run, asked), work_s(run, asked, gpus=1)
    assert on_cpu_s > 20 * on_gpu_s
    four = replace(asked, runtime=replace(asked.runtime, num_threads=4))
    assert work_s(run, four) == pytest.approx(on_cpu_s / 4, rel=0.02)  # what a step costs beside its FLOPs stays
    asked_for_cpu = estimate([run], asked.runtime, gpus=1)[run.run_id]
    assert asked_for_cpu.seconds == pytest.approx(on_cpu_s + start_overhead_s())


def test_a_probe_on_images_trains_without_the_way_back(tmp_path: Path) -> None:
    network = ("model=resnet18", "weights=random", "dataset.image_size_px=224")
    arguments = ("phase=probe", *network, "phase.probe.epochs=20")
    choices = ("phase.probe.lrs=[0.001]", "phase.probe.weight_decays=[0.0]")
    images = request(tmp_path, *arguments, *choices, "phase.probe.source=images")
    tuned = request(tmp_path, "phase=finetune", *network, "phase.finetune.epochs=20", "phase.finetune.drop_last=false")
    assert 2.5 < work_s(final_run(tuned), tuned) / work_s(final_run(images), images) < 3
    features = request(tmp_path, *arguments, *choices)
    assert work_s(final_run(features), features) < 1


def test_an_evaluation_is_one_pass_and_takes_the_size_its_run_was_trained_at(tmp_path: Path) -> None:
    trained = final_run(request(tmp_path, *SCRATCH, "dataset.image_size_px=64"))
    asked = request(tmp_path, *SCRATCH, "dataset.image_size_px=64")
    settings = EvaluateSettings(source=f"run:{trained.run_id}", split="test", precision="fp32", preprocess=None)
    run = replace(trained, phase="evaluate", settings=settings, seed=None, needs=(trained.run_id,))
    native = work.gflops_per_image(run, asked.runtime)
    assert carry_out(asked) == "completed"
    assert work.gflops_per_image(run, asked.runtime) == pytest.approx(native * (64 / 8) ** 2)
    assert work_s(run, asked) == pytest.approx(100 * (0.0271e9 / 60e9 + 0.3e-3), rel=0.01)


# -------------------------------------------------------------------------------------------------------------- totals
def test_gpu_hours_count_what_is_to_be_run() -> None:
    estimates = {}
    planned = []
    for seed, state in enumerate(("run", "run", "reuse", "blocked")):
        run = spec("probe", "resnet18", seed=seed)
        planned.append(PlannedRun(run, state, ""))  # type: ignore[arg-type]
        estimates[run.run_id] = Estimate(1800.0, "flops")
    assert gpu_hours(planned, estimates, 1) == 1.0
    assert gpu_hours(planned, estimates, 0) == 0.0


def test_packing_is_advised_with_its_numbers_where_runs_are_short() -> None:
    short = {f"run{i}": Estimate(40.0, "flops") for i in range(40)} | {"cached": Estimate(0.0, "flops")}
    said = packing_advice(short, runs_per_job=1, packed_jobs=4)
    assert said == (
        "half of the 40 runs take less than 40 s: cluster.runs_per_job=16 makes 4 jobs of them"
        " and saves 6.0 min of starting python"
    )
    assert packing_advice(short, runs_per_job=16, packed_jobs=4) is None
    assert packing_advice({n: Estimate(150.0, "flops") for n in short}, runs_per_job=1, packed_jobs=3) is None
    assert packing_advice({"one": Estimate(40.0, "flops")}, runs_per_job=1, packed_jobs=1) is None
    assert packing_advice({}, runs_per_job=1, packed_jobs=0) is None
    assert packing_advice(short, runs_per_job=1, packed_jobs=38) is None, "20 seconds are not worth a word"


def test_estimating_loads_no_heavy_library(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from transfergrid.config import load_run;"
        "from transfergrid.planning.cost import estimate;"
        f"asked = load_run(['phase=finetune', 'model=resnet18', 'dataset=digits', 'store.dir={tmp_path}/store',"
        f" 'cache.dir={tmp_path}/cache']);"
        "runs = [r for run in asked.runs.values() for r in (*run.extractions, run)];"
        "print(len(estimate(runs, asked.runtime, gpus=1)),"
        " sorted({'torch', 'torchvision', 'timm', 'sklearn', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "3 []", done.stderr


def test_an_epoch_has_no_more_steps_than_rows_fill_unless_they_are_drawn_with_replacement() -> None:
    def steps(**changes: Any) -> int:
        settings = spec("scratch", "baseline_cnn", batch_size=100, image_size_px=32, **changes).settings
        assert isinstance(settings, ScratchSettings)
        return work._passes_per_epoch(settings, 1_050)

    assert steps() == steps(steps_per_epoch=50) == 10
    assert steps(drop_last=False) == 11
    assert steps(steps_per_epoch=5) == 5
    assert steps(steps_per_epoch=50, sampling="replacement") == 50
