from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import report_cases as cases
from PIL import Image

from transfergrid.config import load_grid, load_run
from transfergrid.config.compose import compose_config, parse_overrides
from transfergrid.config.spelling import hydra_value
from transfergrid.errors import ConfigError
from transfergrid.paths import StorePaths
from transfergrid.report.analysis.rerun import Command, commands_of
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


def runs_by(command: Command, *more: str) -> set[str]:
    """The runs that a command line makes, read from the line as a shell would split it."""
    python, script, *arguments = shlex.split(command.line)
    assert (python, script) == ("python", f"jobs/{command.script}")
    load = load_run if command.script == "run_phase.py" else load_grid
    return {c.run.run_id for c in load([*arguments, *more]).configurations}


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
        (command,) = commands_of(specs, store)
        assert runs_by(command) == {spec.run_id for spec in specs}
        assert command.to_fill_in == ()


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
        (command,) = commands_of(specs, store)
        typed = command.line.replace("=FOLDER", f"={shlex.quote(str(folder))}")
        again = Command(script=command.script, arguments=tuple(shlex.split(typed)[2:]), to_fill_in=())
        assert runs_by(again, f"cache.dir={tmp_path / 'cache'}") == {spec.run_id for spec in specs}


def test_one_seed_is_a_run_by_hand_and_several_are_a_grid_of_another_name(tmp_path: Path) -> None:
    one = ("grid=compare", "dataset=mnist", "grid.models=[resnet18]")
    solved, store = rows_of(*one, folder=tmp_path)
    assert [c.line for c in commands_of(solved[0], store)] == [
        "python jobs/run_phase.py model=resnet18 phase=probe dataset=mnist"
    ]
    rows, store = rows_of(*one, "phase.probe.solver=sgd", folder=tmp_path)
    name = f"again-{rows[0][0].run_id[-12:]}"
    assert [c.line for c in commands_of(rows[0], store)] == [
        f"python jobs/launch_grid.py grid=compare grid_name={name} 'grid.models=[resnet18]' 'grid.phases=[probe]' "
        "'grid.seeds=[0,1,2]' dataset=mnist phase.probe.epochs=5 phase.probe.batch_size=256"
        " phase.probe.solver=sgd"
    ]
    assert [c.line for c in commands_of(rows[0][1:2], store)] == [
        "python jobs/run_phase.py model=resnet18 phase=probe seed=1 dataset=mnist phase.probe.epochs=5"
        " phase.probe.batch_size=256 phase.probe.solver=sgd"
    ]


def test_files_and_folders_that_no_record_knows_are_for_the_reader_to_fill_in(tmp_path: Path) -> None:
    spec = cases.spec("probe", "resnet18", backbone_options={"identity": "file:abc", "weights": "file-abc"})
    spec = spec.__class__(
        **{name: getattr(spec, name) for name in spec.__slots__} | {"dataset": folder_named('it\'s "mine"')}
    )
    (command,) = commands_of([spec], StorePaths(tmp_path))
    assert "weights=FILE" in command.arguments and "dataset.folder=FOLDER" in command.arguments
    assert "dataset.name='it\\'s \"mine\"'" in command.arguments
    assert command.to_fill_in == (
        'FOLDER: the folder of it\'s "mine", whose content has the hash content:1',
        "FILE of resnet18: the file with sha256 abc",
    )
    with pytest.raises(ConfigError, match="FOLDER"):
        runs_by(command)


def folder_named(name: str) -> DatasetSpec:
    return DatasetSpec(name=name, kind="image_folder", fingerprint="content:1", num_classes=10)


def test_an_evaluation_of_a_run_names_that_run(tmp_path: Path) -> None:
    trained = cases.spec("probe", "resnet18")
    settings = EvaluateSettings(source=f"run:{trained.run_id}", split="test", precision="fp32", preprocess=None)
    values = {name: getattr(trained, name) for name in trained.__slots__}
    spec = RunSpec(**values | {"phase": "evaluate", "settings": settings, "seed": None, "needs": (trained.run_id,)})
    (command,) = commands_of([spec], StorePaths(tmp_path))
    assert command.line.startswith(f"python jobs/run_phase.py phase=evaluate run={trained.run_id} dataset=mnist")


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
