"""A user's own grids, data sets and clusters: found in three places before the package's, with no foreign file read."""

from __future__ import annotations

from pathlib import Path

import pytest

from transfergrid.config import load_grid
from transfergrid.config.compose import compose_config
from transfergrid.config.folders import VARIABLE, choices, conf_dir, conf_dirs
from transfergrid.data import sets
from transfergrid.errors import ConfigError

GRID = """# @package _global_
grid:
  name: {name}
  models: [resnet18]
  datasets: [{dataset}]
  phases: [probe]
  seeds: [0]
weights: random
"""


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, Path]:
    """./conf, the variable's folder and the user's own, in the order in which they are looked at."""
    work, named, home = tmp_path / "work", tmp_path / "named folder", tmp_path / "home"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv(VARIABLE, str(named))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
    own = (work / "conf", named, home / "transfergrid")
    for place in own:
        for group in ("grid", "dataset", "cluster"):
            (place / group).mkdir(parents=True)
    return own


DATA_SET = """from transfergrid.data.images import DatasetFacts

FACTS = DatasetFacts(
    kind="halves", fingerprint="published:" + "0" * 32, num_classes=2, class_names=("dark", "bright"), image_size_px=8,
    mirror_ok=True, num_images={"train": 60, "test": 20}, train_counts=(30, 30),
)
"""


def test_a_kind_of_data_set_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "halves.py").write_text(DATA_SET)
    monkeypatch.setattr(sets, "__path__", [*sets.__path__, str(tmp_path)])
    asked = ["grid.models=[baseline_cnn]", "grid.phases=[scratch]", "grid.datasets=[halves]", "dry_run=true"]
    spec = load_grid(asked).configurations[0].run.dataset
    assert (spec.kind, spec.name, spec.fingerprint) == ("halves", "halves", "published:" + "0" * 32)
    with pytest.raises(ConfigError, match="unknown dataset 'halfs'; did you mean 'halves'"):
        compose_config(["dataset=halfs"])


def test_own_files_are_found_in_three_places_the_nearest_first(places: tuple[Path, Path, Path]) -> None:
    assert conf_dirs() == (*places, conf_dir())
    for place, dataset in zip(places, ("mnist", "cifar10", "svhn"), strict=True):
        (place / "grid" / "shared.yaml").write_text(GRID.format(name="shared", dataset=dataset))
    expected = ["mnist", "cifar10", "svhn"]
    for place in places:
        request = load_grid(["grid=shared", "dry_run=true"])
        assert {c.run.dataset.name for c in request.configurations} == {expected.pop(0)}
        (place / "grid" / "shared.yaml").unlink()
        compose_config.__globals__["_composed"].cache_clear()  # else this process remembers the file
    with pytest.raises(ConfigError, match="unknown grid 'shared'"):
        load_grid(["grid=shared", "dry_run=true"])


@pytest.mark.parametrize("which", [0, 1, 2])
def test_an_own_file_goes_before_the_packages_of_the_same_name(places: tuple[Path, Path, Path], which: int) -> None:
    (places[which] / "dataset" / "mnist.yaml").write_text("kind: mnist\nmax_images: 50\n")
    compose_config.__globals__["_composed"].cache_clear()
    try:
        assert compose_config(["dataset=mnist"]).dataset.max_images == 50
    finally:
        compose_config.__globals__["_composed"].cache_clear()


def test_an_own_cluster_builds_on_one_of_the_package(places: tuple[Path, Path, Path]) -> None:
    (places[2] / "cluster" / "mylab.yaml").write_text("defaults: [slurm]\npartition: gpu\n")
    assert {"mylab", "slurm", "local"} <= set(choices("cluster"))
    cluster = compose_config(["cluster=mylab"]).cluster
    assert (cluster.name, cluster.kind, cluster.partition) == ("mylab", "slurm", "gpu")


def test_configuration_of_another_program_beside_it_changes_nothing(places: tuple[Path, Path, Path]) -> None:
    before = compose_config(["grid=quickstart"])
    (places[0] / "config.yaml").write_text("model: {lr: 0.1}\ndefaults: [nothing]\n")
    (places[0] / "hydra").mkdir()
    (places[0] / "hydra" / "config.yaml").write_text("no: good\n")
    assert compose_config(["grid=quickstart"]) == before


def test_a_variable_that_names_no_folder_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "/nowhere/at/all")
    with pytest.raises(ConfigError, match=rf"{VARIABLE}=/nowhere/at/all is no folder; wanted one with grid/"):
        load_grid(["dry_run=true"])
