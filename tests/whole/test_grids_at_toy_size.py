"""Every grid file, from the command line: what stands in its header, and that it runs, on a few real images."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from tiny_data import write_folder

from transfergrid.config import load_grid
from transfergrid.report.studies.published import lookup
from transfergrid.specs import Configuration

CHECKOUT = Path(__file__).resolve().parents[2]
FILES = {path.stem: path for path in sorted((CHECKOUT / "conf" / "grid").glob("*.yaml"))}
IMAGES_PER_CLASS = {"train": 6, "test": 5}
JPEG = "image_folder"  # the copy of CIFAR-10: another data set than cifar10, so no published figure is its
# A local launch without a GPU carries out one run at a time: two of these tests at once fill two cores.
MACHINE = ("cluster=local", "device=cpu", "cluster.num_threads=1", "tracking=disabled", "keep_weights=none")
SMALL = ("grid.seeds=[0]", "dataset.max_images=60")


@dataclass(frozen=True)
class Toy:
    """How a grid is made small. datasets: in place of the file's own; models: in place of the file's, if any."""

    datasets: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    models: tuple[str, ...] = ()

    def command(self, grid: str, folder: Path) -> list[str]:
        chosen = [f"grid.datasets=[{','.join(self.datasets)}]"]
        chosen += [f"grid.models=[{','.join(self.models)}]"] if self.models else []
        chosen += [f"dataset.folder={folder}"] if JPEG in self.datasets else []
        return [f"grid={grid}", *MACHINE, *SMALL, *chosen, *self.arguments]


def one_epoch(*phases: str) -> tuple[str, ...]:
    return tuple(f"phase.{phase}.{setting}" for phase in phases for setting in ("epochs=1", "precision=fp32"))


# In float32, because six images and random weights leave the parity gate too few logits that rounding cannot turn.
BACKBONES = ("weights=random", "dataset.image_size_px=32", "phase.extract.storage=float32", *one_epoch("finetune"))
SCRATCH = one_epoch("scratch")
# Where variants are numbers of epochs, which they keep, or many: the lightest network.
LIGHTEST = ("lenet5",)
WITHOUT_FC = ("resnet18", "googlenet", "resnet18+vgg16_gap", "resnet18+googlenet", "vgg16_gap+googlenet")
TOYS: dict[str, tuple[Toy, ...]] = {
    "quickstart": (Toy(("digits",), one_epoch("finetune", "scratch")),),
    "compare": (Toy(("digits",), BACKBONES),),
    "individual_vs_parallel": (Toy(("mnist",), BACKBONES),),
    "individual_vs_parallel_as_published": (Toy(("mnist",), (*BACKBONES, *one_epoch("probe")), WITHOUT_FC),),
    "individual_vs_parallel_baselines": (
        Toy((JPEG,), BACKBONES, ("resnet18", "resnet18+googlenet")),
        Toy((JPEG,), (*BACKBONES, "grid.phases=[probe]"), ("resnet34", "vgg19", "resnet18+googlenet+vgg16")),
    ),
    "individual_vs_parallel_few_images": (Toy((JPEG,), BACKBONES, ("resnet18", "resnet18+googlenet")),),
    "resnet50_one_epoch": (Toy(("mnist",), (*BACKBONES, "grid.variants.epochs_10.phase.finetune.epochs=2")),),
    "scratch_cifar10": (Toy((JPEG,), SCRATCH),),
    "scratch_cifar10_as_published": (
        Toy((JPEG,), (*SCRATCH, "phase.scratch.steps_per_epoch=1", "phase.scratch.batch_size=4")),
    ),
    "scratch_cifar10_epochs": (Toy((JPEG,), (), LIGHTEST),),
    "small_resnet18": (
        Toy(
            (JPEG,),
            (
                *SCRATCH,
                "grid.variants.epochs_51.phase.scratch.epochs=2",
                "grid.variants.epochs_200.phase.scratch.epochs=2",
            ),
        ),
    ),
    "small_resnet18_as_published": (Toy((JPEG,), (), LIGHTEST),),
    "small_resnet18_batch": (Toy((JPEG,), SCRATCH, ("resnet10_wide",)),),
    "small_resnet18_cutout": (Toy((JPEG,), SCRATCH),),
    "small_resnet18_epochs": (Toy((JPEG,), (), LIGHTEST),),
    "small_resnet18_lr": (Toy((JPEG,), SCRATCH, LIGHTEST),),
    "small_resnet18_optimizer": (Toy((JPEG,), SCRATCH, LIGHTEST),),
    "small_resnet18_schedule": (Toy((JPEG,), SCRATCH),),
    "small_resnet18_shape": (Toy((JPEG,), SCRATCH),),
}


def configurations(toy: Toy, grid: str, folder: Path, places: tuple[str, ...]) -> tuple[Configuration, ...]:
    return load_grid([*toy.command(grid, folder), *places]).configurations


def models_of(grid: str) -> set[str]:
    return set(OmegaConf.load(FILES[grid]).grid.models)


def variants_of(grid: str) -> set[str]:
    node = OmegaConf.load(FILES[grid]).grid
    return set(node.variants) | (set() if node.get("only_variants") else {""})


# ------------------------------------------------------------------------------------------------------------- headers
@pytest.mark.parametrize("grid", FILES)
def test_the_header_of_a_grid_opens_with_its_command_and_states_its_cost(grid: str) -> None:
    lines = FILES[grid].read_text().splitlines()
    header = []
    for line in lines:
        if not line.startswith("#"):
            break
        header.append(line.removeprefix("#").strip())
    assert header[0] == "@package _global_" and lines[len(header)] == "grid:"
    assert re.match(rf"python jobs/launch_grid\.py grid={grid}( |$)", header[1])
    text = " ".join(header[2:])
    assert "?" in text or len(text) > 100  # what it asks
    cost = text.split("Cost: ", 1)[1]
    assert "GPU-hour" in cost or "minutes" in cost
    node = OmegaConf.load(FILES[grid]).grid
    assert node.name in (grid, f"{grid}-{{dataset}}")  # a template takes its name from the data


@pytest.mark.parametrize("grid", FILES)
def test_every_model_and_every_variant_of_a_grid_file_is_a_configuration_of_its_plan(grid: str, tmp_path: Path) -> None:
    asked = load_grid([f"grid={grid}", "grid.seeds=[0]", "dry_run=true", "cluster=local", f"cache.dir={tmp_path}"])
    assert {c.run.model for c in asked.configurations} == models_of(grid)
    assert {c.variant for c in asked.configurations} == variants_of(grid)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_toy_runs_hold_every_grid_every_variant_and_every_model_and_at_most_600_images(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "cifar10-jpeg", sizes_px=(32,))
    places = (f"cache.dir={tmp_path / 'cache'}", f"store.dir={tmp_path / 'store'}")
    assert set(TOYS) == set(FILES)
    models_run: set[str] = set()
    for grid, toys in TOYS.items():
        found = [c for toy in toys for c in configurations(toy, grid, folder, places)]
        models_run |= {c.run.model for c in found}
        assert {c.variant for c in found} == variants_of(grid), grid
        assert {c.run.phase for c in found} == set(OmegaConf.load(FILES[grid]).grid.phases), grid
        assert {c.run.dataset.max_images for c in found} == {60}
    assert set().union(*map(models_of, FILES)) <= models_run


# ---------------------------------------------------------------------------------------------------------- real images
@pytest.fixture(scope="module")
def place(real_data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a few of the CIFAR-10 JPEGs; store and cache of all grids lie beside them."""
    place = tmp_path_factory.mktemp("toy")
    for split, count in IMAGES_PER_CLASS.items():
        for of_class in sorted((real_data_dir / "cifar10-jpeg" / split).iterdir()):
            kept = place / "cifar10-jpeg" / split / of_class.name
            kept.mkdir(parents=True)
            for image in sorted(of_class.iterdir())[:count]:
                shutil.copy(image, kept)
    return place


@pytest.mark.realdata
@pytest.mark.parametrize(("grid", "toy"), [(grid, toy) for grid, toys in TOYS.items() for toy in toys])
def test_a_grid_runs_from_the_command_line_on_a_few_real_images(
    grid: str, toy: Toy, place: Path, real_data_dir: Path
) -> None:
    places = (f"store.dir={place / 'store'}", f"cache.dir={place / 'cache'}", f"data.dir={real_data_dir}")
    # Another toy of the same grid may have left its rows there.
    command = [*toy.command(grid, place / "cifar10-jpeg"), *places, "replace=true"]
    done = subprocess.run(
        [sys.executable, CHECKOUT / "jobs" / "launch_grid.py", *command],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=place,
        env=os.environ | {"COLUMNS": "100"},
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-2000:]}"

    asked = configurations(toy, grid, place / "cifar10-jpeg", places)
    name = asked[0].grid  # a template's holds the data set's
    with open(place / "store" / "reports" / name / "comparison.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    key = ("dataset", "model", "phase", "variant")
    assert {tuple(row[column] for column in key) for row in rows} == {
        (c.run.dataset.name, c.run.model, c.run.phase, c.variant) for c in asked
    }
    for row in rows:
        assert row["status"] == "completed", row
        assert 0 < float(row["test_accuracy"]) <= 1, row
        figure = lookup(grid=name, **{column: row[column] for column in key})
        assert row["published_accuracy"] == ("" if figure is None else repr(figure.value)), row
        # Sixty images and random weights are not the study's training, so no difference to it is taken.
        assert row["delta_to_published"] == ""
        assert ("max_images" in row["published_differs"]) == (figure is not None)
