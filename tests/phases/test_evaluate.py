"""Evaluation of what is finished: a run, a checkpoint file, a backbone with its own head."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backbone_files import reference
from rich.console import Console
from small_runs import carry_out, evaluate, final_run, paths_of, record_of, request, rows_of_csv
from tiny_data import save_image

from transfergrid import data
from transfergrid.cli.console import make_console
from transfergrid.cli.evaluations import show_evaluations
from transfergrid.cli.grid_file import write_grid_of
from transfergrid.cli.screen import show_results
from transfergrid.config import Request
from transfergrid.data.preprocess import ImageSource
from transfergrid.errors import ConfigError
from transfergrid.report.analysis.comparison import read_comparison
from transfergrid.store.records import read_predictions
from transfergrid.training import evaluation

SCRATCH = ["model=tinynet", "phase=scratch"]


# --------------------------------------------------------------------------------------------------------- evaluations
@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Request]:
    """A folder with a finished scratch run, and its request."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained")
    asked = request(folder, *SCRATCH, "dataset.max_images=200")
    assert carry_out(asked) == "completed"
    return folder, asked


def test_a_finished_run_scores_as_its_own_record_says(trained: tuple[Path, Request]) -> None:
    folder, scratch = trained
    run = final_run(scratch)
    asked = evaluate(folder, f"run={run.run_id}", "dataset.max_images=200")
    found, own = record_of(final_run(asked), asked.runtime), record_of(run, scratch.runtime)
    for name in ("test_accuracy", "test_macro_f1", "test_loss", "test_top5_accuracy"):
        assert found.metrics[name] == pytest.approx(own.metrics[name], rel=1e-6)
    assert (found.parameters, found.trainable_parameters, found.n_train) == (own.parameters, 0, None)
    assert found.details == {
        "source": f"run:{run.run_id}",
        "n_test": 200,
        "class_names": list("0123456789"),
        "top1_error": pytest.approx(1 - own.metrics["test_accuracy"]),
        "top5_error": pytest.approx(1 - own.metrics["test_top5_accuracy"]),
    }


def test_a_part_of_its_id_names_the_finished_run_and_the_whole_id_stands_everywhere(
    trained: tuple[Path, Request],
) -> None:
    folder, scratch = trained
    run_id = final_run(scratch).run_id
    by_id = request(folder, "phase=evaluate", f"run={run_id}", "dataset.max_images=200")
    for part in (run_id[:-3], run_id[-12:]):
        by_part = request(folder, "phase=evaluate", f"run={part}", "dataset.max_images=200")
        assert by_part.configurations == by_id.configurations and by_part.runs == by_id.runs
    (row,) = by_id.configurations
    assert row.variant.startswith(f"run-{run_id[-12:]}") and row.run.needs == (run_id,)
    other = folder / "store" / "runs" / f"{run_id[:-12]}{'0' * 12}"
    other.mkdir()
    try:
        assert request(folder, "phase=evaluate", f"run={run_id[:-12]}", "dataset.max_images=200").runs == by_id.runs
        (other / "spec.json").write_text("{}")
        with pytest.raises(ConfigError, match=f"is a part of several runs: {other.name}, {run_id}$"):
            request(folder, "phase=evaluate", f"run={run_id[:-12]}")
    finally:
        shutil.rmtree(other)


def test_every_prediction_stands_in_the_csv_with_its_probability(trained: tuple[Path, Request]) -> None:
    folder, scratch = trained
    asked = evaluate(folder, f"run={final_run(scratch).run_id}", "dataset.max_images=200")
    rows = rows_of_csv(asked)
    stored = read_predictions(paths_of(final_run(asked), asked.runtime))["test"]
    assert list(rows[0]) == ["file", "index", "label", "predicted", "probability"]
    assert {row["file"] for row in rows} == {""}  # digits lie in no files of their own
    assert [int(row["index"]) for row in rows] == stored.index_N.tolist()
    assert [int(row["label"]) for row in rows] == stored.label_N.tolist()
    assert [int(row["predicted"]) for row in rows] == stored.predicted_N.tolist()
    expected_N = torch.softmax(torch.from_numpy(stored.logits_NC).double(), 1).amax(1)
    np.testing.assert_allclose([float(row["probability"]) for row in rows], expected_N, atol=2e-3)
    right = np.mean([row["label"] == row["predicted"] for row in rows])
    assert right == record_of(final_run(asked), asked.runtime).metrics["test_accuracy"]


def test_the_terminal_and_the_report_tell_which_classes_are_taken_for_which(trained: tuple[Path, Request]) -> None:
    folder, scratch = trained
    asked = evaluate(folder, f"run={final_run(scratch).run_id}", "dataset.max_images=200")
    on_val = evaluate(folder, f"run={final_run(scratch).run_id}", "phase.evaluate.split=val", "dataset.max_images=200")
    rows = rows_of_csv(asked)
    written = io.StringIO()
    console = Console(file=written, width=80, markup=False, emoji=False)
    for one in (asked, on_val):
        write_grid_of(make_console(), one)
    show_results(console, asked)
    show_evaluations(console, read_comparison("adhoc", asked.store), [final_run(on_val).run_id])
    said = written.getvalue()
    right = sum(row["label"] == row["predicted"] for row in rows)
    assert f"\n{right} of 200 test images right: {right / 2:.1f} [" in said
    wrong = next(row for row in rows if row["label"] != row["predicted"])
    count = sum((row["label"], row["predicted"]) == (wrong["label"], wrong["predicted"]) for row in rows)
    line = next(x for x in said.splitlines() if x.startswith(wrong["label"]) and len(x.split()) == 11)
    assert line.split()[1 + int(wrong["predicted"])] == str(count)
    tables_of = said[said.index("Images, true classes in rows:") : said.index("every image")]
    assert "Classes, the worst first:" in tables_of and max(map(len, tables_of.splitlines())) <= 80
    assert f"every image with its prediction: {paths_of(final_run(asked), asked.runtime).predictions_csv}" in said
    val = [row["label"] == row["predicted"] for row in rows_of_csv(on_val)]
    assert f"{sum(val)} of 20 val images right: {100 * sum(val) / 20:.2f} %" in said

    markdown = (asked.store.report("adhoc") / "comparison.md").read_text()
    section = markdown[markdown.index("## Which classes an evaluation gets wrong") :]
    assert f"{right} of 200 test images right" in section and f"| {' | '.join(line.split())} |" in section


@pytest.mark.parametrize(("split", "rows"), [("val", 20), ("train", 200)])
def test_other_splits_are_named_in_the_scores(trained: tuple[Path, Request], split: str, rows: int) -> None:
    folder, scratch = trained
    run = final_run(scratch)
    asked = evaluate(folder, f"run={run.run_id}", f"phase.evaluate.split={split}", "dataset.max_images=200")
    metrics = record_of(final_run(asked), asked.runtime).metrics
    assert {name.split("_")[0] for name in metrics} == {split} and len(rows_of_csv(asked)) == rows
    if split == "val":  # the images that training held out, by the same seed
        assert metrics["val_accuracy"] == record_of(run, scratch.runtime).metrics["val_accuracy"]


def test_a_checkpoint_file_scores_as_the_run_it_came_from(trained: tuple[Path, Request], tmp_path: Path) -> None:
    folder, scratch = trained
    weights = paths_of(final_run(scratch), scratch.runtime).weights
    named = ["model=tinynet", f"phase.evaluate.checkpoint={weights}", "dataset.max_images=200"]
    asked = evaluate(tmp_path, *named)
    found = record_of(final_run(asked), asked.runtime)
    own = record_of(final_run(scratch), scratch.runtime)
    assert found.metrics["test_accuracy"] == own.metrics["test_accuracy"]
    assert str(found.details["source"]).startswith("file:")


def test_a_backbone_with_its_own_head_is_the_network_in_the_file(tmp_path: Path) -> None:
    network = reference("resnet18", num_classes=10)
    path = tmp_path / "resnet18_digits.pth"
    torch.save(network.state_dict(), path)
    asked = evaluate(tmp_path, "model=resnet18", f"phase.evaluate.checkpoint={path}")
    found = read_predictions(paths_of(final_run(asked), asked.runtime))["test"]

    from transfergrid.data.batches import NetworkInputs
    from transfergrid.data.folds import open_splits

    run = final_run(asked)
    inputs = NetworkInputs(
        open_splits(run.dataset, asked.runtime),
        (run.backbones[0].preprocess,),
        device=torch.device("cpu"),
        resident_gb=1.0,
        rows={"test": found.index_N},
    )
    with torch.no_grad():
        expected_NC = network(inputs.batch("test", torch.from_numpy(found.index_N))[0])
    np.testing.assert_allclose(found.logits_NC, expected_NC, rtol=2**-10, atol=1e-3)
    metrics = record_of(run, asked.runtime).metrics
    assert metrics["test_top5_accuracy"] == evaluation.top_k_accuracy(expected_NC.numpy(), found.label_N, k=5)
    assert metrics["test_accuracy"] == (expected_NC.argmax(1).numpy() == found.label_N).mean()


@pytest.mark.slow
def test_a_fine_tuned_join_is_evaluated_by_its_run(tmp_path: Path) -> None:
    tuned = request(tmp_path, "model=mobilenet_v3_small+shufflenet_v2_x0_5", "weights=random", "phase=finetune")
    assert carry_out(tuned) == "completed"
    for run in tuned.runs.values():  # the probe and the fine-tuning
        asked = evaluate(tmp_path, f"run={run.run_id}")
        found = record_of(final_run(asked), asked.runtime).metrics
        own = record_of(run, tuned.runtime).metrics
        assert found["test_accuracy"] == own["test_accuracy"]
        assert found["test_loss"] == pytest.approx(own["test_loss"], rel=2e-3)


def test_a_head_with_other_classes_than_the_data_set_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "resnet18_seven.pth"
    torch.save(reference("resnet18", num_classes=7).state_dict(), path)
    asked = request(tmp_path, "phase=evaluate", "model=resnet18", f"phase.evaluate.checkpoint={path}")
    assert carry_out(asked) == "failed"
    record = record_of(final_run(asked), asked.runtime)
    assert (record.failure_class, record.error) == ("data", "resnet18 has 7 classes, digits has 10")


# ------------------------------------------------------------------------------------------------------ other folders
def digits_folder(folder: Path, classes: str, *, names: dict[str, str] | None = None) -> Path:
    """test/<class>/<index>.png of the digits' test images of these classes, under other names where `names` says so."""
    images = data.load("digits", split="test", data_dir=folder)
    pixels_NHWC = images.array()
    for index, label in enumerate(images.labels_N.tolist()):
        if str(label) in classes:
            name = (names or {}).get(str(label), str(label))
            save_image(folder / "test" / name / f"{index:03d}.png", pixels_NHWC[index, ..., 0])
    return folder


def test_classes_of_a_folder_are_found_by_name_in_whatever_order_they_sort(
    trained: tuple[Path, Request], tmp_path: Path
) -> None:
    """Three of ten classes, in a folder with test/ alone: place 0 of the folder is class 3 of the run."""
    folder, scratch = trained
    run = final_run(scratch)
    pictures = digits_folder(tmp_path / "threes", "359")
    where = ["dataset=image_folder", f"dataset.folder={pictures}", "dataset.max_images=null"]
    asked = evaluate(folder, f"run={run.run_id}", *where)
    whole = evaluate(folder, f"run={run.run_id}", "dataset.max_images=null")
    found, everything = (read_predictions(paths_of(final_run(a), a.runtime))["test"] for a in (asked, whole))
    by_index = {int(i): row for i, row in zip(everything.index_N, everything.logits_NC, strict=True)}
    files = sorted((pictures / "test").rglob("*.png"))
    assert [int(f.parent.name) for f in files] == found.label_N.tolist()
    # Batches of other images, so sums may round otherwise.
    np.testing.assert_allclose(found.logits_NC, [by_index[int(f.stem)] for f in files], atol=2e-3)
    assert set(found.label_N.tolist()) == {3, 5, 9} and found.logits_NC.shape == (len(files), 10)
    record = record_of(final_run(asked), asked.runtime)
    assert record.details["class_names"] == list("0123456789")
    assert record.metrics["test_accuracy"] == (found.predicted_N == found.label_N).mean()
    assert {row["label"] for row in rows_of_csv(asked)} == {"3", "5", "9"}
    assert [pictures / row["file"] for row in rows_of_csv(asked)] == files


def test_a_folder_with_a_class_that_the_run_does_not_know_is_refused_by_its_name(
    trained: tuple[Path, Request], tmp_path: Path
) -> None:
    folder, scratch = trained
    pictures = digits_folder(tmp_path / "odd", "012", names={"1": "one", "2": "two"})
    with pytest.raises(ConfigError, match="odd has 'one', 'two', which run='digits-tinynet.*' does not know; it knows"):
        request(
            folder,
            "phase=evaluate",
            f"run={final_run(scratch).run_id}",
            "dataset=image_folder",
            f"dataset.folder={pictures}",
        )


def test_ten_other_classes_are_not_the_same_ten(trained: tuple[Path, Request]) -> None:
    folder, scratch = trained
    with pytest.raises(ConfigError, match="cifar10 has 'airplane', 'automobile'.* and 4 more, which run="):
        request(folder, "phase=evaluate", f"run={final_run(scratch).run_id}", "dataset=cifar10")


def test_a_folder_without_train_serves_evaluation_only_and_says_which_splits_it_has(
    trained: tuple[Path, Request], tmp_path: Path
) -> None:
    folder, scratch = trained
    where = ["dataset=image_folder", f"dataset.folder={digits_folder(tmp_path / 'd', '01')}"]
    for phase in ("phase=probe", "phase=extract"):
        with pytest.raises(ConfigError, match="d has no train/<class>/.*; without it d serves evaluate alone"):
            request(folder, "model=tinynet_mnist", phase, *where)
    with pytest.raises(ConfigError, match="split=val: d has no such split; it has: test"):
        request(
            folder,
            "phase=evaluate",
            f"run={final_run(scratch).run_id}",
            "phase.evaluate.split=val",
            *where,
        )


def test_a_fine_tuning_is_evaluated_without_the_files_it_started_from(tmp_path: Path) -> None:
    start = tmp_path / "start.pth"
    torch.save(reference("shufflenet_v2_x0_5", num_classes=3).state_dict(), start)
    named = ["model=shufflenet_v2_x0_5", "phase=finetune", "phase.finetune.head=random", f"weights={start}"]
    tuned = request(tmp_path, *named, "phase.finetune.epochs=1", "dataset.max_images=60")
    assert carry_out(tuned) == "completed"
    start.unlink()
    asked = evaluate(tmp_path, f"run={final_run(tuned).run_id}", "dataset.max_images=60")
    own, found = (record_of(final_run(a), a.runtime).metrics["test_accuracy"] for a in (tuned, asked))
    assert own == found


@pytest.mark.slow
def test_the_weights_of_a_fine_tuned_backbone_are_a_checkpoint_like_any_other(tmp_path: Path) -> None:
    named = ["model=mobilenet_v3_small", "dataset.max_images=60"]
    tuned = request(tmp_path, *named, "weights=random", "phase=finetune", "phase.finetune.head=random")
    assert carry_out(tuned) == "completed"
    weights = paths_of(final_run(tuned), tuned.runtime).weights
    asked = evaluate(tmp_path, *named, f"phase.evaluate.checkpoint={weights}")
    own, found = (record_of(final_run(a), a.runtime).metrics for a in (tuned, asked))
    assert found["test_loss"] == pytest.approx(own["test_loss"], rel=1e-5)


def test_an_evaluation_keeps_no_image_longer_than_its_batch(
    trained: tuple[Path, Request], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[ImageSource] = []
    build = ImageSource.__init__

    def noticed(source: ImageSource, *arguments: Any, **named: Any) -> None:
        build(source, *arguments, **named)
        made.append(source)

    monkeypatch.setattr(ImageSource, "__init__", noticed)
    folder, scratch = trained
    where = ["dataset=image_folder", f"dataset.folder={digits_folder(tmp_path / 'kept', '04')}"]
    evaluate(folder, f"run={final_run(scratch).run_id}", *where, "dataset.max_images=null")
    assert [source.resident for source in made] == [False]


def test_a_run_without_its_weights_says_how_to_make_them_again(tmp_path: Path) -> None:
    scratch = request(tmp_path, *SCRATCH, "keep_weights=none")
    assert carry_out(scratch) == "completed"
    paths = paths_of(final_run(scratch), scratch.runtime)
    assert not paths.weights.exists()
    asked = request(tmp_path, "phase=evaluate", f"run={final_run(scratch).run_id}")
    assert carry_out(asked) == "failed"
    record = record_of(final_run(asked), asked.runtime)
    assert record.failure_class == "blocked" and str(record.error).endswith("were not kept")
    assert record.remedy == f"delete {paths.record} and launch with keep_weights=final"


def test_a_run_read_with_batch_statistics_is_evaluated_with_them_too(tmp_path: Path) -> None:
    trained = request(tmp_path, "phase=scratch", "model=tinynet", "phase.scratch.test_bn=batch")
    assert carry_out(trained) == "completed"
    run_id = final_run(trained).run_id
    again = request(tmp_path, "phase=evaluate", f"run={run_id}")
    assert carry_out(again) == "completed"
    own, found = (record_of(final_run(asked), asked.runtime).metrics for asked in (trained, again))
    assert found["test_accuracy"] == own["test_accuracy"] and found["test_loss"] == own["test_loss"]


@pytest.mark.slow
def test_auxiliary_heads_of_a_probe_may_be_dropped_by_its_finetuning_and_count_in_no_size(tmp_path: Path) -> None:
    arguments = [
        "model=googlenet",
        "weights=random",
        "phase.probe.source=images",
        "phase.probe.bn=train",
        "phase.probe.lrs=[0.001]",
        "phase.probe.weight_decays=[0]",
        "phase.probe.aux_loss_weight=0.3",
        "phase.probe.epochs=1",
        "phase.finetune.epochs=1",
        "dataset.max_images=60",
    ]
    asked = request(tmp_path, "phase=finetune", *arguments)
    assert carry_out(asked) == "completed"
    probe, finetune = (record_of(run, asked.runtime) for run in asked.runs.values())
    assert probe.parameters == finetune.parameters == 5_599_904 + 1024 * 10 + 10
    assert (probe.trainable_parameters, finetune.trainable_parameters) == (1024 * 10 + 10, finetune.parameters)
