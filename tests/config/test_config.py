"""The command line and conf/ become specs: grids, rules, variants, precedence, data sets, weights."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import pytest
import tiny_data
from omegaconf import OmegaConf

from transfergrid.config import Request, load_grid, load_run
from transfergrid.config.compose import compose_config
from transfergrid.config.folders import VARIABLE, choices, conf_dir
from transfergrid.errors import ConfigError
from transfergrid.networks import architectures
from transfergrid.networks.backbones import names as backbone_names
from transfergrid.networks.backbones import timm_names
from transfergrid.specs import (
    EvaluateSettings,
    FinetuneSettings,
    PreprocessSpec,
    ProbeSettings,
    RunSpec,
    ScratchSettings,
)

SCRATCH = ["grid.models=[baseline_cnn]", "grid.phases=[scratch]", "grid.seeds=[0]", "grid.variants={}", "dry_run=true"]
PROBE = ["grid.models=[resnet18]", "grid.phases=[probe]", "grid.seeds=[0]", "weights=random", "dry_run=true"]
# The quickstart's own backbones are not needed here: its rules and variants hold for any.
FINETUNE = ["grid.models=[resnet18]", "grid.phases=[probe,finetune]", "grid.seeds=[0]", "weights=random"]


def runs_of(request: Request) -> list[RunSpec]:
    return [c.run for c in request.configurations]


def only_run(*arguments: str) -> RunSpec:
    (run,) = runs_of(load_grid(arguments))
    return run


def finetune_settings(run: RunSpec) -> FinetuneSettings:
    assert isinstance(run.settings, FinetuneSettings)
    return run.settings


# -------------------------------------------------------------------------------------------------------------- files
@pytest.mark.parametrize("group", ["dataset", "phase", "cluster", "tracking", "grid"])
def test_every_file_of_conf_composes(group: str) -> None:
    assert len(choices(group)) >= 3
    for name in choices(group):
        config = compose_config([f"{group}={name}"])
        node = config[group]
        assert name == str(node.get("name", node.get("mode"))).removesuffix("-{dataset}") or name == "image_folder"


def test_what_one_command_line_sets_is_not_in_the_next_of_the_same_process() -> None:
    before = compose_config(["grid=quickstart"])
    changed = compose_config(["grid=quickstart", "grid.seeds=[7]", "grid.variants.mine={seed_count: 2}"])
    assert list(changed.grid.seeds) == [7] and "mine" in changed.grid.variants
    assert compose_config(["grid=quickstart"]) == before != changed


def test_a_grid_file_is_named_as_it_names_itself() -> None:
    for name in choices("grid"):
        assert compose_config([f"grid={name}"]).grid.name.removesuffix("-{dataset}") == name


def test_the_grid_file_of_the_documentation_is_a_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "grid").mkdir()
    page = (conf_dir().parent / "docs" / "adding.md").read_text(encoding="utf-8")
    lines = page.split("## A grid\n")[1].splitlines()
    block = "\n".join(line.removeprefix("    ") for line in lines if line.startswith("    "))
    (tmp_path / "grid" / "my_grid.yaml").write_text(f"# @package _global_\n{block}\n")
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    request = load_grid(["grid=my_grid", "weights=random", "dry_run=true"])
    rows = Counter((c.run.phase, c.run.dataset.name, c.variant) for c in request.configurations)
    # `weights: random` changes nothing where all weights are random.
    assert rows == {
        ("probe", "mnist", ""): 3,  # solved: one run for all seeds
        ("probe", "cifar10", ""): 3,
        ("finetune", "cifar10", ""): 9,
        ("finetune", "cifar10", "batch_64"): 9,
    }
    rates = {r.model: finetune_settings(r).lr for r in runs_of(request) if r.phase == "finetune"}
    assert rates == {"resnet18": 0.01, "googlenet": 0.005, "resnet18+googlenet": 0.01}


# -------------------------------------------------------------------------------------------------------------- grids
def test_quickstart_probes_finetunes_and_trains_from_scratch_on_digits() -> None:
    models = "grid.models=[resnet18,googlenet,resnet18+googlenet,baseline_cnn]"
    request = load_grid([models, "weights=random", "dry_run=true"])
    assert request.grid == "quickstart" and request.replaces_grid and request.dry_run
    assert Counter((c.run.phase, c.variant) for c in request.configurations) == {
        ("probe", ""): 3,  # solved: one run for all seeds
        ("finetune", ""): 9,
        ("scratch", ""): 3,
    }
    assert {r.seed for r in runs_of(request) if r.phase != "probe"} == {0, 1, 2}
    assert {r.dataset.name for r in runs_of(request)} == {"digits"}


def test_quickstart_enlarges_digits_to_its_backbones_own_size_and_leaves_them_to_the_small_cnn() -> None:
    request = load_grid(["grid.models=[tinynet_mnist,baseline_cnn]", "grid.seeds=[0]", "dry_run=true"])
    by_phase = {r.phase: r for r in runs_of(request)}
    assert by_phase["probe"].backbones[0].preprocess.crop_px == 32
    assert by_phase["probe"].backbones[0].preprocess.mode == "direct"
    scratch = by_phase["scratch"].settings
    assert isinstance(scratch, ScratchSettings) and scratch.image_size_px == 8


def test_individual_vs_parallel_asks_for_120_rows_and_six_extractions_per_side() -> None:
    request = load_grid(["grid=individual_vs_parallel", "dry_run=true"])
    assert len(request.configurations) == 6 * 2 * 2 * 5
    extractions = {e.run_id for r in runs_of(request) for e in r.extractions}
    assert len(extractions) == 3 * 2
    assert {r.protocol for r in runs_of(request)} == {"fair"}
    assert {r.weights_label for r in runs_of(request)} == {"IMAGENET1K_V1"}


def test_individual_vs_parallel_narrowed_on_the_command_line_has_12_rows() -> None:
    narrowed = ["grid.datasets=[mnist]", "grid.seeds=[0]", "weights=random", "dry_run=true"]
    request = load_grid(["grid=individual_vs_parallel", *narrowed])
    assert Counter(r.phase for r in runs_of(request)) == {"probe": 6, "finetune": 6}
    pair = next(r for r in runs_of(request) if r.model == "resnet18+googlenet" and r.phase == "probe")
    single = next(r for r in runs_of(request) if r.model == "googlenet" and r.phase == "probe")
    assert pair.extractions[1] == single.extractions[0]
    assert len({e.run_id for r in runs_of(request) for e in r.extractions}) == 3


def test_the_study_as_published_trains_singles_on_images_and_pairs_without_a_probe() -> None:
    request = load_grid(["grid=individual_vs_parallel_as_published", "dry_run=true"])
    rows = runs_of(request)
    assert {r.protocol for r in rows} == {"published"}
    assert [r.model for r in rows if r.phase == "probe"] == ["vgg16", "resnet18", "googlenet"] * 2
    assert not any(r.extractions for r in rows)
    single = next(r for r in rows if r.model == "vgg16" and r.phase == "finetune" and r.dataset.name == "cifar10")
    pair = next(r for r in rows if r.model == "resnet18+googlenet" and r.phase == "finetune")
    one, two = finetune_settings(single), finetune_settings(pair)
    assert (one.head, one.batch_size, one.lr, one.selection, one.shift_px) == ("probe", 32, 1e-5, "best_on_test", 4)
    assert one.frozen_groups == ("fc6", "fc7")
    assert (two.head, two.batch_size, two.lr, two.selection, two.shift_px) == ("random", 64, 1e-4, "last", 0)
    assert pair.needs == () and len(single.needs) == 1
    mnist = next(r for r in rows if r.model == "vgg16" and r.phase == "finetune" and r.dataset.name == "mnist")
    assert finetune_settings(mnist).flip is False


def test_the_published_protocol_belongs_to_a_study() -> None:
    with pytest.raises(ConfigError, match="published study"):
        load_grid(["protocol=published", *SCRATCH])


def test_a_finetune_is_made_from_the_probe_of_its_seed_and_a_random_head_from_nothing() -> None:
    request = load_grid([*FINETUNE, "dry_run=true"])
    probe, finetune = runs_of(request)
    assert finetune.needs == (probe.run_id,)
    assert list(request.runs) == [probe.run_id, finetune.run_id]
    alone_in_grid = ["grid.models=[resnet18]", "grid.phases=[finetune]", "grid.seeds=[0]", "weights=random"]
    random_head = load_grid([*alone_in_grid, "phase.finetune.head=random"])
    (alone,) = runs_of(random_head)
    assert alone.needs == () and list(random_head.runs) == [alone.run_id]


def test_a_finetune_alone_brings_the_probe_it_needs_which_is_no_row() -> None:
    request = load_grid(["grid.models=[resnet18]", "grid.phases=[finetune]", "grid.seeds=[4]", "weights=random"])
    (row,) = request.configurations
    assert [r.phase for r in request.runs.values()] == ["probe", "finetune"]
    assert row.run.seed == 4 and next(iter(request.runs.values())).seed is None


# ----------------------------------------------------------------------------------------- variants, rules, precedence
def test_a_variant_adds_rows_for_the_phases_it_changes_and_is_dropped_where_it_changes_nothing() -> None:
    variant = "grid.variants={slow:{phase.finetune.lr:0.001}}"
    request = load_grid([*FINETUNE, variant])
    assert [(c.variant, c.run.phase) for c in request.configurations] == [
        ("", "probe"),
        ("", "finetune"),
        ("slow", "finetune"),
    ]
    plain, slow = (c.run for c in request.configurations if c.run.phase == "finetune")
    assert (finetune_settings(plain).lr, finetune_settings(slow).lr) == (0.01, 0.001)
    assert plain.needs == slow.needs


def test_a_variant_of_the_probe_gives_its_finetune_another_parent() -> None:
    request = load_grid([*FINETUNE, "grid.variants={long:{phase.probe.cs:[1]}}"])
    by_name = {(c.variant, c.run.phase): c.run for c in request.configurations}
    assert len(by_name) == 4
    assert by_name["long", "finetune"].needs == (by_name["long", "probe"].run_id,)
    assert by_name["long", "finetune"].settings == by_name["", "finetune"].settings


def test_variants_given_replace_the_grid_files_and_a_dotted_one_is_added() -> None:
    narrow = ["grid.models=[resnet18]", "grid.phases=[probe]", "grid.seeds=[0]", "dry_run=true"]
    replaced = load_grid([*narrow, "grid.variants={long:{phase.probe.cs:[1]}}"])
    assert [c.variant for c in replaced.configurations] == ["", "long"]
    added = load_grid([*narrow, "grid.variants.long={phase:{probe:{cs:[1]}}}"])
    assert [c.variant for c in added.configurations] == ["", "random_weights", "long"]
    assert added.configurations[1].run.weights_label == "random"
    assert added.configurations[2].run == replaced.configurations[1].run
    assert [c.variant for c in load_grid([*narrow, "grid.variants={}"]).configurations] == [""]


def test_a_variant_may_be_limited_to_models_and_phases() -> None:
    variants = "grid.variants={big:{models:[googlenet],phases:[probe],phase.probe.cs:[1]}}"
    request = load_grid(["grid.models=[resnet18,googlenet]", *FINETUNE[1:], variants])
    assert [(c.run.model, c.run.phase) for c in request.configurations if c.variant] == [("googlenet", "probe")]


def test_the_command_line_wins_over_rules_and_a_variant_over_the_command_line() -> None:
    rules = "grid.rules=[{phases:[scratch],set:{phase.scratch.epochs:7,phase.scratch.lr:0.2}}]"
    by_rule = only_run(*SCRATCH, rules).settings
    assert isinstance(by_rule, ScratchSettings) and (by_rule.epochs, by_rule.lr) == (7, 0.2)
    typed = only_run(*SCRATCH, rules, "phase.scratch.epochs=3").settings
    assert isinstance(typed, ScratchSettings) and (typed.epochs, typed.lr) == (3, 0.2)
    arguments = [a for a in SCRATCH if "variants" not in a]
    variant = "grid.variants={longer:{phase.scratch.epochs:11}}"
    both = load_grid([*arguments, rules, "phase.scratch.epochs=3", variant])
    assert [(c.variant, getattr(c.run.settings, "epochs", 0)) for c in both.configurations] == [("", 3), ("longer", 11)]


def test_the_grid_file_wins_over_defaults_and_the_command_line_over_the_grid_file() -> None:
    from_grid = only_run(*SCRATCH).settings
    typed = only_run(*SCRATCH, "phase.scratch.batch_size=48").settings
    by_hand = runs_of(load_run(["model=baseline_cnn", "phase=scratch"]))[0].settings
    sizes = [s.batch_size for s in (by_hand, from_grid, typed) if isinstance(s, ScratchSettings)]
    quickstart = OmegaConf.load(conf_dir() / "grid" / "quickstart.yaml")
    assert sizes == [128, quickstart.phase.scratch.batch_size, 48]
    assert len(set(sizes)) == 3


def test_a_rule_that_skips_takes_rows_out() -> None:
    rule = "grid.rules=[{models:[googlenet],phases:[finetune],skip:true}]"
    request = load_grid(["grid.models=[resnet18,googlenet]", *FINETUNE[1:], rule])
    assert [(r.model, r.phase) for r in runs_of(request)] == [
        ("resnet18", "probe"),
        ("resnet18", "finetune"),
        ("googlenet", "probe"),
    ]


def test_architectures_take_scratch_backbones_probe_and_finetune() -> None:
    request = load_grid(["grid.models=[resnet18,baseline_cnn]", "grid.seeds=[0]", "weights=random"])
    assert {(r.model, r.phase) for r in runs_of(request)} == {
        ("resnet18", "probe"),
        ("resnet18", "finetune"),
        ("baseline_cnn", "scratch"),
    }
    assert not set(architectures.names()) & set(backbone_names())


# ------------------------------------------------------------------------------------------------------------ one run
def test_runs_by_hand_on_fewer_images_are_rows_of_their_own() -> None:
    few = ["model=baseline_cnn", "phase=scratch", "dataset=digits"]
    for setting, variant in (("shots=5", "dataset.shots-5"), ("train_fraction=0.1", "dataset.train_fraction-0.1")):
        (found,) = load_run([*few, f"dataset.{setting}"]).configurations
        assert found.variant == variant
    (renamed,) = load_run([*few, "dataset.name=mine"]).configurations
    assert renamed.variant == ""


def test_a_run_by_hand_joins_the_grid_adhoc_and_what_it_overrides_is_its_variant() -> None:
    sgd = ["phase.probe.solver=sgd", "phase.probe.epochs=3"]
    request = load_run(["model=resnet18", "phase=probe", "weights=random", *sgd, "seed=5"])
    (row,) = request.configurations
    assert (request.grid, row.run.seed, request.replaces_grid) == ("adhoc", 5, False)
    assert row.variant == "probe.epochs-3-probe.solver-sgd"
    assert isinstance(row.run.settings, ProbeSettings) and row.run.settings.epochs == 3
    assert load_run(["model=resnet18", "weights=random", "grid_name=mine"]).grid == "mine"


def test_one_run_is_the_same_run_as_in_a_grid() -> None:
    by_hand = runs_of(load_run(["model=baseline_cnn", "phase=scratch"]))[0]
    in_grid = only_run("grid=individual_vs_parallel", "grid.datasets=[digits]", *SCRATCH)
    assert by_hand.run_id == in_grid.run_id


def test_evaluation_of_a_checkpoint_is_named_by_the_files_content(tmp_path: Path) -> None:
    file = tmp_path / "mine.pt"
    file.write_bytes(b"weights")
    request = load_run(["model=baseline_cnn", "phase=evaluate", f"phase.evaluate.checkpoint={file}"])
    settings = runs_of(request)[0].settings
    assert isinstance(settings, EvaluateSettings)
    assert settings.source == f"file:{hashlib.sha256(b'weights').hexdigest()}"
    assert settings.split == "test" and settings.preprocess is not None and settings.preprocess.crop_px == 8
    assert request.runtime.weights_files == {settings.source: str(file)}


# ---------------------------------------------------------------------------------------------------------- data sets
def test_an_image_folder_is_named_after_its_folder_unless_named(tmp_path: Path) -> None:
    folder = tiny_data.write_folder(tmp_path / "Pets at Home")
    arguments = ["grid.models=[baseline_cnn]", "grid.phases=[scratch]", "grid.seeds=[0]", "dataset=image_folder"]
    request = load_grid([*arguments, f"dataset.folder={folder}", "dry_run=true"])
    (run,) = runs_of(request)
    assert (run.dataset.name, run.dataset.kind, run.dataset.num_classes) == ("Pets at Home", "image_folder", 2)
    assert run.run_id.startswith("pets-at-home-baseline_cnn-scratch-s0-")
    assert request.runtime.data_folders == {"Pets at Home": str(folder)}
    named = only_run(*arguments, f"dataset.folder={folder}", "dataset.name=pets", "dry_run=true")
    assert named.dataset.name == "pets" and named.dataset.fingerprint == run.dataset.fingerprint


def test_a_folder_cannot_take_a_published_data_sets_name(tmp_path: Path) -> None:
    folder = tiny_data.write_folder(tmp_path / "cifar10")
    with pytest.raises(ConfigError, match="published data set's name; give the folder another name, as cifar10-mine"):
        load_grid([*SCRATCH, "dataset=image_folder", f"dataset.folder={folder}"])


def test_images_of_mixed_sizes_need_a_size_to_train_from_scratch(tmp_path: Path) -> None:
    folder = tiny_data.write_folder(tmp_path / "pets", sizes_px=(8, 12, 20))
    with pytest.raises(ConfigError, match=r"mixed sizes; training from scratch needs dataset\.image_size_px=N"):
        load_grid([*SCRATCH, "dataset=image_folder", f"dataset.folder={folder}"])
    run = only_run(*SCRATCH, "dataset=image_folder", f"dataset.folder={folder}", "dataset.image_size_px=16")
    assert isinstance(run.settings, ScratchSettings) and run.settings.image_size_px == 16


def test_images_smaller_than_the_crop_go_straight_to_it_larger_ones_by_the_weights_own_transform(
    tmp_path: Path,
) -> None:
    def preprocess(side_px: int) -> PreprocessSpec:
        folder = tiny_data.write_folder(tmp_path / f"of{side_px}", sizes_px=(side_px,))
        run = only_run(*PROBE, "dataset=image_folder", f"dataset.folder={folder}", "grid.rules=[]", "grid.variants={}")
        return run.backbones[0].preprocess

    assert (preprocess(32).mode, preprocess(32).crop_px) == ("direct", 224)
    assert (preprocess(240).mode, preprocess(240).resize_px, preprocess(240).crop_px) == ("recipe", 256, 224)


def test_digits_are_never_mirrored_and_photographs_are() -> None:
    digits = finetune_settings(runs_of(load_run(["model=resnet18", "phase=finetune", "weights=random"]))[0])
    photographs = runs_of(load_run(["model=resnet18", "phase=finetune", "dataset=cifar10", "weights=random"]))[0]
    assert (digits.flip, finetune_settings(photographs).flip) == (False, True)


# ------------------------------------------------------------------------------------------------------------ weights
def test_weights_are_a_pinned_tag_random_or_a_file_known_by_its_content(tmp_path: Path) -> None:
    file = tmp_path / "mine.pth"
    file.write_bytes(b"state")
    content = f"file:{hashlib.sha256(b'state').hexdigest()}"
    run = "model=resnet18"
    by_default = runs_of(load_run([run]))[0].backbones[0].weights
    assert (by_default.label, by_default.identity) == ("IMAGENET1K_V1", "tag:resnet18-f37072fd.pth")
    drawn = runs_of(load_run([run, "weights=random", "weights_seed=7"]))[0].backbones[0].weights
    assert (drawn.label, drawn.identity) == ("random", "random:v1:7")
    request = load_run([run, f"weights={file}"])
    given = runs_of(request)[0].backbones[0].weights
    assert (given.label, given.identity) == (f"file-{content[5:17]}", content)
    assert request.runtime.weights_files == {content: str(file)}


def test_one_weights_file_serves_one_backbone_and_each_backbone_may_have_its_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.pth"
    file.write_bytes(b"state")
    with pytest.raises(ConfigError, match="one file for 2 backbones"):
        load_run(["model=resnet18+googlenet", f"weights={file}"])
    run = runs_of(load_run(["model=resnet18+googlenet", f"weights_files.googlenet={file}", "weights=random"]))[0]
    assert [b.weights.label for b in run.backbones] == ["random", f"file-{run.backbones[1].weights.identity[5:17]}"]
    assert run.weights_label == f"random+file-{run.backbones[1].weights.identity[5:17]}"
    same = runs_of(load_run(["model=googlenet", f"weights_files={{googlenet:{file}}}"]))[0]
    assert same.backbones[0] == run.backbones[1]


def test_a_weights_file_is_quoted_where_its_name_holds_an_equals_sign(tmp_path: Path) -> None:
    file = tmp_path / "lr=0.1,best.pth"
    file.write_bytes(b"state")
    run = runs_of(load_run(["model=resnet18", f'weights="{file}"']))[0]
    assert run.backbones[0].weights.label.startswith("file-")


@pytest.mark.slow
def test_the_names_of_timms_networks_are_those_timm_lists() -> None:
    import timm

    assert timm_names() == set(timm.list_models())


# --------------------------------------------------------------------------------------------------------------- help
@pytest.mark.parametrize(("batch_size", "lr"), [(128, 0.1), (32, 0.025), (512, 0.4)])
def test_scratch_learns_at_a_tenth_per_batch_of_128_unless_told_otherwise(batch_size: int, lr: float) -> None:
    arguments = ["model=baseline_cnn", "phase=scratch", f"phase.scratch.batch_size={batch_size}"]
    settings = runs_of(load_run(arguments))[0].settings
    assert isinstance(settings, ScratchSettings) and settings.lr == pytest.approx(lr)
    told = runs_of(load_run([*arguments, "phase.scratch.lr=0.3"]))[0].settings
    assert isinstance(told, ScratchSettings) and told.lr == 0.3


@pytest.mark.slow
def test_a_dry_run_with_a_network_of_timm_writes_nothing(tmp_path: Path) -> None:
    places = [f"cache.dir={tmp_path / 'cache'}", f"store.dir={tmp_path / 'store'}"]
    run = runs_of(load_run(["model=timm/test_resnet", "weights=random", "dry_run=true", *places]))[0]
    assert run.backbones[0].name == "timm/test_resnet"
    assert list(tmp_path.iterdir()) == []


def test_parts_of_joins_that_do_not_stand_alone_are_named_in_the_plan_or_added(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transfergrid.cli.launch import launch

    asked = [
        "grid=compare",
        "dataset=digits",
        "grid.models=[tinynet_mnist+tinynet_cifar,tinynet_mnist]",
        "dry_run=true",
    ]
    asked += [f"store.dir={tmp_path / 's'}", f"cache.dir={tmp_path / 'c'}", "cluster=local"]
    assert launch(asked) == 0
    line = "add tinynet_cifar to grid.models to test whether tinynet_mnist+tinynet_cifar beats its best part"
    assert capsys.readouterr().out.count(line) == 1
    request = load_grid([*asked, "grid.complete_pairs=true"])
    models = list(dict.fromkeys(c.run.model for c in request.configurations))
    assert models == ["tinynet_cifar", "tinynet_mnist+tinynet_cifar", "tinynet_mnist"]
    assert launch([*asked, "grid.complete_pairs=true"]) == 0 and "best part" not in capsys.readouterr().out
