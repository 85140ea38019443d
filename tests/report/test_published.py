import csv
import json
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import report_cases as cases
from omegaconf import OmegaConf

from transfergrid.report.studies import published
from transfergrid.report.studies import settings as stored
from transfergrid.report.studies.published import PublishedFigure, differs, figures, lookup
from transfergrid.specs import ExtractSettings, RunSpec

CONF = Path(__file__).parents[2] / "conf" / "grid"
FIXTURE = Path(__file__).with_name("published_source_rows.csv")
BORDER = "border of the shift"  # of the study's RandomCrop, black where ours reflects
SOURCE_KEY = ("study", "file", "model", "dataset", "phase", "epoch", "split", "metric")


def find(grid: str, dataset: str, model: str, phase: str, variant: str = "") -> PublishedFigure:
    figure = lookup(grid=grid, dataset=dataset, model=model, phase=phase, variant=variant)
    assert figure is not None
    return figure


# -------------------------------------------------------------------------------------------------------- the mapping
@pytest.mark.parametrize(
    ("grid", "value", "row"),
    [
        ("individual_vs_parallel", 0.9955, ("mnist", "resnet18+googlenet", "finetune")),
        ("individual_vs_parallel", 0.9517, ("cifar10", "googlenet", "finetune")),
        ("individual_vs_parallel_as_published", 0.9955, ("mnist", "resnet18+googlenet", "finetune")),
        ("individual_vs_parallel_as_published", 0.9517, ("cifar10", "googlenet", "finetune")),
        ("scratch_cifar10", 0.8206, ("cifar10", "cifar_densenet121", "scratch")),
        ("resnet50_one_epoch", 0.9956, ("mnist", "resnet50", "finetune")),
        ("scratch_cifar10_as_published", 0.8206, ("cifar10", "cifar_densenet121", "scratch")),
        ("small_resnet18", 0.9149, ("cifar10", "resnet10_wide", "scratch", "epochs_51")),
        ("small_resnet18_as_published", 0.9149, ("cifar10", "resnet10_wide", "scratch")),
    ],
)
def test_each_headline_stands_in_exactly_one_row_of_its_grid(grid: str, value: float, row: tuple[str, ...]) -> None:
    standing = [f for f in figures() if f.stands and f.grid == grid and f.value == value]
    assert [(f.dataset, f.model, f.phase, f.variant) for f in standing] == [(*row, "")[:4]]


@pytest.mark.parametrize("model", ["resnet18_5m", "baseline_cnn"])
def test_networks_no_study_published_have_no_figure(model: str) -> None:
    assert [f for f in figures() if f.model == model] == []


def test_another_dataset_name_has_no_figure() -> None:
    row = {"grid": "scratch_cifar10", "model": "lenet5", "phase": "scratch", "variant": ""}
    assert find("scratch_cifar10", "cifar10", "lenet5", "scratch").value == 0.6481
    assert lookup(dataset="cifar10-jpeg", **row) is None


def test_at_most_one_figure_stands_per_row_and_it_is_a_test_accuracy() -> None:
    standing = [f for f in figures() if f.stands]
    keys = [(f.grid, f.dataset, f.model, f.phase, f.variant) for f in standing]
    assert len(keys) == len(set(keys)) == 83
    assert {f.metric for f in standing} == {"test_accuracy"}


def test_the_replay_shows_the_best_epoch_on_test_of_singles_and_the_fair_grid_their_last() -> None:
    replayed = find("individual_vs_parallel_as_published", "mnist", "resnet18", "finetune")
    fair = find("individual_vs_parallel", "mnist", "resnet18", "finetune")
    assert (replayed.value, replayed.rule, replayed.epoch, replayed.epochs) == (0.9949, "best_on_test", 7, 10)
    assert (fair.value, fair.rule, fair.epoch, fair.epochs) == (0.9926, "last", 10, 10)


@pytest.mark.parametrize("grid", ["individual_vs_parallel", "individual_vs_parallel_as_published"])
def test_every_single_of_individual_vs_parallel_has_both_rules_and_its_seconds(grid: str) -> None:
    found = {(f.dataset, f.model, f.phase, f.rule, f.metric) for f in figures() if f.grid == grid}
    for dataset in ("mnist", "cifar10"):
        for model in ("vgg16", "resnet18", "googlenet"):
            for phase in ("probe", "finetune"):
                assert {(dataset, model, phase, rule, "test_accuracy") for rule in ("last", "best_on_test")} <= found
                assert (dataset, model, phase, "last", "wall_s") in found


def test_pairs_have_their_last_epoch_only_and_name_the_tap_of_vgg16() -> None:
    replayed = find("individual_vs_parallel_as_published", "cifar10", "resnet18+vgg16_gap", "finetune")
    fair = find("individual_vs_parallel", "cifar10", "resnet18+vgg16", "finetune")
    assert (replayed.value, replayed.differs, fair.value, fair.differs) == (0.9398, (), 0.9398, ("tap",))
    assert "global average pool" in fair.note
    assert {f.rule for f in figures() if "+" in f.model} == {"last"}
    assert lookup(grid=fair.grid, dataset="cifar10", model=fair.model, phase="probe", variant="") is None


def test_epochs_counted_from_zero_by_the_study_are_counted_from_one_here() -> None:
    epochs = {f.model: f.epoch for f in figures() if f.grid == "scratch_cifar10" and f.stands and not f.variant}
    assert epochs == {"lenet5": 21, "cifar_resnet18": 11, "cifar_resnext29_32x4d": 37, "cifar_densenet121": 14}
    assert find("scratch_cifar10_epochs", "cifar10", "lenet5", "scratch", "epochs_95").epochs == 96
    headline = find("small_resnet18", "cifar10", "resnet10_wide", "scratch", "epochs_51")
    assert (headline.epoch, headline.epochs) == (45, 51)


def test_a_misquoted_imagenet_error_stands_beside_its_correction() -> None:
    errors = {f.rule: f.value for f in figures() if f.metric == "top5_error"}
    assert errors == {"as_stated": 0.0357, "corrected": 0.07138}


def test_every_value_was_read_from_the_row_it_names() -> None:
    """Against the whole source file where TRANSFERGRID_PUBLISHED names it, else against the rows kept beside this."""
    with open(os.environ.get("TRANSFERGRID_PUBLISHED", FIXTURE), encoding="utf-8", newline="") as file:
        source = {tuple(row[name] for name in SOURCE_KEY): row["value"] for row in csv.DictReader(file)}
    traced = [f for f in figures() if f.source_row]
    for figure in traced:
        assert float(source[tuple(figure.source_row.split(" | "))]) == figure.value, figure
    # The two without a row stand in a study's summary only, and say so.
    untraced = [f for f in figures() if not f.source_row]
    assert [f.variant for f in untraced] == ["epochs_31"] * 4
    assert all("summary" in f.note for f in untraced)
    assert len(traced) == 164


def test_every_figure_names_a_source() -> None:
    assert all(f.source for f in figures())


def test_the_stored_settings_are_those_of_the_grid_files_that_replay_the_studies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert stored.FILE.read_text() == stored.text_of(stored.resolved()), (
        "run python -m transfergrid.report.studies.settings"
    )


def test_every_row_of_the_replays_but_the_one_without_stated_settings_has_a_figure() -> None:
    used = [f.study for f in figures()]
    unused = [row for row in json.loads(stored.FILE.read_text()) if not any(stored.study(row) is u for u in used)]
    assert unused == ["small_resnet18_as_published/cifar10/resnet10_wide/scratch/epochs_31"]


# ------------------------------------------------------------------------------------------------------ what differs
def as_published(model: str, phase: str, dataset: str) -> RunSpec:
    """A run of conf/grid/individual_vs_parallel_as_published.yaml, its settings laid over the fair ones."""
    grid: Any = OmegaConf.to_container(OmegaConf.load(CONF / "individual_vs_parallel_as_published.yaml"))
    settings = dict(grid["phase"][phase])
    for rule in grid["grid"]["rules"]:
        applies = all(
            value in rule.get(name, [value])
            for name, value in (("models", model), ("phases", phase), ("datasets", dataset))
        )
        if applies:
            assert not rule.get("skip"), "the grid leaves this configuration out"
            prefix = f"phase.{phase}."
            settings |= {k.removeprefix(prefix): v for k, v in rule["set"].items() if k.startswith(prefix)}
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    options = {"crop_px": grid["dataset"]["image_size_px"], "weights": grid["weights"]}
    return cases.spec(phase, model, dataset=dataset, protocol=grid["protocol"], backbone_options=options, **settings)


AS_PUBLISHED = sorted(
    (f.dataset, f.model, f.phase) for f in figures() if f.stands and f.grid == "individual_vs_parallel_as_published"
)


@pytest.mark.parametrize(("dataset", "model", "phase"), AS_PUBLISHED)
def test_only_the_border_of_a_shift_differs_in_the_grid_that_replays_the_study(
    dataset: str, model: str, phase: str
) -> None:
    figure = find("individual_vs_parallel_as_published", dataset, model, phase)
    shifted = dataset == "cifar10" and "+" not in model
    assert differs(figure, as_published(model, phase, dataset)) == ((BORDER,) if shifted else ())


def test_the_replay_covers_every_row_the_study_has() -> None:
    assert len(AS_PUBLISHED) == 18


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"epochs": 11}, "epochs"),
        ({"batch_size": 64}, "batch_size"),
        ({"optimizer": "adamw"}, "optimizer"),
        ({"lr": 1e-4}, "lr"),
        ({"head_lr": 1e-2}, "head_lr"),
        ({"schedule": "cosine"}, "schedule"),
        ({"label_smoothing": 0.1}, "label_smoothing"),
        ({"cutout_px": 8}, "augmentation"),
        ({"augment_at": "native"}, "augmentation"),
        ({"bn": "eval"}, "bn"),
        ({"selection": "last"}, "selection"),
        ({"head": "random"}, "head"),
        ({"precision": "bf16"}, "precision"),
        ({"frozen_groups": ("stem",)}, "frozen_groups"),
        ({"drop_last": True}, "drop_last"),
        ({"lookahead": True}, "lookahead"),
        ({"ema_decay": 0.999}, "ema_decay"),
        ({"micro_batch": 16}, "micro_batch"),
    ],
)
def test_one_changed_setting_is_named_alone(change: dict[str, Any], named: str) -> None:
    figure = find("individual_vs_parallel_as_published", "cifar10", "resnet18", "finetune")
    same = as_published("resnet18", "finetune", "cifar10")
    settings = {f.name: getattr(same.settings, f.name) for f in fields(same.settings)} | change
    run = cases.spec("finetune", "resnet18", dataset="cifar10", protocol="published", **settings)
    assert differs(figure, run) == (named, BORDER)


@pytest.mark.parametrize(
    "change",
    [
        {"momentum": 0.0},
        {"nesterov": True},
        {"lookahead_k": 9},
        {"step_epochs": (3,)},
        {"final_lr_fraction": 0.5},
        {"decay_norm_and_bias": True},
        {"micro_batch": 32},
    ],
)
def test_a_setting_without_effect_is_not_named(change: dict[str, Any]) -> None:
    figure = find("individual_vs_parallel_as_published", "cifar10", "resnet18", "finetune")
    same = as_published("resnet18", "finetune", "cifar10")
    settings = {f.name: getattr(same.settings, f.name) for f in fields(same.settings)} | change
    run = cases.spec("finetune", "resnet18", dataset="cifar10", protocol="published", **settings)
    assert differs(figure, run) == (BORDER,)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"backbone_options": {"crop_px": 128}}, ("image_size_px",)),
        ({"backbone_options": {"weights": "random", "identity": "random:v1:0"}}, ("weights",)),
        ({"backbone_options": {"weights": "mine.pth", "identity": "file:ab"}}, ("weights file",)),
        ({"max_images": 100}, ("max_images",)),
        ({"protocol": "fair"}, ("protocol",)),
        ({"bn_statistics": "target"}, ("bn_statistics",)),
    ],
)
def test_input_weights_and_protocol_are_named(options: dict[str, Any], named: tuple[str, ...]) -> None:
    figure = find("individual_vs_parallel_as_published", "mnist", "resnet18", "probe")
    same = as_published("resnet18", "probe", "mnist")
    settings = {f.name: getattr(same.settings, f.name) for f in fields(same.settings)}
    extract = ExtractSettings(bn_statistics=options.pop("bn_statistics", "imagenet"))
    run = cases.spec("probe", "resnet18", **{"protocol": "published"} | options, **settings)
    assert differs(figure, replace(run, extract=extract)) == named


@pytest.mark.parametrize(
    ("changes", "named"), [({}, ()), ({"epochs": 1}, ("its probe",)), ({"lrs": (0.1,)}, ("its probe",))]
)
def test_a_fine_tuning_from_another_probe_than_the_studys_says_so(
    changes: dict[str, Any], named: tuple[str, ...]
) -> None:
    figure = find("individual_vs_parallel_as_published", "mnist", "resnet18", "finetune")
    probe = as_published("resnet18", "probe", "mnist")
    probe = replace(probe, settings=replace(probe.settings, **changes))
    assert differs(figure, as_published("resnet18", "finetune", "mnist"), probe=probe) == named


def test_the_fair_grid_names_what_it_changed_of_a_pair() -> None:
    figure = find("individual_vs_parallel", "mnist", "vgg16+googlenet", "finetune")
    named = differs(figure, cases.spec("finetune", "vgg16+googlenet"))
    assert named[:2] == ("tap", "protocol")
    assert {"batch_size", "optimizer", "lr", "head", "schedule", "label_smoothing", "augmentation"} <= set(named)
    assert not {"epochs", "selection", "momentum", "decay_norm_and_bias"} & set(named)


def test_what_no_option_can_repeat_is_always_named() -> None:
    densenet = find("scratch_cifar10", "cifar10", "cifar_densenet121", "scratch")
    named = differs(densenet, cases.spec("scratch", "cifar_densenet121", dataset="cifar10", protocol="published"))
    assert "selection" in named and "interpolation of the rotation" in named and "test_bn" in named
    resnet50 = find("resnet50_one_epoch", "mnist", "resnet50", "finetune")
    assert differs(resnet50, cases.spec("finetune", "resnet50", epochs=1)) == ("protocol", "settings not stated")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sampling": "replacement"}, True),
        ({"sampling": "shuffle"}, False),
        ({"sampling": "replacement", "flip": False, "shift_px": 0}, False),
    ],
)
def test_an_image_drawn_twice_in_an_epoch_is_augmented_alike_which_is_named(
    changes: dict[str, Any], named: bool
) -> None:
    figure = find("scratch_cifar10_as_published", "cifar10", "cifar_densenet121", "scratch")
    run = cases.spec("scratch", "cifar_densenet121", dataset="cifar10", protocol="published", **changes)
    found = differs(figure, run)
    assert ("augmentation of an image drawn twice in an epoch" in found) == named
    assert ("sampling" in found) == (changes["sampling"] == "shuffle")


def test_only_a_weights_file_leaves_a_delta_meaningful() -> None:
    assert published.NO_MATTER == {"weights file"}


def test_a_solved_head_differs_from_the_studys_in_its_solver_and_not_in_epochs_it_does_not_have() -> None:
    figure = find("individual_vs_parallel", "mnist", "resnet18", "probe")
    trained = differs(figure, cases.spec("probe", "resnet18", seed=0, epochs=7))
    solved = differs(figure, cases.spec("probe", "resnet18", seed=None, solver="lbfgs", epochs=7))
    assert "solver" in solved and "epochs" not in solved and "optimizer" not in solved
    assert "solver" not in trained and "epochs" in trained
