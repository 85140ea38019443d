"""What a second reading of the whole found: each of these failed before it was mended."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import small_runs
import tiny_data
import torch
from torch import Tensor, nn

from transfergrid.cli.before import check_inputs
from transfergrid.cli.console import make_console
from transfergrid.cli.grid_file import write_grid_of
from transfergrid.config import Request, load_grid, load_run
from transfergrid.data.splits import val_indices
from transfergrid.errors import ConfigError, DataError, MissingInput, Superseded, TrainingDiverged
from transfergrid.networks import backbones
from transfergrid.paths import RunPaths
from transfergrid.planning import job
from transfergrid.planning.plan import make_plan
from transfergrid.report.analysis.comparison import comparison_rows
from transfergrid.specs import EvaluateSettings, FinetuneSettings, ProbeSettings, RunSpec, to_dict
from transfergrid.store import durable
from transfergrid.store.attempts import begin_attempt
from transfergrid.store.checkpoints import checkpoint_files
from transfergrid.store.metrics_log import read_metrics
from transfergrid.store.records import read_grid
from transfergrid.training.loop import fit
from transfergrid.training.optimization import split_decay
from transfergrid.training.stopping import StopFlag
from transfergrid.training.usage import UsageMeter

TINY = "model=tinynet_mnist"
ON_IMAGES = [
    "phase.probe.solver=sgd",
    "phase.probe.source=images",
    "phase.probe.lrs=[1e-3]",
    "phase.probe.weight_decays=[0]",
]
ONE_EPOCH = ["phase.probe.epochs=1", "phase.finetune.epochs=1"]


# --------------------------------------------------------------------------------------------------- the training loop
class LinearTrainee:
    """One or two linear heads on 10 fixed rows, of which 8 make up the batches when the last is dropped."""

    def __init__(self, heads: int = 1, losses: tuple[float, ...] = (1.0, 1.0, 1.0)) -> None:
        torch.manual_seed(0)
        self.rows_ND, self.labels_N = torch.randn(10, 3), torch.arange(10) % 2
        self.module = nn.ModuleList([nn.Linear(3, 2) for _ in range(heads)])
        for head in self.module[1:]:
            head.load_state_dict(self.module[0].state_dict())
        self.num_rows, self.num_heads, self.rows_on = 10, heads, torch.device("cpu")
        self._losses, self._epoch = losses, 0

    def train_mode(self) -> None:
        self.module.train()

    def losses(self, rows_B: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        labels_B = self.labels_N[rows_B]
        logits = [head(self.rows_ND[rows_B]) for head in self.module]
        # The second head's gradients are a hundred times the first's.
        loss_H = torch.stack([nn.functional.cross_entropy(x * 100**h, labels_B) for h, x in enumerate(logits)])
        return loss_H, torch.stack([(x.argmax(1) == labels_B).sum() for x in logits])

    def evaluate(self, module: nn.Module) -> dict[str, Any]:
        self._epoch += 1
        return {"test/accuracy": 1.0 / self._epoch, "test/loss": self._losses[self._epoch - 1]}


def fit_linear(trainee: LinearTrainee, folder: Path, **changes: Any) -> Any:
    spec = load_run([TINY, "phase=finetune", "device=cpu"]).configurations[0].run
    assert isinstance(spec.settings, FinetuneSettings)
    plain: dict[str, Any] = {
        "epochs": 3,
        "batch_size": 4,
        "drop_last": True,
        "schedule": "constant",
        "warmup_fraction": 0.0,
    }
    settings = replace(spec.settings, **plain | changes)
    groups = [
        g
        for h, head in enumerate(trainee.module)
        for g in split_decay(f"head_{h}", head.parameters(), lr=0.1, weight_decay=0.0, decay_norm_and_bias=False)
    ]
    with begin_attempt(RunPaths(folder), spec) as attempt:
        return fit(
            trainee,
            settings,
            groups,
            attempt=attempt,
            seed=0,
            device=torch.device("cpu"),
            checkpoint_min_interval_s=60,
            stop=StopFlag(),
            usage=UsageMeter(),
        )


@pytest.mark.parametrize(("drop_last", "images", "steps"), [(True, 24, 6), (False, 30, 9)])
def test_images_per_second_counts_the_images_that_were_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drop_last: bool, images: int, steps: int
) -> None:
    seconds = [0.0]
    for module in ("loop", "progress"):
        monkeypatch.setattr(f"transfergrid.training.{module}.time", SimpleNamespace(monotonic=lambda: seconds[0]))

    class OneSecondPerStep(LinearTrainee):
        def losses(self, rows_B: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
            seconds[0] += 1
            return super().losses(rows_B, epoch)

    result = fit_linear(OneSecondPerStep(), tmp_path, drop_last=drop_last)
    assert seconds[0] == steps and result.images_per_s == images / steps
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["images_per_s"] == round(images / steps, 1)


def test_where_test_is_watched_both_checkpoint_rules_are_recorded_whichever_counts(tmp_path: Path) -> None:
    result = fit_linear(LinearTrainee(), tmp_path, selection="last")
    rule = {"last_test_accuracy": 1 / 3, "last_epoch": 3, "best_test_accuracy": 1.0, "best_epoch": 1}
    assert result.rules(3) == {"rule": rule} and result.best_state is None


def test_a_loss_that_is_not_finite_in_evaluation_stops_the_run_with_its_step(tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged, match="loss is inf at step 4"):
        fit_linear(LinearTrainee(losses=(1.0, float("inf"))), tmp_path)


def test_a_head_is_clipped_as_if_it_were_alone(tmp_path: Path) -> None:
    alone, beside = LinearTrainee(), LinearTrainee(heads=2)
    fit_linear(alone, tmp_path / "alone", clip_norm=0.01)
    fit_linear(beside, tmp_path / "beside", clip_norm=0.01)
    ours, theirs = (t.module[0].get_parameter("weight") for t in (alone, beside))
    assert torch.equal(ours, theirs)


def test_a_superseded_attempt_neither_truncates_the_metrics_nor_adds_its_epoch(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)

    class Overtaken(LinearTrainee):
        """A newer attempt begins while the first epoch is evaluated, and writes its lines."""

        def evaluate(self, module: nn.Module) -> dict[str, Any]:
            paths.attempt(2).write_text("{}")
            paths.metrics.write_text("of attempt 2\n")
            return super().evaluate(module)

    with pytest.raises(Superseded):
        fit_linear(Overtaken(), tmp_path)
    assert paths.metrics.read_text() == "of attempt 2\n"


# ------------------------------------------------------------------------------------------------------ whole runs
def test_the_gate_holds_for_a_probe_that_was_read_with_batch_statistics(tmp_path: Path) -> None:
    asked = small_runs.request(
        tmp_path, TINY, "phase=finetune", *ON_IMAGES, *ONE_EPOCH, "phase.probe.bn=train", "phase.probe.test_bn=batch"
    )
    assert small_runs.carry_out(asked) == "completed"
    gate = small_runs.record_of(small_runs.final_run(asked), asked.runtime).details["gate"]
    assert gate["largest_ratio"] < 1 and gate["counting_rows"] >= 0.9 * gate["rows"]


def test_a_run_from_a_weights_file_is_evaluated_with_that_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.pt"
    shutil.copy(backbones.builtin_file("tinynet_mnist"), file)
    trained = small_runs.request(tmp_path, TINY, "phase=probe", f"weights={file}", *ONE_EPOCH)
    assert small_runs.carry_out(trained) == "completed"
    run_id = small_runs.final_run(trained).run_id
    asked = small_runs.request(tmp_path, "phase=evaluate", f"run={run_id}", f"weights_files.tinynet_mnist={file}")
    assert job.carry_out(small_runs.final_run(asked), asked.runtime) == "completed"
    ours, theirs = (small_runs.record_of(small_runs.final_run(r), r.runtime).metrics for r in (asked, trained))
    assert ours["test_accuracy"] == pytest.approx(theirs["test_accuracy"], abs=0.011)  # features were stored as float16
    other = backbones.builtin_file("tinynet_cifar")
    with pytest.raises(ConfigError, match="is not the file of tinynet_mnist that run="):
        small_runs.request(tmp_path, "phase=evaluate", f"run={run_id}", f"weights_files.tinynet_mnist={other}")


def test_a_checkpoint_is_evaluated_without_any_other_weights_and_named_in_the_table(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    file = tmp_path / "tuned.pt"
    torch.save(resnet18(num_classes=10).state_dict(), file)
    asked = small_runs.request(
        tmp_path, "model=resnet18", "phase=evaluate", f"phase.evaluate.checkpoint={file}", f"weights_dir={tmp_path}"
    )
    run = small_runs.final_run(asked)
    check_inputs([run], asked.runtime)
    assert run.weights_label == "tuned.pt" and job.carry_out(run, asked.runtime) == "completed"


def test_a_join_is_not_evaluated_from_a_checkpoint_of_one_part(tmp_path: Path) -> None:
    file = tmp_path / "part.pt"
    shutil.copy(backbones.builtin_file("tinynet_mnist"), file)
    with pytest.raises(ConfigError, match="a join; its finished run can be evaluated"):
        load_run(["model=tinynet_mnist+tinynet_cifar", "phase=evaluate", f"phase.evaluate.checkpoint={file}"])


def test_an_evaluation_that_lacked_weights_is_tried_again_once_they_are_there(tmp_path: Path) -> None:
    training = [TINY, "phase=finetune", "phase.finetune.head=random", *ONE_EPOCH]
    first = small_runs.request(tmp_path, *training, "keep_weights=none")
    assert small_runs.carry_out(first) == "completed"
    trained = small_runs.final_run(first)
    asked = small_runs.request(tmp_path, "phase=evaluate", f"run={trained.run_id}")
    evaluation = small_runs.final_run(asked)
    assert job.carry_out(evaluation, asked.runtime) == "failed"
    record = small_runs.record_of(evaluation, asked.runtime)
    assert record.failure_class == MissingInput.failure_class and "were not kept" in str(record.error)
    small_runs.paths_of(trained, first.runtime).record.unlink()
    assert small_runs.carry_out(small_runs.request(tmp_path, *training)) == "completed"
    states = {p.run.run_id: p.state for p in make_plan([evaluation.run_id], asked.runs, asked.runtime).runs}
    assert states[evaluation.run_id] == "run"
    assert job.carry_out(evaluation, asked.runtime) == "completed"


def test_what_a_network_costs_is_known_from_its_features_alone_and_is_the_same_in_both_phases(tmp_path: Path) -> None:
    """In a new store over an old cache there is no record of the extraction."""
    pair = ["model=tinynet_mnist+tinynet_cifar", "phase=finetune", *ONE_EPOCH]
    for store in ("first", "second"):
        asked = small_runs.request(tmp_path / store, *pair, cache=tmp_path / "cache")
        assert small_runs.carry_out(asked) == "completed"
    probe, finetune = (small_runs.record_of(run, asked.runtime) for run in asked.runs.values())
    assert probe.parameters == finetune.parameters == 2 * (61_338 - 650) + 128 * 10 + 10
    assert probe.gflops_per_image == pytest.approx(finetune.gflops_per_image, rel=1e-9)
    assert probe.size_mb == pytest.approx(finetune.size_mb, rel=1e-9)


def test_evaluations_of_several_seeds_are_one_row(tmp_path: Path) -> None:
    places = [f"store.dir={tmp_path / 'store'}", f"cache.dir={tmp_path / 'cache'}"]
    models = ["grid.models=[baseline_cnn]", "grid.phases=[scratch,evaluate]", "grid.seeds=[0,1]", "grid.variants={}"]
    asked = load_grid([*models, *small_runs.MACHINE, *places, "dataset.max_images=100", "phase.scratch.epochs=1"])
    for run in asked.runs.values():
        assert job.carry_out(run, asked.runtime) == "completed"
    write_grid_of(make_console(), asked)
    trained, evaluated = comparison_rows("quickstart", asked.store)
    assert (trained.phase, evaluated.phase) == ("scratch", "evaluate") and evaluated.n_seeds == 2
    assert evaluated.test_accuracy == trained.test_accuracy


def test_an_extraction_stops_when_it_is_asked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = small_runs.request(tmp_path, TINY, "phase=extract")
    small_runs.stop_after(monkeypatch, 2)
    assert job.carry_out(small_runs.final_run(asked), asked.runtime) == "interrupted"
    assert not list((tmp_path / "cache").rglob("*.h5")) and not list((tmp_path / "cache").rglob("*.tmp"))


# ---------------------------------------------------------------------------------------------- what is asked for
def test_a_run_by_hand_takes_the_rules_of_the_grid_it_names() -> None:
    run = (
        load_run(["grid=individual_vs_parallel_as_published", "model=vgg16", "dataset=mnist", "phase=finetune"])
        .configurations[0]
        .run
    )
    assert isinstance(run.settings, FinetuneSettings) and run.settings.frozen_groups == ("fc6", "fc7")


def test_a_probe_on_images_does_not_silently_take_the_first_of_several_learning_rates() -> None:
    with pytest.raises(ConfigError, match="source=images trains one head; give one value each"):
        load_run([TINY, "phase=probe", "phase.probe.solver=sgd", "phase.probe.source=images"])
    load_run([TINY, "phase=probe", *ON_IMAGES])


def test_auxiliary_heads_are_not_silently_without_effect() -> None:
    frozen = ["model=googlenet", "weights=random", "phase=probe", *ON_IMAGES, "phase.probe.aux_loss_weight=0.3"]
    with pytest.raises(ConfigError, match="auxiliary heads give no output in eval mode; set bn=train"):
        load_run(frozen)
    load_run([*frozen, "phase.probe.bn=train"])


def test_a_precision_that_cached_features_do_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="phase.probe.precision cannot act on cached features"):
        load_run([TINY, "phase=probe", "phase.probe.precision=bf16"])


def test_a_folder_of_one_class_is_refused(tmp_path: Path) -> None:
    folder = tiny_data.write_folder(tmp_path / "pets", sizes_px=(16,))
    for split in ("train", "test"):
        shutil.rmtree(folder / split / "dog")
    with pytest.raises(DataError, match="train/ has one class, .*; wanted two or more"):
        load_run([TINY, "phase=probe", "dataset=image_folder", f"dataset.folder={folder}"])


def test_val_holds_an_image_however_few_there_are() -> None:
    assert len(val_indices(torch.tensor([0, 0, 1, 1]).numpy(), val_seed=0)) == 1


# ------------------------------------------------------------------------------------------------ runs by hand
def entries_after(folder: Path, *arguments: str) -> list[tuple[str, str]]:
    """(phase, variant) of what the grid of runs by hand holds once this one has joined it."""
    asked = small_runs.request(folder, *arguments)
    (run,) = [c.run for c in asked.configurations]
    durable.write_json(small_runs.paths_of(run, asked.runtime).spec, to_dict(run))
    write_grid_of(make_console(), asked)
    return [(e.phase, e.variant) for e in read_grid(asked.store.grid("adhoc"))]


def test_runs_by_hand_of_other_settings_never_share_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report refuses such a row, and with it the whole grid, from then on."""
    assert len(entries_after(tmp_path, TINY, "phase=probe")) == 1
    assert len(entries_after(tmp_path, TINY, "phase=probe", "seed=1")) == 2
    run_ids = [p.name for p in (tmp_path / "store" / "runs").iterdir()]
    evaluations = [entries_after(tmp_path, "phase=evaluate", f"run={run_id}") for run_id in run_ids][-1]
    variants = [variant for phase, variant in evaluations if phase == "evaluate"]
    assert len(evaluations) == 4 and sorted(v[:16] for v in variants) == sorted(f"run-{r[-12:]}" for r in run_ids)
    # A default that has changed meanwhile: the same row and seed, another run; it takes the place of both seeds.
    monkeypatch.setattr(small_runs, "load_run", lambda arguments: _with_other_default(load_run(arguments)))
    assert [e for e in entries_after(tmp_path, TINY, "phase=probe") if e[0] == "probe"] == [("probe", variants[0][17:])]


def _with_other_default(asked: Request) -> Request:
    (configuration,) = asked.configurations
    assert isinstance(configuration.run.settings, ProbeSettings | EvaluateSettings)
    settings = replace(configuration.run.settings, precision="bf16")
    changed = replace(configuration, run=replace(configuration.run, settings=settings))
    return replace(asked, configurations=(changed,))


# ----------------------------------------------------------------------------------------------- several at once
def test_two_launches_of_one_second_do_not_share_a_payload(tmp_path: Path) -> None:
    asked = small_runs.request(tmp_path, TINY, "phase=probe")
    runs: list[RunSpec] = [small_runs.final_run(asked)]
    assert job.write_payload(runs, asked.runtime) != job.write_payload(runs, asked.runtime)


def test_looking_at_a_lock_does_not_keep_its_owner_from_taking_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with open(path, "w") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)  # as is_locked() holds it, for a few milliseconds
        threading.Timer(0.005, fcntl.flock, (looking, fcntl.LOCK_UN)).start()
        with durable.lock(path, wait=False) as obtained:
            assert obtained
        fcntl.flock(looking, fcntl.LOCK_EX)  # as another owner holds it
        with durable.lock(path, wait=False) as obtained:
            assert not obtained


@pytest.mark.slow
def test_a_launch_that_is_terminated_ends_its_runs_too(tmp_path: Path) -> None:
    places = [f"store.dir={tmp_path / 'store'}", f"cache.dir={tmp_path / 'cache'}"]
    one_run = ["model=baseline_cnn", "phase=scratch", "phase.scratch.epochs=2000", "cluster=local"]
    one_run += ["phase.scratch.batch_size=128"]
    script = Path(__file__).parents[2] / "jobs" / "run_phase.py"
    arguments = [*one_run, *small_runs.DATASET, *small_runs.MACHINE, *places]
    launch = subprocess.Popen([sys.executable, script, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    wanted = small_runs.request(tmp_path, *one_run, "phase.scratch.precision=bf16")
    run = small_runs.paths_of(small_runs.final_run(wanted), wanted.runtime)
    deadline = time.monotonic() + 120
    while not read_metrics(run.metrics):
        assert launch.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    launch.terminate()
    printed, _ = launch.communicate(timeout=30)
    assert launch.returncode == 130 and b"launch again to continue" in printed
    assert not durable.is_locked(run.lock) and not run.record.exists()
    assert len(checkpoint_files(run)) == 1 and not list((tmp_path / "store" / "launches").iterdir())
