"""Plain folders of classes and tables of pictures, from the command line to the runs."""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path

import pytest
import tiny_data

from transfergrid.config import Request, load_grid
from transfergrid.config.sweep import _joined
from transfergrid.errors import ConfigError, DataError
from transfergrid.paths import StorePaths
from transfergrid.report.analysis.rerun import commands_of
from transfergrid.specs import RunSpec

ARGUMENTS = ("grid.models=[baseline_cnn]", "grid.phases=[scratch]", "grid.seeds=[0]", "dataset=image_folder")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pets/<class>/*, ten pictures of each of two classes; store and cache in the folder beside it."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    for number in range(20):
        place = tmp_path / "pets" / ("cat" if number < 10 else "dog") / f"{number}.png"
        tiny_data.save_image(place, tiny_data.random_images(8, 8, 3, seed=number))
    return tmp_path / "pets"


def request(*arguments: str) -> Request:
    return load_grid([*ARGUMENTS, *arguments])


def run_of(asked: Request) -> RunSpec:
    (configuration,) = asked.configurations
    return configuration.run


def written_tables() -> list[Path]:
    return sorted(Path("results/splits").glob("*.csv"))


def table_of(folder: Path, *, leaked: bool = False, groups: bool = True) -> Path:
    """Two pictures of each patient; the last patients of each class are tested."""
    file = folder / "patients.csv"
    with open(file, "w", newline="") as content:
        writer = csv.writer(content)
        writer.writerow(["path", "label", "split", *(["group"] if groups else [])])
        for number in range(20):
            label = "cat" if number < 10 else "dog"
            split = "test" if number % 10 >= 6 or (leaked and number == 4) else "train"
            writer.writerow([f"{label}/{number}.png", label, split, *([f"p{number // 2}"] if groups else [])])
    return file


def test_a_folder_of_classes_gets_a_split_that_is_written_and_can_be_given_back(folder: Path) -> None:
    asked = request(f"dataset.folder={folder}")
    (table,) = written_tables()
    with open(table, newline="") as content:
        rows = list(csv.DictReader(content))
    assert sorted(rows[0]) == ["label", "path", "split"] and len(rows) == 20
    assert sum(row["split"] == "test" for row in rows) == 4
    assert asked.facts["pets"].num_images == {"train": 16, "test": 4}
    assert asked.runtime.data_folders == {"pets": str(folder)}
    assert asked.runtime.data_tables == {"pets": str(table.resolve())}
    (note,) = asked.notes
    assert f"drawn by class (16 train, 4 test); it is in {table.resolve()}; to share it: dataset.table=" in note

    shared = folder.parent / "shared.csv"  # on another machine: another place, another folder of the same name
    shutil.copy(table, shared)
    shutil.copytree(folder, folder.parent / "elsewhere" / "pets")
    again = request(f"dataset.table={shared}", f"dataset.folder={folder.parent / 'elsewhere' / 'pets'}")
    assert run_of(again).run_id == run_of(asked).run_id and not again.notes
    assert len(written_tables()) == 1


def test_a_dry_run_plans_the_same_runs_and_writes_nothing(folder: Path) -> None:
    dry = request(f"dataset.folder={folder}", "dry_run=true")
    assert not Path("results").exists() and "a launch writes it to" in dry.notes[0]
    assert run_of(dry).run_id == run_of(request(f"dataset.folder={folder}")).run_id


def test_the_share_of_test_is_a_setting_and_another_data_set(folder: Path) -> None:
    asked = request(f"dataset.folder={folder}", "dataset.test_fraction=0.5")
    assert asked.facts["pets"].num_images == {"train": 10, "test": 10}
    assert run_of(asked).run_id != run_of(request(f"dataset.folder={folder}")).run_id
    with pytest.raises(ConfigError, match=r"dataset.test_fraction=0.3: .*patients.csv has splits of its own"):
        request(f"dataset.table={table_of(folder)}", "dataset.test_fraction=0.3")
    with pytest.raises(ConfigError, match=r"dataset.test_fraction=0.3: mnist has a test split of its own"):
        load_grid([*ARGUMENTS[:-1], "dataset=mnist", "dataset.test_fraction=0.3"])


def test_pictures_that_change_sides_when_a_folder_grows_are_told(folder: Path) -> None:
    request(f"dataset.folder={folder}")
    for number in range(20, 60):
        place = folder / ("cat" if number % 2 else "dog") / f"{number}.png"
        tiny_data.save_image(place, tiny_data.random_images(8, 8, 3, seed=number))
    _, moved = request(f"dataset.folder={folder}").notes
    assert "of 20 pictures change sides against pets-test-0.2-" in moved and len(written_tables()) == 2


def test_what_a_folder_of_classes_holds_beside_pictures_is_told(folder: Path) -> None:
    (folder / "cat" / "notes.txt").write_text("")
    assert request(f"dataset.folder={folder}").notes[1] == "pets: not read: 1 .txt (as cat/notes.txt)"
    shutil.rmtree(folder / "dog")
    (folder / "dog").mkdir()
    with pytest.raises(DataError, match=r"dog has no images"):
        request(f"dataset.folder={folder}")
    shutil.rmtree(folder / "dog")
    with pytest.raises(ConfigError, match=r"pets has one class, 'cat'; wanted two or more"):
        request(f"dataset.folder={folder}")


def test_a_table_is_a_data_set_and_its_groups_count_in_the_plan(folder: Path) -> None:
    asked = request(f"dataset.table={table_of(folder)}")
    facts = asked.facts["patients"]
    assert facts.num_images == {"train": 12, "test": 8} and not asked.notes and not written_tables()
    assert [len(set(facts.groups[split])) for split in ("train", "test")] == [6, 4]
    assert run_of(asked).dataset.fingerprint.startswith("table:")
    without = request(f"dataset.table={table_of(folder, groups=False)}")
    assert run_of(without).run_id != run_of(asked).run_id and not without.facts["patients"].groups


def test_a_table_without_splits_is_drawn_by_group(folder: Path) -> None:
    lines = table_of(folder).read_text().replace(",train,", ",").replace(",test,", ",").replace("split,", "")
    (folder / "patients.csv").write_text(lines)
    asked = request(f"dataset.table={folder / 'patients.csv'}")
    groups = asked.facts["patients"].groups
    assert "drawn by group" in asked.notes[0] and not set(groups["train"]) & set(groups["test"])
    assert asked.facts["patients"].num_images == {"train": 16, "test": 4}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("dataset.table=none.csv",), r"dataset.table='none.csv' is not a file"),
        (
            ("dataset.table={table}", "dataset.folder=none"),
            r"none is not a folder; dataset.folder= says where the paths",
        ),
        ((), r"needs dataset.folder=DIR, with DIR/train/<class>/\* and DIR/test/..., or dataset.table=FILE.csv"),
    ],
)
def test_what_cannot_be_a_table_is_refused(folder: Path, arguments: tuple[str, ...], complaint: str) -> None:
    table = table_of(folder)
    with pytest.raises(ConfigError, match=complaint):
        request(*(argument.format(table=table) for argument in arguments))


def test_rows_of_one_grid_and_one_sweep_have_one_split(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"pets: the rows of one grid have one split"):
        request(f"dataset.folder={folder}", "grid.variants={more: {dataset.test_fraction: 0.5}}")
    one, other = (request(f"dataset.folder={folder}", f"dataset.test_fraction={share}") for share in (0.2, 0.5))
    with pytest.raises(ConfigError, match=r"two tables are both named 'pets'"):
        _joined([one, other])


def test_a_run_says_that_it_is_made_again_from_a_table(folder: Path) -> None:
    run = run_of(request(f"dataset.table={table_of(folder)}"))
    (command,) = commands_of([run], StorePaths(Path("results")))
    assert command.line.endswith("dataset.table=TABLE dataset.folder=FOLDER")
    assert run.dataset.fingerprint in command.to_fill_in[0] and "the table's paths start" in command.to_fill_in[1]


def test_a_name_that_no_table_can_hold_is_named(folder: Path) -> None:
    os.rename(folder / "cat" / "0.png", os.fsencode(folder / "cat") + b"/caf\xe9.png")
    with pytest.raises(ConfigError, match=r"cat/caf\\xe9.png is not UTF-8, so no table can name it; rename it"):
        request(f"dataset.folder={folder}")


def test_a_leaked_group_is_refused_before_anything_starts(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transfergrid.cli import launch

    arguments = [*ARGUMENTS, f"dataset.table={table_of(folder, leaked=True)}", "cluster=local"]
    monkeypatch.setattr("sys.argv", ["launch_grid.py", *arguments])
    assert launch.main() == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and not Path("results").exists()
    assert "group 'p2' is in test (cat/4.png) and in train (cat/5.png); move all its rows to one split" in err
