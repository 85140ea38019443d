from __future__ import annotations

import re
import shlex
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import report_cases as cases
from PIL import Image

from transfergrid.config import Request, load_grid, load_run
from transfergrid.config.compose import compose_config, parse_overrides
from transfergrid.config.spelling import hydra_value
from transfergrid.errors import ConfigError
from transfergrid.paths import StorePaths
from transfergrid.report.analysis.rerun import commands_of
from transfergrid.specs import DatasetSpec, EvaluateSettings, RunSpec, to_dict
from transfergrid.store import durable


def rows_of(*arguments: str, folder: Path) -> tuple[list[list[RunSpec]], StorePaths]:
    """The runs of each row of a grid, and a store in which each has been started."""
    store = StorePaths(folder / "results")
    request = load_grid([*arguments, f"store.dir={store.root}", f"cache.dir={folder / 'cache'}", "cluster=local"])
    for run in request.runs.values():
        durable.write_json(store.run(run.run_id).spec, to_dict(run))
    rows: dict[tuple[str, ...], list[RunSpec]] = {}
    for c in request.configurations:
        rows.setdefault((c.variant, c.run.model, c.run.phase, c.run.dataset.name), []).append(c.run)
    return list(rows.values()), store


def run_by(line: str, *more: str) -> Request:
    """What a command line asks for, read from the line as a shell would split it."""
    python, script, *arguments = shlex.split(line)
    assert (python, script) == ("python", "jobs/run_phase.py")
    return load_run([*arguments, *more])


@pytest.mark.parametrize(
    "arguments",
    [
        ("grid=quickstart", "phase.finetune.epochs=3", "grid.seeds=[0,4]"),
        ("grid=quickstart", "dataset.shots=5", "phase.finetune.l2_sp=0.1", "weights_seed=2", "grid.seeds=[1]"),
        (
            "grid=individual_vs_parallel_as_published",
            "grid.datasets=[cifar10]",
            "grid.models=[googlenet,resnet18+vgg16_gap]",
        ),
        ("grid=scratch_cifar10_as_published", "grid.models=[lenet5]"),
        (
            *("grid=compare", "dataset=cifar10", "grid.models=[resnet18]", "weights=random", "dataset.max_images=100"),
            *("dataset.image_size_px=96", "phase.extract.precision=bf16", "dataset.val_seed=4"),
        ),
        ("grid=compare", "dataset=mnist", "grid.models=[resnet18]", "dataset.small_pictures=recipe"),
        (
            "grid=compare",
            "dataset=mnist",
            "grid.models=[resnet18]",
            "phase.finetune.head=random",
            "grid.phases=[finetune]",
        ),
    ],
    ids=[
        "quickstart",
        "few images",
        "as published",
        "scratch as published",
        "other input",
        "small by recipe",
        "random head",
    ],
)
def test_a_rows_command_makes_the_very_same_runs(arguments: tuple[str, ...], tmp_path: Path) -> None:
    rows, store = rows_of(*arguments, folder=tmp_path)
    assert rows
    for specs in rows:
        commands = commands_of(specs, store)
        assert all(command.to_fill_in == () for command in commands)
        assert [run_by(command.line).configurations[0].run for command in commands] == specs


ODD = ("花", "Bilder_für_Klaus", "My Pictures (2024)", "x,y", "epoch=3-step=1000.ckpt", "it's [1]", 'a"b', "a\\", "\\'")


@pytest.mark.parametrize(
    "name", [*ODD, "~a", "a:b", "{a}", "null", "12", "a\tb", "résumé.pth", "a b ", "%d", "-", "1e3"]
)
def test_every_name_is_spelled_so_that_the_command_line_gives_it_back(name: str) -> None:
    assert parse_overrides([f"dataset.name={hydra_value(name)}"])[0].value() == name


@pytest.mark.parametrize("name", [name for name in ODD if name not in ("x,y", "it's [1]")])
def test_the_name_of_a_file_may_be_typed_as_it_is(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(b"weights")
    request = load_run(["model=resnet18", "phase=probe", "dataset=mnist", f"weights={file}"])
    assert list(request.runtime.weights_files.values()) == [str(file)]


def test_what_has_a_meaning_of_its_own_is_quoted_and_the_refusal_says_how() -> None:
    with pytest.raises(ConfigError, match=re.escape("or any of = , : ( ) [ ] { } > ~ ' \" as key='\"value\"'")):
        load_run(["model=resnet18", "phase=probe", "dataset=mnist", "weights=/a/x,y"])
    with pytest.raises(ConfigError, match="letters beyond a-z"):
        load_run(["model=resnet18", "phase=probe", "dataset=mnist", "notify.command=é"])


def test_a_file_for_a_backbone_of_timm_is_given_by_its_name(tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    file.write_bytes(b"weights")
    (override,) = parse_overrides([f"weights_files.timm/resnet18.a1_in1k={file}"])
    config = compose_config([f"weights_files.timm/resnet18.a1_in1k={file}", "weights_files.resnet18=b.pth"])
    assert override.key_or_group == "weights_files.timm/resnet18.a1_in1k" and override.value() == str(file)
    assert dict(config.weights_files) == {"timm/resnet18.a1_in1k": str(file), "resnet18": "b.pth"}


@pytest.mark.parametrize("small", ["whole", "recipe"])
@pytest.mark.parametrize("edge_px", [40, 300])
@pytest.mark.parametrize("model", ["resnet18", "resnet18+inception_v3"])
def test_runs_on_a_folder_of_pictures_of_mixed_sizes_are_made_again(
    model: str, edge_px: int, small: str, tmp_path: Path
) -> None:
    folder = tmp_path / "My Pictures (2024)"
    for place in ("train/a", "train/b", "test/a", "test/b"):
        (folder / place).mkdir(parents=True)
        for more in (0, 20):
            Image.new("RGB", (edge_px + more, edge_px)).save(folder / place / f"{more}.png")
    arguments = ("grid=compare", "dataset=image_folder", f"dataset.folder={folder}", f"grid.models=[{model}]")
    rows, store = rows_of(*arguments, f"dataset.small_pictures={small}", folder=tmp_path)
    for specs in rows:
        for spec, command in zip(specs, commands_of(specs, store), strict=True):
            typed = command.line.replace("=FOLDER", f"={shlex.quote(str(folder))}")
            again = run_by(typed, f"cache.dir={tmp_path / 'cache'}")
            assert again.configurations[0].run == spec
            assert again.runtime.data_folders == {spec.dataset.name: str(folder)}


def test_a_command_is_the_runs_id_and_the_store_where_that_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, seed_1 = cases.spec("probe", "resnet18"), cases.spec("probe", "resnet18", seed=1)
    monkeypatch.chdir(tmp_path)
    lines = [c.line for c in commands_of([spec, seed_1], StorePaths(Path("results")))]
    assert lines == [f"python jobs/run_phase.py again={s.run_id}" for s in (spec, seed_1)]
    (command,) = commands_of([spec], StorePaths(tmp_path / "other"))
    assert command.line == f"python jobs/run_phase.py again={spec.run_id} store.dir={tmp_path}/other"


def test_a_run_that_was_read_from_wandb_is_carried_out_in_the_users_own_store(tmp_path: Path) -> None:
    spec, pulled = cases.spec("probe", "resnet18"), StorePaths(tmp_path / "cache/wandb/me/mine")
    durable.write_json(pulled.run(spec.run_id).pulled, {})
    (command,) = commands_of([spec], pulled)
    assert command.line == f"python jobs/run_phase.py again={pulled.run(spec.run_id).root}"


def test_files_and_folders_that_no_record_knows_are_for_the_reader_to_fill_in(tmp_path: Path) -> None:
    spec = cases.spec("probe", "resnet18", backbone_options={"identity": "file:abc", "weights": "file-abc"})
    spec = replace(spec, dataset=folder_named('it\'s "mine"'))
    store = StorePaths(tmp_path)
    durable.write_json(store.run(spec.run_id).spec, to_dict(spec))
    (command,) = commands_of([spec], store)
    assert command.line.endswith(" dataset.folder=FOLDER weights=FILE")
    assert command.to_fill_in == (
        'FOLDER: the folder of it\'s "mine", whose content has the hash content:1',
        "FILE of resnet18: the file with sha256 abc",
    )
    with pytest.raises(ConfigError, match="FOLDER"):
        run_by(command.line)


def folder_named(name: str) -> DatasetSpec:
    return DatasetSpec(name=name, kind="image_folder", fingerprint="content:1", num_classes=10)


def started(folder: Path, *specs: RunSpec) -> tuple[str, str]:
    """The arguments of a store in which these runs have begun, and of its cache."""
    store = StorePaths(folder / "results")
    for spec in specs:
        durable.write_json(store.run(spec.run_id).spec, to_dict(spec))
    return f"store.dir={store.root}", f"cache.dir={folder / 'cache'}"


def probe_of(*arguments: str) -> RunSpec:
    return load_run(["model=resnet18", "phase=probe", "dataset=mnist", *arguments]).configurations[0].run


def evaluation(trained: RunSpec) -> RunSpec:
    settings = EvaluateSettings(source=f"run:{trained.run_id}", split="test", precision="fp32", preprocess=None)
    return replace(trained, phase="evaluate", settings=settings, seed=None, needs=(trained.run_id,))


def test_a_run_brings_what_it_needs_and_is_the_row_of_the_grid_that_has_it(tmp_path: Path) -> None:
    trained = probe_of()
    spec = evaluation(trained)
    where = started(tmp_path, trained, spec)
    request = load_run([f"again={spec.run_id}", *where])
    assert list(request.runs) == [trained.run_id, spec.run_id]
    assert (request.grid, request.configurations[0].variant) == ("adhoc", f"run-{spec.run_id[-12:]}")
    row = replace(request.entries()[0], variant="mine")
    durable.write_json(StorePaths(tmp_path / "results").grid("pets"), {"configurations": [asdict(row)]})
    request = load_run([f"again={spec.run_id}", *where])
    assert (request.grid, request.runtime.grid, request.configurations[0].variant) == ("pets", "pets", "mine")
    assert load_run([f"again={spec.run_id}", *where, "grid_name=new"]).grid == "new"


def test_a_run_of_another_store_is_given_by_its_folder(tmp_path: Path) -> None:
    spec = probe_of("phase.probe.solver=sgd", "seed=3")
    started(tmp_path / "theirs", spec)
    folder = tmp_path / "theirs/results/runs" / spec.run_id
    request = load_run([f"again={folder}", f"store.dir={tmp_path / 'mine'}", "device=cpu", "cluster.cpus=2"])
    assert request.configurations[0].run == spec
    assert (request.runtime.store_dir, request.runtime.device) == (str(tmp_path / "mine"), "cpu")


def test_weights_files_are_taken_where_they_hold_what_the_run_was_made_of(tmp_path: Path) -> None:
    file, other = tmp_path / "a.pth", tmp_path / "b.pth"
    file.write_bytes(b"weights")
    other.write_bytes(b"others")
    spec = probe_of(f"weights={file}")
    arguments = [f"again={spec.run_id}", *started(tmp_path, spec)]
    request = load_run([*arguments, f"weights={file}"])
    assert request.configurations[0].run == spec
    assert request.runtime.weights_files == {spec.backbones[0].weights.identity: str(file)}
    with pytest.raises(ConfigError, match=r"b\.pth' is not the file of resnet18"):
        load_run([*arguments, f"weights={other}"])


@pytest.mark.parametrize(
    "argument",
    [
        *("seed=1", "model=vgg16", "phase=probe", "dataset=mnist", "grid=quickstart", "protocol=fair"),
        *("phase.probe.epochs=3", "dataset.shots=2", "weights_seed=1", "grid.seeds=[1]", "run=x", "select_by=accuracy"),
    ],
)
def test_what_would_make_another_run_of_it_is_refused(argument: str, tmp_path: Path) -> None:
    spec = probe_of()
    key = argument.partition("=")[0]
    with pytest.raises(ConfigError, match=f"^again= takes {re.escape(key)} from the run's spec.json; leave {key}= out"):
        load_run([f"again={spec.run_id}", *started(tmp_path, spec), argument])


def test_places_that_the_run_does_not_have_are_refused(tmp_path: Path) -> None:
    spec = probe_of()
    arguments = [f"again={spec.run_id}", *started(tmp_path, spec)]
    for place, problem in (
        ("weights=random", "made of no weights file"),
        (f"dataset.folder={tmp_path}", "only image_folder takes a folder"),
        ("phase.evaluate.checkpoint=a.pth", "reads no checkpoint"),
    ):
        with pytest.raises(ConfigError, match=problem):
            load_run([*arguments, place])


def test_a_run_that_is_not_there_is_told_from_one_that_is(tmp_path: Path) -> None:
    spec = probe_of()
    where = started(tmp_path, spec)
    with pytest.raises(ConfigError, match=f"did you mean '{re.escape(spec.run_id)}'"):
        load_run([f"again={spec.run_id}0", *where])
    trained = evaluation(spec)
    started(tmp_path, trained)
    (tmp_path / "results/runs" / spec.run_id / "spec.json").unlink()
    with pytest.raises(ConfigError, match=f"spec.json is missing, which tells what {re.escape(spec.run_id)} was"):
        load_run([f"again={trained.run_id}", *where])


def test_a_spec_that_was_edited_or_is_of_other_rules_is_not_carried_out(tmp_path: Path) -> None:
    spec = probe_of()
    where = started(tmp_path, spec)
    edited = to_dict(replace(spec, val_seed=5))
    durable.write_json(tmp_path / "results/runs" / spec.run_id / "spec.json", edited)
    with pytest.raises(ConfigError, match="tells of another run"):
        load_run([f"again={spec.run_id}", *where])
    old = replace(spec, rules=1)
    started(tmp_path, old)
    with pytest.raises(ConfigError, match="was planned by another release"):
        load_run([f"again={old.run_id}", *where])


def test_a_folder_with_other_pictures_is_refused(tmp_path: Path) -> None:
    for place in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / "mine" / place).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(tmp_path / "mine" / place / "0.png")
    spec = replace(probe_of(), dataset=folder_named("mine"))
    with pytest.raises(ConfigError, match=r"mine holds other pictures than .* instead of content:1"):
        load_run([f"again={spec.run_id}", *started(tmp_path, spec), f"dataset.folder={tmp_path / 'mine'}"])


def test_nothing_was_started_so_there_is_no_command(tmp_path: Path) -> None:
    assert commands_of([], StorePaths(tmp_path)) == ()


@pytest.mark.parametrize(
    ("value", "spelled"),
    [
        *((None, "null"), (True, "true"), (1e-05, "1e-05"), ((0.1, 2), "[0.1,2]"), ("resnet18", "resnet18")),
        *(("true", "'true'"), ("12", "'12'"), ("a b", "'a b'"), ("it's", "'it\\'s'"), ({"a": None}, "{a:null}")),
    ],
)
def test_values_are_spelled_as_the_command_line_takes_them(value: object, spelled: str) -> None:
    assert hydra_value(value) == spelled
