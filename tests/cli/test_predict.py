"""jobs/predict.py: a finished run on a folder of images, and its export, which must give the run's own logits."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from small_runs import carry_out, evaluate, final_run, paths_of, record_of, request
from tiny_data import random_images, save_image

from transfergrid import data
from transfergrid.cli import predict
from transfergrid.config import Request
from transfergrid.data._decode import AS_STORED, Picture, PictureRules, decoded
from transfergrid.errors import DataError
from transfergrid.export.inference import Predicted, csv_header, csv_row, predict_files
from transfergrid.networks.classes import match_classes
from transfergrid.networks.finished import Reading, network_of_run, reading_of
from transfergrid.report.analysis.statistics import wilson
from transfergrid.report.model_card import CardFacts, model_card
from transfergrid.store.records import read_predictions

PAIR = "model=tinynet_mnist+tinynet_cifar"
JOBS = Path(__file__).resolve().parents[2] / "jobs"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store, a cache, and below `pictures` the digits' test images as PNG, named by their index."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("predict")
    pixels_NHWC = data.load("digits", split="test", data_dir=folder).array()
    for index in range(len(pixels_NHWC)):
        save_image(folder / "pictures" / f"{index:03d}.png", pixels_NHWC[index, ..., 0])
    return folder


def finished(place: Path, *arguments: str) -> Request:
    asked = request(place, *arguments)
    assert carry_out(asked) in ("completed", "reused")
    return asked


@pytest.fixture(scope="module")
def scratch(place: Path) -> Request:
    return finished(place, "model=tinynet", "phase=scratch")


@pytest.fixture(scope="module")
def pair(place: Path) -> Request:
    return finished(place, PAIR, "phase=finetune")


def answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: Path, *arguments: str
) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the script, in this process."""
    places = [f"store.dir={place / 'store'}", f"cache.dir={place / 'cache'}", "device=cpu", "cluster.num_threads=1"]
    monkeypatch.setattr("sys.argv", ["jobs/predict.py", *arguments, *places])
    exit_code = predict.main()
    said = capsys.readouterr()
    return exit_code, said.out, said.err


def logits_of(asked: Request, folder: Path, files: list[str]) -> NDArray[np.float32]:
    run = final_run(asked)
    network, preprocess = network_of_run(run, paths_of(run, asked.runtime), asked.runtime)
    network = network.to(CPU, memory_format=torch.channels_last)  # type: ignore[call-overload]
    found = list(
        predict_files(network, preprocess, folder, files, reading=reading_of(run), rules=AS_STORED, device=CPU)
    )
    assert [p.file for p in found] == files
    return np.stack([p.logits_C for p in found if p.logits_C is not None])


# ------------------------------------------------------------------------------------------------------------- logits
@pytest.mark.parametrize(
    "arguments",
    [
        ["model=tinynet", "phase=scratch"],
        ["model=tinynet", "phase=scratch", "phase.scratch.precision=bf16", "dataset.image_size_px=16"],
        ["model=tinynet", "phase=scratch", "phase.scratch.test_bn=batch"],
        [PAIR, "phase=finetune"],
    ],
    ids=["scratch", "bf16 at another size", "BatchNorm by the batch", "pair"],
)
def test_the_same_images_as_png_give_the_stored_test_logits_to_the_bit(place: Path, arguments: list[str]) -> None:
    asked = finished(place, *arguments)
    stored = read_predictions(paths_of(final_run(asked), asked.runtime))["test"]
    found_NC = logits_of(asked, place / "pictures", [f"{index:03d}.png" for index in stored.index_N])
    assert np.array_equal(found_NC.astype(np.float16), stored.logits_NC)


@pytest.mark.parametrize(
    ("model", "settings", "warned"),
    [
        ("tinynet", ["phase.scratch.test_bn=batch"], True),
        ("tinynet", ["phase.scratch.test_bn=batch", "phase.scratch.micro_batch=1"], False),
        ("tinynet", [], False),
        ("lenet5", ["phase.scratch.test_bn=batch"], False),
    ],
    ids=["by the batch", "one image a batch", "running statistics", "no BatchNorm"],
)
def test_that_an_image_depends_on_its_batch_is_warned_of_in_one_line(
    place: Path,
    model: str,
    settings: list[str],
    warned: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = finished(place, f"model={model}", "phase=scratch", "phase.scratch.epochs=1", *settings)
    run = final_run(asked).run_id
    exit_code, out, err = answer(monkeypatch, capsys, place, f"run={run}", f"images={place / 'pictures'}")
    assert exit_code == 0 and out.startswith("file,predicted,")
    told = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert len(told) == warned
    assert all("depends on the other images in its batch; a batch holds 32 images that follow" in t for t in told)


def test_a_probe_gives_what_its_head_gave_on_cached_features_but_for_their_rounding(place: Path, pair: Request) -> None:
    probe = finished(place, PAIR, "phase=probe")
    assert final_run(probe).run_id in pair.runs
    stored = read_predictions(paths_of(final_run(probe), probe.runtime))["test"]
    found_NC = logits_of(probe, place / "pictures", [f"{index:03d}.png" for index in stored.index_N])
    np.testing.assert_allclose(found_NC, stored.logits_NC.astype(np.float32), atol=2e-2, rtol=1e-3)
    assert (found_NC.argmax(1) == stored.predicted_N).mean() >= 0.99


def test_few_images_are_in_memory_however_many_there_are(
    place: Path, scratch: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def noticed(path: Path, rules: PictureRules) -> AbstractContextManager[Picture]:
        read.append(path)
        return decoded(path, rules)

    monkeypatch.setattr("transfergrid.export.inference.decoded", noticed)
    run = final_run(scratch)
    network, preprocess = network_of_run(run, paths_of(run, scratch.runtime), scratch.runtime)
    files = [f"{index:03d}.png" for index in range(100)]
    reading = Reading("fp32", "running", 10)
    for done, _ in enumerate(
        predict_files(network, preprocess, place / "pictures", files, reading=reading, rules=AS_STORED, device=CPU),
        start=1,
    ):
        assert len(read) <= done + 2 * reading.batch_size
    assert len(read) == done == 100


# ---------------------------------------------------------------------------------------------------------------- csv
def test_a_row_holds_the_best_classes_with_their_probabilities() -> None:
    logits_C = np.log(np.array([0.1, 0.6, 0.3], dtype=np.float32))
    assert csv_header(1) == "file predicted probability error".split()
    assert csv_header(2) == "file predicted probability class_2 probability_2 error".split()
    row = csv_row(Predicted("a.png", logits_C, None), ["x", "y", "z"], top_k=2)
    assert row == ["a.png", "y", "0.600000", "z", "0.300000", ""]
    assert csv_row(Predicted("b.png", None, "torn"), ["x", "y", "z"], top_k=2) == ["b.png", *[""] * 4, "torn"]


def test_images_in_subfolders_are_predicted_and_unreadable_ones_named(
    place: Path,
    scratch: Request,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images = tmp_path / "mixed"
    for name, size in (("b.png", (8, 8)), ("sub/a.jpg", (40, 25)), ("sub/deep/c.webp", (5, 9))):
        save_image(images / name, Image.fromarray(random_images(size[1], size[0], 3)))
    (images / "sub" / "torn.png").write_bytes((images / "b.png").read_bytes()[:60])
    (images / "notes.txt").write_text("no image")
    output = tmp_path / "new" / "out.csv"
    run = f"run={final_run(scratch).run_id}"
    asked = (run, f"images={images}", f"output={output}", "top_k=3")
    exit_code, out, err = answer(monkeypatch, capsys, place, *asked)
    assert (exit_code, out) == (1, "")
    lines = err.splitlines()
    assert len(lines) == 3 and lines[0] == "not read: 1 .txt (as notes.txt)"
    assert lines[1].startswith("unreadable: ") and "sub/torn.png cannot be read" in lines[1]
    assert lines[2] == "1 image of 4 could not be read"
    with open(output, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == ["b.png", "sub/a.jpg", "sub/deep/c.webp", "sub/torn.png"]
    assert "cannot be read as an image" in rows[3]["error"] and rows[3]["predicted"] == ""
    for row in rows[:3]:
        assert row["predicted"] in set("0123456789") and row["error"] == "" and "class_1" not in row
        shares = [float(row[name]) for name in ("probability", "probability_2", "probability_3")]
        assert shares == sorted(shares, reverse=True) and 0.1 <= shares[0] < 1
    assert [p.name for p in output.parent.iterdir()] == ["out.csv"]


def test_without_output_the_csv_goes_to_standard_output_and_a_run_may_be_given_as_its_folder(
    place: Path, scratch: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_image(tmp_path / "images" / "a.png", random_images(8, 8))
    run = paths_of(final_run(scratch), scratch.runtime).root
    exit_code, out, err = answer(monkeypatch, capsys, place, f"run={run}", f"images={tmp_path / 'images'}")
    assert (exit_code, err) == (0, "")
    header, row = out.splitlines()
    assert header.endswith("class_5,probability_5,error") and row.startswith("a.png,")


@pytest.mark.parametrize(
    ("images", "files"),
    [
        ("pictures/007.png", ["007.png"]),
        ("pictures/00[1-3].png", ["001.png", "002.png", "003.png"]),
        ("**/00[12].png", ["001.png", "002.png"]),
        ("notes.txt", ["notes.txt"]),
    ],
)
def test_a_file_and_a_pattern_give_the_row_that_the_folder_gives_and_what_is_no_picture_is_named(
    place: Path,
    scratch: Request,
    images: str,
    files: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    (place / "notes.txt").write_text("no picture")
    beginning = final_run(scratch).run_id[:-3]  # no other run's id has it
    exit_code, out, err = answer(monkeypatch, capsys, place, f"run={beginning}", f"images={images}")
    rows = out.splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == files and exit_code == (images == "notes.txt")
    assert ("unreadable" in err) == (images == "notes.txt")
    _, whole, _ = answer(monkeypatch, capsys, place, f"run={final_run(scratch).run_id}", "images=pictures")
    if images != "notes.txt":
        assert set(rows) <= set(whole.splitlines())


# ------------------------------------------------------------------------------------------------------ bad arguments
@pytest.mark.parametrize(
    ("arguments", "telling"),
    [
        ([], "run= is needed"),
        (["run=RUN"], "give images=DIR, export=DIR or both"),
        (["run=RUM", "images=pictures"], "did you mean"),
        (["run=../x", "images=pictures"], "is neither a run's folder nor in"),
        (["run=EVALUATION", "images=pictures"], "is of phase evaluate; give one of probe, finetune or scratch"),
        (["run=FAILED", "images=pictures"], "has failed (data: torn)"),
        (["run=UNFINISHED", "images=pictures"], "has not finished"),
        (["run=RUN", "images=nowhere"], "images='nowhere' is no file, no folder, and no pattern that matches a file"),
        (["run=RUN", "images=pic*"], "images='pic*' is no file, no folder, and no pattern that matches a file"),
        (["run=RUN", "images=empty"], "images='empty' holds no images; wanted files ending in .jpg"),
        (["run=RUN", "images=pictures", "top_k=11"], "top_k=11 is not a whole number from 1 to 10"),
        (["run=RUN", "images=pictures", "top_k=0"], "top_k=0"),
        (["run=RUN", "images=pictures", "topk=3"], "unknown key 'topk'; did you mean 'top_k'?"),
        (["run=RUN", "images=pictures", "images=pictures"], "'images' is given twice"),
        (["run=RUN", "images=pictures", "export_format=onnx"], "export_format= goes with export=DIR"),
        (["run=RUN", "export=new", "precision=fp32"], "precision= goes with images=DIR"),
        (["run=RUN", "images=pictures", "precision=bf16"], "precision='bf16' is not one of run, fp32"),
        (["run=RUN", "export=new", "export_format=tensorflow"], "not one of all, state_dict, torch_export, onnx"),
        (["run=RUN", "export=new", "top_k=2"], "top_k= goes with images=DIR"),
        (["run=RUN", "export=pictures"], "export='pictures' holds other files; give a new folder"),
        (["run=RUN", "export=a_file/new"], "a_file is a file, where a folder is needed"),
        (["run=RUN", "images=pictures", "output=empty"], "output='empty' is a folder"),
        (["run=RUN", "images=pictures", "weights_files.vgg16=a_file"], "the run has no such backbone; it has: none"),
        (["run=RUN", "images"], "'images' is not of the form key=value"),
        (["run=RUN", "images="], "'images=' is empty"),
    ],
)
def test_what_makes_no_sense_gets_one_line_and_exit_code_2(
    place: Path,
    scratch: Request,
    arguments: list[str],
    telling: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    (place / "empty").mkdir(exist_ok=True)
    (place / "a_file").write_text("")
    run = final_run(scratch).run_id
    names = {
        "EVALUATION": "evaluation",
        "UNFINISHED": "unfinished",
        "FAILED": "failed",
        "RUN": run,
        "RUM": f"{run[:-1]}z",
    }
    record = json.loads(paths_of(final_run(scratch), scratch.runtime).record.read_text())
    evaluation = request(place, "phase=evaluate", f"run={run}")
    others = {
        "failed": record | {"status": "failed", "failure_class": "data", "error": "torn"},
        "evaluation": record | {"spec": json.loads(_spec_json(evaluation))},
    }
    for name in ("failed", "evaluation", "unfinished"):
        folder = place / "store" / "runs" / name
        folder.mkdir(exist_ok=True)
        (folder / "spec.json").write_text("{}")
        if name in others:
            (folder / "record.json").write_text(json.dumps(others[name]))
    filled = [f"run={names.get(a[4:], a[4:])}" if a.startswith("run=") else a for a in arguments]
    exit_code, out, err = answer(monkeypatch, capsys, place, *filled)
    assert (exit_code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and telling in err, err
    assert not (place / "new").exists()


def _spec_json(asked: Request) -> str:
    from transfergrid.specs import canonical_json

    return canonical_json(final_run(asked))


def test_a_probe_whose_backbone_came_from_a_file_asks_for_that_file(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transfergrid.networks.backbones import builtin_file

    weights = tmp_path / "mine.pt"
    weights.write_bytes(builtin_file("tinynet_mnist").read_bytes())
    probe = finished(place, "model=tinynet_mnist", "phase=probe", f"weights={weights}")
    moved = weights.rename(tmp_path / "moved.pt")
    save_image(tmp_path / "images" / "a.png", random_images(8, 8))
    asked = (f"run={final_run(probe).run_id}", f"images={tmp_path / 'images'}")
    exit_code, _, err = answer(monkeypatch, capsys, place, *asked)
    assert exit_code == 1 and "give weights_files.tinynet_mnist=FILE" in err
    assert answer(monkeypatch, capsys, place, *asked, f"weights_files.tinynet_mnist={moved}")[0] == 0


def test_the_script_answers_help_and_refuses_nonsense_without_loading_torch() -> None:
    code = (
        "import sys; sys.argv = ['predict.py', sys.argv[1]]\n"
        "from transfergrid.cli.predict import main\n"
        "code = main(); print('torch' in sys.modules, code)"
    )
    for argument, ending in (("--help", "False 0"), ("run=nothing", "False 2")):
        done = subprocess.run([sys.executable, "-c", code, argument], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == ending
    done = subprocess.run([sys.executable, JOBS / "predict.py", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: python jobs/predict.py key=value ...") and "exit codes: 0" in done.stdout


# ---------------------------------------------------------------------------------------------------------- model card
FACTS = CardFacts(
    class_names=tuple("0123456789"), files=("model.pt2",), largest_difference=1e-6, script="print()\n", arguments=()
)


def test_the_card_holds_accuracy_with_its_interval_classes_settings_and_commands(pair: Request) -> None:
    run = final_run(pair)
    record, paths = record_of(run, pair.runtime), paths_of(run, pair.runtime)
    card = model_card(record, paths, FACTS)
    correct = round(record.metrics["test_accuracy"] * 100)
    low, high = wilson(correct, 100)
    assert f"| test accuracy | {correct}.00 % [{100 * low:.2f}, {100 * high:.2f}] |" in card
    assert (
        "One network, of seed 0, on 100 test images" in card
        and "| trained on | 90 images (max_images 100 per split) |" in card
    )
    test = read_predictions(paths)["test"]
    recall = (test.predicted_N == 7)[test.label_N == 7].mean()
    scores = card[card.index("## Scores per class") :]
    row = next(line for line in scores.splitlines() if line.startswith("| 7 | 10 |"))
    assert row.split(" | ")[3] == f"{100 * recall:.2f}"
    for words in (f"python jobs/run_phase.py again={run.run_id}", "head_lr | 0.02"):
        assert words in card
    assert "builtin: shipped with transfergrid" in card and "expected calibration error" in card
    assert record.provenance["code_hash"] in card


def test_the_card_says_in_which_classes_the_network_fails_and_on_what_else_it_was_tried(
    place: Path, pair: Request
) -> None:
    run = final_run(pair)
    record, paths = record_of(run, pair.runtime), paths_of(run, pair.runtime)
    test = read_predictions(paths)["test"]
    right_N = test.predicted_N == test.label_N
    worst = min(range(10), key=lambda c: right_N[test.label_N == c].mean())
    recall = right_N[test.label_N == worst].mean()
    card = model_card(record, paths, FACTS)
    fails = card[card.index("## Where it fails") : card.index("## Scores per class")]
    assert f"It was tested on the 100 test images of digits. It gets {right_N.sum()} right, which is" in fails
    assert f"| {worst} | {(test.label_N == worst).sum()} | {100 * recall:.2f} |" in fails.split("| --- ")[1]
    wrong = [(t, p) for t, p in zip(test.label_N.tolist(), test.predicted_N.tolist(), strict=True) if t != p]
    true, predicted = max(sorted(set(wrong)), key=wrong.count)
    assert f"- It takes {wrong.count((true, predicted))} of 10 images of {true} for {predicted}." in fails
    assert "No other data was tried in the store of this run." in fails and "also tried" not in fails

    grouped = model_card(replace(record, details={**record.details, "test_groups": 5}), paths, FACTS)
    assert (
        "100 test images of digits, which come from 5 groups. It gets" in grouped and "% [not judged], and" in grouped
    )

    for index in range(3):
        save_image(place / "second" / "test" / "7" / f"{index}.png", random_images(8, 8))
    second = ["dataset=image_folder", f"dataset.folder={place / 'second'}", "dataset.max_images=null"]
    asked = evaluate(place, f"run={run.run_id}", *second)
    accuracy = record_of(final_run(asked), asked.runtime).metrics["test_accuracy"]
    low, high = wilson(round(3 * accuracy), 3)
    line = f"| second | 3 | {100 * accuracy:.2f} [{100 * low:.2f}, {100 * high:.2f}] | 7 ({100 * accuracy:.2f} %) |"
    assert line in model_card(record, paths, FACTS)


def test_a_card_without_predictions_says_so_and_names_are_no_markup(scratch: Request) -> None:
    run = final_run(scratch)
    record, paths = record_of(run, scratch.runtime), paths_of(run, scratch.runtime)
    odd = replace(record, spec=replace(run, dataset=replace(run.dataset, name='"><img src=x> ``` # [a](b)|')))
    facts = replace(FACTS, arguments=("export=<img src=x> ```",))
    card = model_card(odd, paths.__class__(paths.root.with_name("gone")), facts)
    assert "The stored predictions cannot be read: no calibration, no scores per class." in card
    prose, commands = card.split("````sh\n")
    commands, provenance = commands.split("\n````\n")
    assert "<img" in commands and "<img" not in prose + provenance
    assert "\\[a](b)\\|" in prose


# ------------------------------------------------------------------------------------------------------------- classes
def test_classes_are_matched_by_name() -> None:
    assert match_classes(["a", "b", "c"], ["c", "a"], run_id="r", dataset="d").tolist() == [2, 0]
    with pytest.raises(DataError, match="d has 'x', which run='r' does not know; it knows 'a', 'b'"):
        match_classes(["a", "b"], ["a", "x"], run_id="r", dataset="d")
