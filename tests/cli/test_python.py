"""The package in Python: what docs/python.md shows, on a grid that was launched here."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_data

import transfergrid
from transfergrid.cli import launch, predict
from transfergrid.errors import ConfigError, MissingInput


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with results/ and cache/: one probe of the tiny backbone on a few of the digits."""
    place = tmp_path_factory.mktemp("launched")
    asked = ("grid=quickstart", "grid.models=[tinynet_mnist]", "grid.phases=[probe]", "grid.seeds=[0]")
    few = ("grid.variants={}", "dataset.max_images=120", "cluster=local", "device=cpu", "tracking=disabled")
    assert launch.launch([*asked, *few, f"store.dir={place}/results", f"cache.dir={place}/cache"]) == 0
    return place


def test_importing_the_package_loads_nothing_else() -> None:
    script = "import sys, transfergrid; print(sorted(m for m in sys.modules if m.startswith('transfergrid.')))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    unknown = "read_everything"
    with pytest.raises(AttributeError, match=f"no attribute '{unknown}'"):
        getattr(transfergrid, unknown)


def test_rows_records_and_features_are_those_of_the_files(launched: Path) -> None:
    (row,) = transfergrid.read_comparison("quickstart", launched / "results")
    with open(launched / "results/reports/quickstart/comparison.csv", newline="") as file:
        (written,) = csv.DictReader(file)
    assert row.test_accuracy == float(written["test_accuracy"]) and row.model == "tinynet_mnist"

    (run,) = [path.name for path in (launched / "results/runs").iterdir() if "-probe-" in path.name]
    record = transfergrid.read_record(run[-8:], launched / "results")
    assert record.run_id == run
    assert record.metrics["test_accuracy"] == row.test_accuracy and record.spec.phase == "probe"

    found = transfergrid.read_features(run, "train", store=launched / "results", cache=launched / "cache")
    assert list(found) == ["tinynet_mnist"]
    features = found["tinynet_mnist"]
    assert features.features_ND.shape == (120, 64) and features.features_ND.dtype == np.float16
    assert np.bincount(features.labels_N).tolist() == [12] * 10 and len(features.index_N) == 120


def test_a_models_predictions_are_those_of_the_command(
    launched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(3):
        tiny_data.save_image(tmp_path / "pictures" / f"{index}.png", tiny_data.random_images(8, 8, 3, seed=index))
    (tmp_path / "pictures" / "3.png").write_bytes(b"none")
    (run,) = [path.name for path in (launched / "results/runs").iterdir() if "-probe-" in path.name]
    places = (f"store.dir={launched}/results", f"cache.dir={launched}/cache", "device=cpu")
    assert predict.predict([f"run={run}", f"images={tmp_path}/pictures", *places]) == 1
    told = list(csv.DictReader(capsys.readouterr().out.splitlines()))

    model = transfergrid.load_model(run, launched / "results", device="cpu")
    found = model.predict(sorted((tmp_path / "pictures").iterdir()))
    assert model.class_names == tuple("0123456789") and not model.network.training
    names = ["" if p.logits_C is None else model.class_names[int(p.logits_C.argmax())] for p in found]
    assert names == [line["predicted"] for line in told] and names[3] == ""
    assert found[3].error is not None and "3.png is not an image in a supported format" in found[3].error
    assert model.predict([]) == []


def test_what_is_not_there_is_told_with_what_helps(launched: Path) -> None:
    with pytest.raises(ConfigError, match="was never launched"):
        transfergrid.read_comparison("nothing", launched / "results")
    with pytest.raises(
        MissingInput, match="runs/nothing/record.json does not exist: the run has not ended, or the id is wrong"
    ):
        transfergrid.read_record("nothing", launched / "results")
    with pytest.raises(ConfigError, match="run='nothing' is neither a run's folder nor in"):
        transfergrid.load_model("nothing", launched / "results")
    (run,) = [path.name for path in (launched / "results/runs").iterdir() if "-probe-" in path.name]
    with pytest.raises(MissingInput, match=r"\.h5 does not exist; launch its grid again to extract it"):
        transfergrid.read_features(run, "train", store=launched / "results", cache=launched / "nowhere")
