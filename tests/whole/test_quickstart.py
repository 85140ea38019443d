"""The quickstart as a user runs it, launched in processes of its own; results read from the records."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from launched import records, run_script, table

from transfergrid.paths import CachePaths, StorePaths
from transfergrid.report.analysis.predictions import StoredPredictions, correct_SN
from transfergrid.report.analysis.statistics import compare
from transfergrid.store.inventory import space_by_part


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("quickstart")
    return folder, run_script(folder, "launch_grid.py")


@pytest.mark.slow
def test_quickstart_ends_with_a_table_of_ten_completed_rows(quickstart: tuple[Path, str]) -> None:
    folder, printed = quickstart
    rows = table(folder, "quickstart")
    assert len(rows) == 10 and all(row["status"] == "completed" for row in rows)
    assert all(row["n_seeds"] == ("1" if row["phase"] == "probe" else "3") for row in rows)
    assert "test accuracy" in printed and "tinynet_cifar" in printed and "report:" in printed
    assert all(row["ci95_low"] and row["ci95_high"] for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tinynet_mnist", "tinynet_cifar", "tinynet_mnist+tinynet_cifar"])
def test_a_transferred_probe_beats_the_same_network_with_random_weights(
    quickstart: tuple[Path, str], model: str
) -> None:
    """The 95 % interval of the difference, over test images, lies above zero."""
    folder = quickstart[0]
    grid = json.loads((folder / "store" / "grids" / "quickstart.json").read_text())["configurations"]
    stored = StoredPredictions(StorePaths(folder / "store"))
    correct = {}
    for variant in ("", "random_weights"):
        runs = [c["run_id"] for c in grid if (c["model"], c["phase"], c["variant"]) == (model, "probe", variant)]
        assert len(runs) == 1  # a solved probe draws nothing
        correct[variant] = correct_SN([stored.of(run_id) for run_id in runs])
    found = compare(correct[""], correct["random_weights"])
    assert 0 < found.low < found.difference < found.high < 1 and found.p_value < 0.05


@pytest.mark.slow
def test_every_finetune_of_quickstart_passed_its_gate_and_no_finished_run_holds_more_than_ten_files(
    quickstart: tuple[Path, str],
) -> None:
    folder = quickstart[0]
    finetunes = [r for r in records(folder) if r["spec"]["phase"] == "finetune"]
    assert len(finetunes) == 9
    assert all(r["details"]["gate"]["largest_ratio"] <= 1 for r in finetunes)
    for run in (folder / "store" / "runs").iterdir():
        assert sum(p.is_file() for p in run.rglob("*")) <= 10


@pytest.mark.slow
def test_the_plan_foretells_within_a_half_what_quickstart_writes(quickstart: tuple[Path, str]) -> None:
    folder, printed = quickstart
    [told] = re.findall(r"^writes about .* \((weights .*)\); .* are free$", printed, re.MULTILINE)
    expected = {kind: float(mb) for kind, mb in re.findall(r"([a-z ]+?) ([\d.]+) MB", told)}
    parts = space_by_part(StorePaths(folder / "store"), CachePaths(folder / "cache"))
    written = {name: space.bytes / 1e6 for name, space in parts.items()}
    pairs = [
        (expected["weights"], written["weights of runs"]),
        (expected[" features"], written["cache: features"]),
        (expected[" predictions"] + expected[" records and logs"], written["records, predictions and logs of runs"]),
    ]
    assert all(
        there / 1.5 < said < 1.5 * there for said, there in [*pairs, (sum(expected.values()), sum(written.values()))]
    )


@pytest.mark.slow
def test_without_a_key_quickstart_leaves_nothing_of_wandbs_and_says_so_once(quickstart: tuple[Path, str]) -> None:
    folder, printed = quickstart
    assert not (folder / "store" / "wandb").exists() and not list(folder.rglob("*wandb*"))
    [line] = [line for line in printed.splitlines() if line.startswith("W&B: ")]
    assert line.startswith("W&B: nothing is sent: no key for ") and "`wandb login`" in line


@pytest.mark.slow
def test_launched_again_quickstart_reuses_everything_and_the_report_rebuilds_from_records_alone(
    quickstart: tuple[Path, str],
) -> None:
    folder = quickstart[0]
    before = {p: p.stat().st_mtime_ns for p in (folder / "store" / "runs").rglob("*")}
    printed = run_script(folder, "launch_grid.py", timeout_s=60)
    assert "18 reuse" in printed and "started" not in printed
    assert {p: p.stat().st_mtime_ns for p in (folder / "store" / "runs").rglob("*")} == before
    csv_file = folder / "store" / "reports" / "quickstart" / "comparison.csv"
    first = csv_file.read_bytes()
    csv_file.unlink()
    again = run_script(folder, "report.py", "grid=quickstart")
    assert csv_file.read_bytes() == first
    tables = [said.partition("\nOn digits, ")[0] for said in (again, printed)]  # below it stands who is best
    figures, before_it = (re.findall(r"\d+\.\d+ \[\d+\.\d+, \d+\.\d+\]", table) for table in tables)
    assert len(figures) == 10 and figures == before_it
