"""An export is the run: load.py in a process of its own, model.pt2, model.onnx and predict.py give the same answers."""

from __future__ import annotations

import csv
import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from small_runs import carry_out, final_run, paths_of, request
from tiny_data import save_image

from transfergrid import data, export
from transfergrid.cli import predict
from transfergrid.config import Request
from transfergrid.config.predict import Format
from transfergrid.data import PictureRules
from transfergrid.data.preprocess import normalise, prepare_one
from transfergrid.errors import MachineError, ParityError
from transfergrid.export.inference import predict_files
from transfergrid.networks.finished import Reading, network_of_run
from transfergrid.networks.joined import Plain
from transfergrid.specs import PreprocessSpec

PAIR = "model=tinynet_mnist+tinynet_cifar"
CPU = torch.device("cpu")
FP32 = Reading("fp32", "running", 256)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store, a cache, and below `pictures` twenty of the digits' test images as PNG."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("export")
    pixels_NHWC = data.load("digits", split="test", data_dir=folder).array()
    for index in range(20):
        save_image(folder / "pictures" / f"{index:03d}.png", pixels_NHWC[index, ..., 0])
    return folder


def finished(place: Path, *arguments: str) -> Request:
    asked = request(place, *arguments)
    assert carry_out(asked) in ("completed", "reused")
    return asked


@pytest.fixture(scope="module")
def scratch(place: Path) -> Request:
    return finished(place, "model=tinynet", "phase=scratch")


def answer(monkeypatch: pytest.MonkeyPatch, place: Path, asked: Request, *arguments: str) -> int:
    """Exit code of predict.py for a run, in this process."""
    places = [f"store.dir={place / 'store'}", f"cache.dir={place / 'cache'}", "device=cpu", "cluster.num_threads=1"]
    monkeypatch.setattr("sys.argv", ["jobs/predict.py", f"run={final_run(asked).run_id}", *arguments, *places])
    return predict.main()


def probabilities_of_script(folder: Path, files: list[Path]) -> NDArray[np.float64]:
    """(N, C), as a user without this project gets them."""
    done = subprocess.run(
        [sys.executable, folder / "load.py", "--json", *files], capture_output=True, text=True, check=True, cwd="/"
    )
    return np.array([json.loads(line)["probabilities"] for line in done.stdout.splitlines()])


def probabilities_of_predict(output: Path, classes: list[str]) -> NDArray[np.float64]:
    with open(output, newline="") as file:
        rows = list(csv.DictReader(file))
    more = range(2, len(classes) + 1)
    names = [("predicted", "probability"), *((f"class_{k}", f"probability_{k}") for k in more)]
    ranked = [{row[name]: float(row[share]) for name, share in names} for row in rows]
    return np.array([[shares[name] for name in classes] for shares in ranked])


def assert_three_ways_agree(
    monkeypatch: pytest.MonkeyPatch, place: Path, asked: Request, pictures: Path, folder: Path, *more: str
) -> NDArray[np.float64]:
    """load.py, model.pt2 (fed by the run's own preprocessing) and predict.py, on every picture; returns theirs."""
    output = folder.with_suffix(".csv")
    files = sorted(path for path in pictures.rglob("*") if path.is_file())
    classes = json.loads((folder / "classes.json").read_text())
    given = (f"images={pictures}", f"output={output}", f"top_k={len(classes)}", *more)
    assert answer(monkeypatch, place, asked, *given) == 0
    predicted_NC = probabilities_of_predict(output, classes)
    script_NC = probabilities_of_script(folder, files)
    assert len(files) == 20 and predicted_NC.shape == script_NC.shape == (20, len(classes))
    assert np.abs(predicted_NC - script_NC).max() <= 1e-5
    if (folder / "model.pt2").exists():
        program = torch.export.load(folder / "model.pt2").module()
        run = final_run(asked)
        _, preprocess = network_of_run(run, paths_of(run, asked.runtime), asked.runtime)
        decoded = [np.asarray(Image.open(file).convert("RGB")) for file in files]
        fed = [
            normalise(torch.from_numpy(np.stack([prepare_one(d, spec) for d in decoded])), spec, prepared=True)
            for spec in preprocess
        ]
        with torch.no_grad():
            program_NC = program(*fed).double().softmax(1).numpy()
        assert np.abs(program_NC - script_NC).max() <= 1e-5
    return script_NC


SCRATCH = ("model=tinynet", "phase=scratch")
KINDS = {
    "direct": SCRATCH,
    "another size": (*SCRATCH, "dataset.image_size_px=16"),
    "by the picture": (*SCRATCH, "phase.scratch.normalise=image"),
    "native size": ("model=lenet5", "phase=scratch", "phase.scratch.normalise=image"),
    "probe": ("model=tinynet_cifar", "phase=probe"),
    "pair": (PAIR, "phase=finetune"),
}


@pytest.mark.slow  # the quick tests have the eight-way join below
@pytest.mark.parametrize("kind", KINDS)
def test_load_py_and_the_program_and_predict_agree(
    kind: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = finished(place, *KINDS[kind])
    folder = tmp_path / "export"
    assert answer(monkeypatch, place, asked, f"export={folder}") == 0
    assert "load.py gives the run's logits, largest difference " in capsys.readouterr().err
    names = ["README.md", "classes.json", "load.py", "model.pt2", "preprocessing.json", "weights.safetensors"]
    assert sorted(p.name for p in folder.iterdir()) == names
    assert_three_ways_agree(monkeypatch, place, asked, place / "pictures", folder)


@pytest.mark.slow
def test_a_faint_picture_is_taken_for_the_same_class_where_pictures_are_normalised_by_themselves(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two neighbouring grey levels: the rule for the deviation decides what the network sees."""
    asked = finished(place, *SCRATCH, "phase.scratch.normalise=image")
    folder, pictures = tmp_path / "export", tmp_path / "faint"
    assert answer(monkeypatch, place, asked, f"export={folder}") == 0
    for index in range(20):
        levels_HW = np.full((32, 32), 100, np.uint8)
        levels_HW[:, : index + 1] += 1
        save_image(pictures / f"{index:02d}.png", levels_HW)
    shares_NC = assert_three_ways_agree(monkeypatch, place, asked, pictures, folder)
    assert len({int(c) for c in shares_NC.argmax(1)}) > 1, "the pictures must not all look alike"


@pytest.mark.slow
def test_a_run_in_bfloat16_says_how_far_its_export_is_and_precision_fp32_predicts_as_that_does(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = finished(place, *SCRATCH, "phase.scratch.precision=bf16")
    folder = tmp_path / "export"
    assert answer(monkeypatch, place, asked, f"export={folder}") == 0
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(
        "the export computes in float32, the run in bf16: on the pictures of the check a probability"
    )
    assert "figures were computed in bf16" in (folder / "README.md").read_text()
    assert_three_ways_agree(monkeypatch, place, asked, place / "pictures", folder, "precision=fp32")


# ------------------------------------------------------------------------------------- every preprocessing, by the unit
def spec(**changes: Any) -> PreprocessSpec:
    usual = PreprocessSpec(
        mode="direct",
        resize_px=24,
        crop_px=24,
        interpolation="bilinear",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    return replace(usual, **changes)


class Pixels(torch.nn.Module):
    """Logits that are 40 pixels of each input itself: whatever reaches the network shows."""

    def forward(self, *images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        return torch.cat([x.flatten(1)[:, ::37][:, :40] for x in images], dim=1), []


RECIPE: dict[str, Any] = {"mode": "recipe", "resize_px": 29}
EVERY = (
    spec(),
    spec(interpolation="bicubic"),
    spec(**RECIPE),
    spec(**RECIPE, interpolation="bicubic"),
    spec(mode="recipe", resize_px=31, crop_px=26),  # an odd margin
    spec(normalise="image"),
    spec(**RECIPE, interpolation="bicubic", normalise="image"),
    spec(crop_px=23, resize_px=23, interpolation="bicubic", mean=(0, 0, 0)),
)


@pytest.mark.slow
def test_load_py_feeds_each_of_joined_networks_what_the_run_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every preprocessing there is, as one join; the folder is given as users do, relative to where they are.

    What the script answers is taken from the export's own check."""
    monkeypatch.chdir(tmp_path)
    folder, pictures = Path("export"), Path("pictures")
    deep = PictureRules(value_range=(0, 65535), orientation="exif")
    answers: list[tuple[list[str], NDArray[np.float32]]] = []
    logits_of_script = export.logits_of_script

    def kept(staging: Path, files: list[Path]) -> NDArray[np.float32]:
        answers.append(([file.name for file in files], logits_of_script(staging, files)))
        return answers[-1][1]

    monkeypatch.setattr(export, "logits_of_script", kept)
    made = export.export_network(
        Pixels(),
        EVERY,
        folder,
        names=[f"n{i}" for i in range(len(EVERY))],
        class_names=[f"c{i}" for i in range(40 * len(EVERY))],
        export_format="torch_export",
        reading=FP32,
        rules=deep,
    )
    assert made.largest_difference is not None and made.largest_difference <= 1e-6
    assert sorted(p.name for p in folder.iterdir()) == ["classes.json", "load.py", "model.pt2", "preprocessing.json"]
    pictures.mkdir()
    names = export.write_pictures(pictures, max(given.crop_px for given in EVERY))
    found = [p.logits_C for p in predict_files(Pixels(), EVERY, pictures, names, reading=FP32, rules=deep, device=CPU)]
    ((files, script_NC),) = answers
    assert files == names
    assert script_NC.shape == (11, 40 * len(EVERY)) and len(np.unique(script_NC)) > 1000
    np.testing.assert_allclose(script_NC, np.stack(found), atol=1e-6)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "instead"),
    [
        ('x.std((0, 1), dtype=np.float64) + how["flat_levels"]', "np.maximum(x.std((0, 1), ddof=1), 1)"),  # as it was
        ('Image.Resampling[how["interpolation"].upper()]', "Image.Resampling.NEAREST"),
        ("round((edge - side) / 2)", "(edge - side + 1) // 2 + 1"),
        ('opened().convert("RGB")', 'opened().convert("RGB").transpose(Image.Transpose.FLIP_LEFT_RIGHT)'),
        ('"preprocessing.json"', '"another.json"'),
    ],
)
def test_a_script_that_prepares_pictures_otherwise_fails_the_export(
    line: str, instead: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packaged = export._script().decode()
    assert line in packaged
    monkeypatch.setattr(export, "_script", lambda: packaged.replace(line, instead).encode())
    named: dict[str, Any] = {"names": ["n"], "class_names": [f"c{i}" for i in range(40)], "reading": FP32}
    by_picture = spec(mode="recipe", resize_px=31, crop_px=26, normalise="image")
    with pytest.raises(ParityError) as raised:
        export.export_network(
            Pixels(),
            (by_picture,),
            tmp_path / "export",
            export_format="torch_export",
            **named,
        )
    assert "gives other logits than the run" in str(raised.value) or "load.py does not run: " in str(raised.value)
    assert "\n" not in str(raised.value) and list((tmp_path / "export").iterdir()) == []


# ----------------------------------------------------------------------------------------------------------- the files
def test_exported_weights_are_the_networks_own_and_an_older_export_leaves_nothing_behind(
    place: Path, scratch: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    from transfergrid.networks.architectures import build

    run, folder = final_run(scratch), tmp_path / "export"
    folder.mkdir()
    for name in ("preprocessing.json", "load.py", "model.pt2", "model.onnx", "model.onnx.data", "classes.json"):
        (folder / name).write_text("older")
    assert answer(monkeypatch, place, scratch, f"export={folder}", "export_format=state_dict") == 0
    names = ["README.md", "classes.json", "preprocessing.json", "weights.safetensors"]
    assert sorted(p.name for p in folder.iterdir()) == names
    assert json.loads((folder / "classes.json").read_text()) == list("0123456789")
    state = load_file(folder / "weights.safetensors")
    own = torch.load(paths_of(run, scratch.runtime).weights, weights_only=True)
    assert all(torch.equal(state[name], value) for name, value in own.items()) and state.keys() == own.keys()
    build("tinynet", 10, 0).load_state_dict(state)
    assert "load_file" in (folder / "README.md").read_text()
    inputs = json.loads((folder / "preprocessing.json").read_text())["inputs"]
    assert [(i["name"], i["mode"], i["crop_px"], i["normalise"]) for i in inputs] == [
        ("tinynet", "direct", 32, "constants")
    ]


def test_a_program_that_gives_other_logits_is_refused(
    scratch: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = final_run(scratch)
    network, preprocess = network_of_run(run, paths_of(run, scratch.runtime), scratch.runtime)
    load = torch.export.load

    def shifted(file: object) -> object:
        program = load(file)  # type: ignore[arg-type]
        name = next(n for n in program.state_dict if n.endswith("bias"))
        with torch.no_grad():
            program.state_dict[name].add_(0.1)
        return program

    monkeypatch.setattr("torch.export.load", shifted)
    with pytest.raises(ParityError, match="the exported model.pt2 gives other logits than the run: they differ by"):
        exported(network, preprocess, tmp_path, "torch_export")
    assert list(tmp_path.iterdir()) == []


class Branches(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        return (images if images.sum() > 0 else -images).mean((2, 3)), []


@pytest.mark.parametrize("export_format", ["torch_export", "onnx"])
def test_a_network_that_torch_export_does_not_take_says_what_remains(export_format: Format, tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="torch.export does not take this network .*; give export_format=state_dict"):
        exported(Branches(), (spec(),), tmp_path, export_format)
    assert list(tmp_path.iterdir()) == []


def exported(
    network: torch.nn.Module, preprocess: tuple[PreprocessSpec, ...], folder: Path, export_format: Format
) -> export.Exported:
    names = [f"n{i}" for i in range(len(preprocess))]
    classes = list("0123456789")
    return export.export_network(
        network, preprocess, folder, names=names, class_names=classes, export_format=export_format, reading=FP32
    )


# ---------------------------------------------------------------------------------------------------------------- onnx
@pytest.mark.slow
def test_onnx_runs_without_torch_and_agrees_with_predict(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = finished(place, PAIR, "phase=finetune")
    folder = tmp_path / "export"
    assert answer(monkeypatch, place, asked, f"export={folder}", "export_format=onnx") == 0
    assert sorted(p.name for p in folder.iterdir()) == [
        *("README.md", "classes.json", "load.py", "model.onnx", "preprocessing.json")
    ]
    assert "it needs onnxruntime, numpy and Pillow. This is `load.py`" in (folder / "README.md").read_text()
    assert_three_ways_agree(monkeypatch, place, asked, place / "pictures", folder)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import load, numpy\n"
        "for n in (1, 2, 5): assert load.logits([load.decode(sys.argv[2])] * n).shape == (n, 10)\n"
        "print(sorted({'torch', 'transfergrid'} & set(sys.modules)))"
    )
    picture = place / "pictures" / "000.png"
    done = subprocess.run([sys.executable, "-c", code, folder, picture], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def check_onnx_at_every_batch(network: torch.nn.Module, size_px: int, tmp_path: Path) -> None:
    """Against the network, by onnxruntime itself, at batches that the file was not traced with, too."""
    import onnxruntime

    given = spec(crop_px=size_px, resize_px=size_px)
    made = exported(network, (given,), tmp_path, "onnx")
    assert "model.onnx" in made.files and made.largest_difference is not None
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    [taken] = session.get_inputs()
    assert taken.name == "images_0" and taken.shape[1:] == [3, size_px, size_px]
    for batch in (1, 2, 5, 7):
        images = torch.randn(batch, 3, size_px, size_px, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            expected_NC = network(images)[0]
        found_NC = session.run(None, {"images_0": images.numpy()})[0]
        assert found_NC.shape == expected_NC.shape == (batch, expected_NC.shape[1])
        np.testing.assert_allclose(found_NC, expected_NC.numpy(), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_onnx_of_a_small_network_takes_any_batch(tmp_path: Path) -> None:
    from transfergrid.networks.architectures import build

    check_onnx_at_every_batch(Plain(build("tinynet", 10, 0)).eval(), 32, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size_px"), [("resnet18", 64), ("shufflenet_v2_x0_5", 64), ("vit_b_16", 32)])
def test_onnx_of_torchvisions_networks_takes_any_batch(name: str, size_px: int, tmp_path: Path) -> None:
    import torchvision

    torch.manual_seed(0)
    if name == "vit_b_16":  # of the kind, made small
        made = torchvision.models.VisionTransformer(
            image_size=size_px, patch_size=16, num_layers=2, num_heads=4, hidden_dim=64, mlp_dim=128, num_classes=10
        )
        torch.nn.init.normal_(made.heads.head.weight)
    else:
        made = getattr(torchvision.models, name)(weights=None, num_classes=10)
    check_onnx_at_every_batch(Plain(made).eval(), size_px, tmp_path)


def test_without_the_extra_one_line_says_how_to_install_it(
    place: Path,
    scratch: Request,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else found(name))
    assert answer(monkeypatch, place, scratch, f"export={tmp_path / 'new'}", "export_format=onnx") == 2
    line = "error: export_format=onnx needs onnxruntime; install with: uv sync --extra onnx (or pip install"
    assert capsys.readouterr().err == f"{line} 'transfergrid[onnx]')\n" and not (tmp_path / "new").exists()


@pytest.mark.slow
def test_onnx_that_gives_other_logits_is_refused(
    scratch: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = final_run(scratch)
    network, preprocess = network_of_run(run, paths_of(run, scratch.runtime), scratch.runtime)
    monkeypatch.setattr(export, "TOLERANCE", {export.ONNX: -1.0})
    with pytest.raises(ParityError, match="the exported model.onnx gives other logits than the run"):
        exported(network, preprocess, tmp_path, "onnx")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------- photographs, digits
def real_pictures(folder: Path, kind: str, real_data_dir: Path) -> None:
    """Twenty: of MNIST as PNG, or the CIFAR-10 JPEGs, every second blown up and cut to another shape."""
    if kind == "mnist":
        pixels_NHWC = data.load("mnist", split="test", data_dir=real_data_dir).array()[:20]
        for index, image_HWC in enumerate(pixels_NHWC):
            save_image(folder / f"{index:02d}.png", image_HWC[..., 0])
        return
    for number, of_class in enumerate(sorted((real_data_dir / "cifar10-jpeg" / "test").iterdir())):
        for position, path in enumerate(sorted(of_class.iterdir())[:2]):
            picture = Image.open(path).convert("RGB")
            if position:
                picture = picture.resize((90 + 7 * number, 70)).crop((0, 3, 60 + 7 * number, 70 - number))
            save_image(folder / f"{number}-{position}.jpg", picture)


@pytest.mark.realdata
@pytest.mark.parametrize("normalised", ["constants", "image"])
@pytest.mark.parametrize("kind", ["mnist", "photographs"])
def test_on_real_pictures_the_three_ways_agree(
    kind: str, normalised: str, place: Path, real_data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [*SCRATCH, f"phase.scratch.normalise={normalised}", "dataset.max_images=200", f"data.dir={real_data_dir}"]
    if kind == "mnist":
        given.append("dataset=mnist")
    else:
        given += ["dataset=image_folder", f"dataset.folder={real_data_dir / 'cifar10-jpeg'}"]
    asked = finished(place, *given)
    real_pictures(tmp_path / "pictures", kind, real_data_dir)
    folder = tmp_path / "export"
    assert answer(monkeypatch, place, asked, f"export={folder}") == 0
    shares_NC = assert_three_ways_agree(monkeypatch, place, asked, tmp_path / "pictures", folder)
    assert np.ptp(shares_NC, axis=0).max() > 1e-3, "the pictures must not all look alike"


def test_the_pictures_of_the_check_are_of_every_kind(tmp_path: Path) -> None:
    """Modes, next to no contrast, EXIF orientation, 16 bits."""
    names = export.write_pictures(tmp_path, 40)
    modes, turned = set(), []
    for name in names:
        with Image.open(tmp_path / name) as opened:
            modes.add(opened.mode)
            turned += [name] if opened.getexif().get(0x112) == 6 else []
            if name == "faint.png":
                assert set(np.unique(np.asarray(opened))) == {120, 121}
    assert modes >= {"RGB", "L", "RGBA", "P", "CMYK", "I;16"} and turned == ["tall.jpg"]
