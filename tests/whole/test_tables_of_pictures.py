"""Pictures in groups, from a table or a plain folder to the report: launches in processes of their own."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from launched import records, run_script, table
from PIL import Image

from transfergrid.report.analysis.statistics import published_interval

SMALL = (
    "dataset=image_folder",
    "grid.models=[tinynet_cifar,tinynet_mnist]",
    "grid.seeds=[0,1]",
    "dataset.image_size_px=32",
    "phase.finetune.epochs=1",
    "phase.finetune.precision=fp32",
    "tracking=disabled",
    "wait=true",
)


def pictures(folder: Path) -> Path:
    """Forty patients of five pictures, dark or light, each about as dark as the patient is; and their table."""
    generator = np.random.default_rng(0)
    with open(folder / "patients.csv", "w", newline="") as content:
        writer = csv.writer(content)
        writer.writerow(["path", "label", "group"])
        for patient in range(40):
            label = ("dark", "light")[patient % 2]
            level = generator.normal(100 if label == "dark" else 150, 25)
            for number in range(5):
                path = folder / "pets" / label / f"{patient}-{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                noise_HW3 = generator.normal(level, 10, (16, 16, 3))
                Image.fromarray(noise_HW3.clip(0, 255).astype(np.uint8)).save(path)
                writer.writerow([path.relative_to(folder), label, f"patient {patient}"])
    return folder / "patients.csv"


@pytest.mark.slow
def test_a_table_with_groups_ends_in_intervals_by_group(tmp_path: Path) -> None:
    file = pictures(tmp_path)
    arguments = (
        *SMALL,
        "grid.phases=[probe,finetune]",
        f"dataset.table={file}",
        "grid=compare",
        "dataset.test_fraction=0.4",
    )
    out = run_script(tmp_path, "launch_grid.py", *arguments)
    assert "it has no split, so one is drawn by group (120 train, 80 test)" in out
    assert "groups: 24 in train, 16 in test" in out and "Wilson [95 %]" in out

    rows = table(tmp_path, "compare-patients")
    assert len(rows) == 4 and {row["test_groups"] for row in rows} == {"16"}
    for row in rows:
        low, high = published_interval(float(row["test_accuracy"]), 80)
        assert float(row["wilson95_low"]) == pytest.approx(low)
        assert float(row["ci95_high"]) - float(row["ci95_low"]) > high - low
    page = (tmp_path / "store" / "reports" / "compare-patients" / "index.html").read_text()
    assert "every interval and p is by group" in page and "Wilson 95 % high" in page

    probes = [r for r in records(tmp_path) if r["spec"]["phase"] == "probe"]
    assert all(0 < record["details"]["n_val"] < 30 for record in probes)
    with np.load(tmp_path / "store" / "runs" / probes[0]["run_id"] / "predictions.npz") as stored:
        assert set(stored["val_group"].tolist()).isdisjoint(stored["test_group"].tolist())
        assert len(set(stored["test_group"].tolist())) == 16 and len(stored["test_group"]) == 80
    again = run_script(tmp_path, "run_phase.py", f"again={probes[0]['run_id']}", *split_of(tmp_path))
    assert "completed" in again or "nothing to run" in again or "done" in again


def split_of(folder: Path) -> tuple[str, str, str]:
    (file,) = (folder / "store" / "splits").glob("patients-*.csv")
    return f"dataset.table={file}", f"dataset.folder={folder}", "tracking=disabled"


@pytest.mark.slow
def test_a_plain_folder_needs_no_more_than_its_name(tmp_path: Path) -> None:
    pictures(tmp_path)
    out = run_script(
        tmp_path, "launch_grid.py", *SMALL, "grid.phases=[probe]", f"dataset.folder={tmp_path / 'pets'}", "grid=compare"
    )
    assert "pets: it has no split, so one is drawn by class (160 train, 40 test)" in out
    rows = table(tmp_path, "compare-pets")
    assert all(row["status"] == "completed" for row in rows) and "test_groups" not in rows[0]
