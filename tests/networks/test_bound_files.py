"""weights.pt and predictions.npz are bound to their record: a changed one is named by whatever uses it."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from report_cases import write_grid
from small_runs import carry_out, final_run, paths_of, record_of, request

from transfergrid.cli import predict, report
from transfergrid.config import Request
from transfergrid.errors import DataError
from transfergrid.networks.finished import load_weights, network_of_run
from transfergrid.paths import RunPaths, store_paths
from transfergrid.planning import job
from transfergrid.store import durable
from transfergrid.store.records import read_predictions, read_record

EVALUATION = ("model=tinynet", "phase=scratch", "phase.scratch.epochs=1")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Request:
    asked = request(tmp_path_factory.mktemp("bound"), *EVALUATION)
    assert carry_out(asked) == "completed"
    return asked


@pytest.fixture
def copied(made: Request, tmp_path: Path) -> Request:
    """The finished run in a store of the test's own."""
    shutil.copytree(made.runtime.store_dir, tmp_path / "store", symlinks=True)
    return replace(made, runtime=replace(made.runtime, store_dir=str(tmp_path / "store")))


def flip(path: Path, place: float) -> None:
    """One bit at this share of a file."""
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)


def of(asked: Request) -> RunPaths:
    return paths_of(final_run(asked), asked.runtime)


def said(
    asked: Request, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str]:
    places = [f"store.dir={asked.runtime.store_dir}", f"cache.dir={asked.runtime.cache_dir}", "device=cpu"]
    monkeypatch.setattr("sys.argv", ["predict.py", f"run={final_run(asked).run_id}", *arguments, *places])
    return predict.main(), capsys.readouterr().err


def test_a_record_holds_the_checksums_of_its_files(made: Request) -> None:
    paths, record = of(made), record_of(final_run(made), made.runtime)
    assert record.sha256 == {
        "weights.pt": durable.sha256_of(paths.weights),
        "predictions.npz": durable.sha256_of(paths.predictions),
    }


@pytest.mark.parametrize("place", [0.3, 0.5, 0.7])
def test_one_flipped_bit_in_weights_is_named_by_predict_and_export(
    place: float, copied: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = of(copied)
    whole = torch.load(paths.weights, weights_only=True)
    flip(paths.weights, place)
    assert torch.load(paths.weights, weights_only=True).keys() == whole.keys()  # torch reads it without a word
    words = f"{paths.weights} is damaged: it is not the file that its record was written with; delete {paths.record}"
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "x.png").write_bytes(b"")
    for arguments in ([f"images={tmp_path / 'images'}"], [f"export={tmp_path / 'export'}"]):
        code, err = said(copied, monkeypatch, capsys, *arguments)
        assert code == 1 and words in err and len(err.splitlines()) == 1
    with pytest.raises(DataError, match="weights.pt is damaged"):
        network_of_run(final_run(copied), paths, copied.runtime)


def test_an_evaluation_of_a_run_with_damaged_weights_fails_with_class_data(copied: Request, tmp_path: Path) -> None:
    flip(of(copied).weights, 0.5)
    asked = request(tmp_path, "phase=evaluate", f"run={final_run(copied).run_id}")
    assert job.carry_out(final_run(asked), asked.runtime) == "failed"
    record = record_of(final_run(asked), asked.runtime)
    assert record.failure_class == "data" and "weights.pt is damaged" in str(record.error)


@pytest.mark.parametrize("name", ["weights.pt", "predictions.npz"])
def test_a_finetuning_does_not_start_from_a_damaged_probe(name: str, tmp_path: Path) -> None:
    asked = request(tmp_path, "model=tinynet_mnist", "phase=finetune", "phase.finetune.epochs=1")
    probe = next(run for run in asked.runs.values() if run.phase == "probe")
    for run in (*probe.extractions, probe):
        assert job.carry_out(run, asked.runtime) == "completed"
    path = paths_of(probe, asked.runtime).root / name
    path.write_bytes(path.read_bytes() + b"\0")  # both zip readers take it
    assert job.carry_out(final_run(asked), asked.runtime) == "failed"
    record = record_of(final_run(asked), asked.runtime)
    assert record.failure_class == "data" and f"{name} is damaged" in str(record.error)


def test_the_report_names_damaged_predictions_and_weights_beside_their_row(
    copied: Request, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, store = final_run(copied), store_paths(copied.runtime)
    write_grid(store, "g", [(run, "")])

    def text() -> str:
        monkeypatch.setattr("sys.argv", ["report.py", "grid=g", f"store.dir={store.root}", "figures=false"])
        assert report.main() == 0, capsys.readouterr()
        return (store.root / "reports" / "g" / "comparison.md").read_text()

    assert "is damaged" not in text()
    flip(of(copied).weights, 0.5)
    assert f"{run.run_id}: {of(copied).weights} is damaged: it is not the file that its record was written" in text()
    content = of(copied).predictions.read_bytes()
    of(copied).predictions.write_bytes(content + b"\0")
    assert f"{run.run_id}: {of(copied).predictions} is damaged" in text()


def test_records_of_earlier_releases_are_read_as_before(copied: Request) -> None:
    paths = of(copied)
    content = json.loads(paths.record.read_text())
    del content["sha256"]
    paths.record.write_text(json.dumps(content))
    record = read_record(paths)
    assert record is not None and record.sha256 == {}
    os.utime(paths.weights)
    assert load_weights(paths) and read_predictions(paths)["test"]
