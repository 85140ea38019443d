"""What W&B is told of a run at its end, as it is made: numbers, pictures, files, references; nothing is sent here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prediction_cases import predictions_of, right_but
from report_cases import completed, spec

from transfergrid.data import ArrayImages, LabeledImages
from transfergrid.paths import RunPaths, StorePaths
from transfergrid.specs import DatasetSpec, ExtractSettings, RunSpec, Split, extraction
from transfergrid.store import durable, records
from transfergrid.store.records import RunRecord
from transfergrid.tracking.client import quiet_threads, wandb_session
from transfergrid.tracking.description import MATRIX_CLASSES, WRONG_SHOWN, Ending, references

NAMES = tuple("abcdefghij")
Images = Callable[[DatasetSpec, Split], LabeledImages | None]


@pytest.fixture(autouse=True)
def store(tmp_path: Path) -> Iterator[StorePaths]:
    store = StorePaths(tmp_path / "results")
    with wandb_session(store, "http://127.0.0.1:9"):
        yield store


def ending_of(record: RunRecord, paths: RunPaths, *, images: bool = True) -> Ending:
    return Ending(record, paths, images=images, folder=paths.root.parent / "copies")


def ended(store: StorePaths, *wrong: int, n: int = 40, **details: Any) -> tuple[RunSpec, Ending]:
    run = spec(model="resnet18", phase="probe")
    told = {"n_test": n, "class_names": list(NAMES)} | details
    record = completed(store, run, test_accuracy=1 - len(wrong) / n, details=told)
    records.write_predictions(store.run(run.run_id), {"test": predictions_of(right_but(*wrong, n=n))})
    return run, ending_of(record, store.run(run.run_id))


def at_hand(n: int) -> Images:
    """Grey images of 8 pixels, each of the shade of its index."""
    images_NHWC = np.arange(n, dtype=np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2)
    found = ArrayImages(images_NHWC, np.arange(n) % 10, class_names=NAMES)
    return lambda dataset, split: found


def nowhere(dataset: DatasetSpec, split: Split) -> None:
    return None


def test_the_summary_has_the_records_numbers_and_each_classes_accuracy(store: StorePaths) -> None:
    run, ending = ended(store, 3, 13, 5)
    assert ending.summary["test_accuracy"] == 1 - 3 / 40
    assert ending.summary["status"] == "completed" and ending.summary["run_id"] == run.run_id
    assert [ending.summary[f"class_accuracy/{name}"] for name in "dfa"] == [0.5, 0.75, 1.0]


def test_the_confusion_matrix_counts_every_test_image_once(store: StorePaths) -> None:
    _, ending = ended(store, 3, 13, 5)
    table = ending.row(nowhere)["confusion_matrix"].table
    counts = {(actual, predicted): n for actual, predicted, n in table.data}
    assert table.columns == ["Actual", "Predicted", "nPredictions"]
    assert sum(counts.values()) == 40 and len(counts) == 100
    assert (counts["d", "d"], counts["d", "e"], counts["f", "g"], counts["e", "d"]) == (2, 2, 1, 0)


def test_images_that_were_taken_for_something_else_say_what_they_are(store: StorePaths) -> None:
    _, ending = ended(store, 3, 13, 5)
    shown = ending.row(at_hand(40))["misclassified"]
    assert [image._caption for image in shown] == [
        "d taken for e (test image 3)",
        "f taken for g (test image 5)",
        "d taken for e (test image 13)",
    ]
    pixels = np.asarray(shown[1].image)
    assert pixels.shape == (96, 96) and set(pixels.flat) == {5}


def test_of_many_wrong_images_the_first_are_shown(store: StorePaths) -> None:
    _, ending = ended(store, *range(20, 40))
    assert len(ending.row(at_hand(40))["misclassified"]) == WRONG_SHOWN


@pytest.mark.parametrize("images", [nowhere, at_hand(4)])
def test_where_the_images_are_not_here_or_fewer_only_the_matrix_is_shown(store: StorePaths, images: Images) -> None:
    _, ending = ended(store, 30)
    assert set(ending.row(images)) == {"confusion_matrix"}


def test_a_run_without_predictions_or_class_names_shows_nothing(store: StorePaths) -> None:
    run, ending = ended(store, 1)
    store.run(run.run_id).predictions.write_bytes(b"damaged")
    bare = ending_of(ending.record, store.run(run.run_id))
    assert bare.row(at_hand(40)) == {} and not any("class_accuracy" in name for name in bare.summary)
    nameless = replace(ending, record=replace(ending.record, details={}))
    assert nameless.row(at_hand(40)) == {}


def test_above_fifty_classes_there_is_no_matrix(store: StorePaths) -> None:
    many = [f"class {i}" for i in range(MATRIX_CLASSES + 1)]
    _, ending = ended(store, 1, class_names=many)
    assert "confusion_matrix" not in ending.row(nowhere)


def test_files_are_the_record_and_the_predictions(store: StorePaths) -> None:
    run, ending = ended(store)
    assert [path.name for path in ending.files] == ["record.json", "predictions.npz"]


def test_weights_are_referred_to_by_their_checksum_and_stay_where_they_are(store: StorePaths) -> None:
    run, ending = ended(store)
    paths = store.run(run.run_id)
    assert list(references(ending.record, paths)) == []
    paths.weights.write_bytes(b"weights")
    [artifact] = references(ending.record, paths)
    sha256 = durable.sha256_of(paths.weights)
    assert (artifact.type, artifact.metadata["sha256"]) == ("model", sha256)
    [entry] = artifact.manifest.entries.values()
    assert entry.ref == f"store:///runs/{run.run_id}/weights.pt#{sha256}"
    paths.weights.write_bytes(b"others")
    assert next(references(ending.record, paths)).digest != artifact.digest


def test_features_are_referred_to_by_the_key_they_are_stored_under(store: StorePaths) -> None:
    probe = spec(model="resnet18", phase="probe")
    run = extraction(probe.backbones[0], probe.dataset, ExtractSettings())
    splits: tuple[Split, ...] = ("train", "test")
    keys = {split: run.feature_key(run.backbones[0], split).digest for split in splits}
    record = RunRecord(run_id=run.run_id, spec=run, status="completed", details={"feature_keys": keys})
    train, test = references(record, store.run(run.run_id))
    assert (train.type, train.metadata["key"]) == ("features", keys["train"])
    [entry] = test.manifest.entries.values()
    assert entry.ref.startswith("cache:///features/") and entry.ref.endswith(f"resnet18-{keys['test']}.h5")


# -------------------------------------------------------------------------------- without pictures and names of files
def test_without_images_no_picture_is_shown_and_the_matrix_is(store: StorePaths) -> None:
    _, ending = ended(store, 3, 13, 5)
    assert set(replace(ending, images=False).row(at_hand(40))) == {"confusion_matrix"}


def test_files_that_name_no_picture_are_sent_as_they_are(store: StorePaths) -> None:
    run, ending = ended(store)
    paths = store.run(run.run_id)
    assert replace(ending, images=False).files == [paths.record, paths.predictions] == ending.files


def test_names_of_damaged_pictures_stay_here_and_all_else_is_the_same(store: StorePaths) -> None:
    inventory = {"damaged": 2, "damaged_files": ["train/cat/a.png", "train/cat/b.png"], "unused": ["raw"]}
    run, ending = ended(store, inventory=inventory)
    record, predictions = replace(ending, images=False).files
    own = durable.read_json(store.run(run.run_id).record)
    assert own["details"]["inventory"] == inventory
    own["details"]["inventory"] = {"damaged": 2}  # no names of pictures or folders
    assert durable.read_json(record) == own
    assert predictions == store.run(run.run_id).predictions


@pytest.mark.parametrize(
    ("kind", "failure_class", "is_sent"),
    [("image_folder", "data", False), ("image_folder", "cuda_oom", True), ("digits", "data", False)],
)
def test_a_message_that_may_name_a_file_stays_here(
    store: StorePaths, kind: str, failure_class: str, is_sent: bool
) -> None:
    run = spec(model="resnet18", phase="probe")
    run = replace(run, dataset=replace(run.dataset, kind=kind))
    message = "pictures/cat/secret.png cannot be read"
    record = RunRecord(
        run_id=run.run_id,
        spec=run,
        status="failed",
        failure_class=failure_class,
        error=message,
        remedy="mend secret.png",
    )
    paths = store.run(run.run_id)
    durable.make_folder(paths.root)
    records.write_record(paths, record)
    ending = ending_of(record, paths, images=False)
    [sent] = ending.files
    withheld = f"{failure_class}: the message may name files, so it stays in the store (tracking.images=true sends it)"
    assert ending.summary["error"] == durable.read_json(sent)["error"] == (message if is_sent else withheld)
    assert ("secret.png" in sent.read_text()) == is_sent
    assert replace(ending, images=True).summary["error"] == message


def ended_thread(module: str) -> None:
    """A thread of this module ends with an error."""
    scope: dict[str, Any] = {"__name__": module}
    exec("def lost():\n    raise ConnectionResetError('Connection lost')", scope)
    thread = threading.Thread(target=scope["lost"])
    thread.start()
    thread.join(10)


def test_within_a_session_wandbs_own_threads_end_without_a_traceback_and_others_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda ended: told.append(str(ended.exc_value)))
    with quiet_threads():
        ended_thread("wandb.sdk.wandb_run")
        assert told == []
        ended_thread("transfergrid.tracking.sync")
        assert told == ["Connection lost"]
    ended_thread("wandb.sdk.wandb_run")
    assert len(told) == 2
