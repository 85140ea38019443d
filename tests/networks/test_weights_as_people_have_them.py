"""One state dict in many files: what holds the trunk under names loads, bit by bit; the rest is refused in one line."""

from __future__ import annotations

import io
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import checkpoint_shapes as shapes
import pytest
import torch
from backbone_files import from_file, images, reference, spec_of
from torch import Tensor, nn

from transfergrid.errors import ConfigError, DataError, GridError
from transfergrid.networks import backbones
from transfergrid.networks.backbones.build import build, build_classifier
from transfergrid.networks.backbones.match_names import Match, find_state
from transfergrid.networks.backbones.state_dicts import read_content
from transfergrid.networks.backbones.weight_files import Taken, identity_of


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4)


class SmallResNet(nn.Module):
    """The names of a ResNet with four channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(Block(), Block())
        self.layer2 = nn.Sequential(Block())
        self.fc = nn.Linear(4, 3)


def small_state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {k: torch.randn_like(v) if v.is_floating_point() else v for k, v in SmallResNet().state_dict().items()}


STATE = small_state()
TRUNK = shapes.headless(STATE)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return shapes.files(STATE, tmp_path_factory.mktemp("shapes"))


def found_in(path: Path) -> Match:
    return find_state(read_content(path), TRUNK, path=path, ignored=("fc.",))


NAMES = [
    *shapes.SAVED,
    *("safetensors safetensors", "safetensors SAFETENSORS", "safetensors in .bin", "torch in .safetensors"),
    *("before torch 1.6", "index of safetensors", "index of bin"),
]


@pytest.mark.parametrize("name", NAMES)
def test_what_holds_the_trunk_under_names_loads_bit_by_bit(name: str, files: Mapping[str, Path]) -> None:
    assert set(NAMES) == set(files) and len(NAMES) >= 60
    found = found_in(files[name])
    needed = [k for k in TRUNK if not k.endswith("num_batches_tracked")]
    assert [k for k in needed if not torch.equal(found.state[k], TRUNK[k])] == []
    assert not any(isinstance(v, nn.Parameter) or v.requires_grad for v in found.state.values())
    assert found.taken.is_plain == (found.prefix == "" and name not in LEAVES_OUT)


LEAVES_OUT = ("head of another name", "projector beside")


def test_half_precision_loads_with_the_rounding_it_has(tmp_path: Path) -> None:
    for name, dtype in shapes.ROUNDED.items():
        torch.save({k: v.to(dtype) if v.is_floating_point() else v for k, v in STATE.items()}, tmp_path / name)
        state = found_in(tmp_path / name).state
        assert all(torch.equal(state[k], TRUNK[k].to(dtype).float()) for k in TRUNK if TRUNK[k].is_floating_point())


def test_what_holds_no_trunk_under_names_is_refused_in_one_plain_line(tmp_path: Path) -> None:
    for name, (path, word) in shapes.refused(STATE, tmp_path).items():
        with pytest.raises(DataError) as caught:
            found_in(path)
        text = str(caught.value)
        assert word in text, (name, text)
        assert "\n" not in text and "\x1b" not in text and len(text) < 400 and str(tmp_path) in text, (name, text)


def test_which_of_two_was_taken_and_what_was_left_out_is_said(files: Mapping[str, Path]) -> None:
    taken = found_in(files["compile of DDP"]).taken
    said = f"weights file {files['compile of DDP'].name}: {taken.names} names taken from those under"
    assert taken.line == f"{said} '_orig_mod.module.'" and taken.names >= 20
    says = {
        "timm train.py": ("'state_dict.'", "not from those under 'state_dict_ema.'"),
        "torchvision reference": ("'model.'", "not from those under 'model_ema.module.'"),
        "DINO": ("'teacher.backbone.'", "not from those under 'student.module.backbone.'"),
        "MoCo v2": ("'state_dict.module.encoder_q.'", "not from those under 'state_dict.module.encoder_k.'"),
        "projector beside": ("not used: projector.0.weight", "(4)"),
    }
    for name, words in says.items():
        line = found_in(files[name]).taken.line
        assert all(word in line for word in words), (name, line)


def test_a_network_with_more_layers_is_not_taken_for_this_one(tmp_path: Path) -> None:
    for name in ("layer1.0.se.weight", "layer1.2.conv1.weight", "norm_pre.weight", "reg_token", "conv1.bias"):
        torch.save({"model": STATE | {name: torch.ones(4)}}, tmp_path / "more.pth")
        with pytest.raises(DataError, match=re.escape(f"it has {name!r}, which is unknown")):
            found_in(tmp_path / "more.pth")


class Payload:
    """What a pickle of a stranger may hold: it makes a file when it is called."""

    def __init__(self, call: object, *given: object) -> None:
        self.reduced = (call, given)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.reduced


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_nothing_in_a_file_is_ever_executed(tmp_path: Path, legacy: bool, protocol: int) -> None:
    made, file = tmp_path / "made", tmp_path / "payload.pth"
    calls = [
        *(
            Payload(os.system, f"touch {made}"),
            Payload(os.mkdir, str(made)),
            Payload(exec, f"open({str(made)!r}, 'w')"),
        ),
        *(Payload(eval, f"open({str(made)!r}, 'w')"), Payload(open, str(made), "w"), Payload(Path.touch, made)),
        Payload(getattr, made, "touch"),
    ]
    for call in calls:
        torch.save(
            {"model": STATE, "args": call}, file, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy
        )
        try:
            found_in(file)
        except DataError as error:
            assert "\n" not in str(error) and "payload.pth" in str(error)
        assert not made.exists(), call.reduced
    plain = io.BytesIO(pickle.dumps(calls[0], protocol))
    file.write_bytes(plain.getvalue())
    with pytest.raises(DataError, match="plain pickle"):
        found_in(file)
    assert not made.exists()


def test_an_object_that_is_not_on_the_list_is_named(tmp_path: Path) -> None:
    torch.save({"model": STATE, "args": Payload(os.system, "true")}, tmp_path / "evil.pth")
    with pytest.raises(DataError, match=r"beside tensors it holds \w+\.system; objects could run code"):
        found_in(tmp_path / "evil.pth")


def test_an_index_file_is_known_by_its_parts_and_every_other_file_by_its_content(
    files: Mapping[str, Path], tmp_path: Path
) -> None:
    import hashlib

    assert identity_of(files["plain"]) == hashlib.sha256(files["plain"].read_bytes()).hexdigest()
    before = identity_of(files["index of bin"])
    for part in files["index of bin"].parent.glob("*pytorch_model.bin*"):
        (tmp_path / part.name).write_bytes(part.read_bytes())
    assert identity_of(tmp_path / files["index of bin"].name) == before
    (tmp_path / "one-pytorch_model.bin").write_bytes(b"other")
    assert identity_of(tmp_path / files["index of bin"].name) != before
    (tmp_path / "one-pytorch_model.bin").unlink()
    with pytest.raises(GridError, match="one-pytorch_model.bin"):
        backbones.weights_spec("resnet18", str(tmp_path / files["index of bin"].name))
    with pytest.raises(ConfigError, match="is a folder; give the file of the weights inside it"):
        backbones.weights_spec("resnet18", str(tmp_path))


@pytest.mark.slow
def test_a_real_resnet18_in_every_shape_has_the_same_weights_and_features(tmp_path: Path) -> None:
    network = reference("resnet18", num_classes=10)
    state = dict(network.state_dict())
    torch.save(state, tmp_path / "own.pth")
    batch = images(2, 64)
    with torch.no_grad():
        wanted = from_file("resnet18", tmp_path / "own.pth")(batch)
        for name, path in shapes.files(state, tmp_path).items():
            trunk = from_file("resnet18", path)
            same = [torch.equal(v, state[k]) for k, v in trunk.state_dict().items() if "num_batches" not in k]
            assert len(same) == 100 and all(same), name
            # Kernels of another memory format round otherwise, with the same weights.
            assert torch.equal(trunk(batch), wanted) or name == "channels_last", name


def test_a_file_saved_with_buffers_as_parameters_trains(tmp_path: Path) -> None:
    network = reference("resnet18", num_classes=2)
    torch.save(
        {k: nn.Parameter(v) if v.is_floating_point() else v for k, v in network.state_dict().items()}, tmp_path / "p"
    )
    trunk = from_file("resnet18", tmp_path / "p").train()
    before = trunk.get_buffer("bn1.running_mean").clone()
    trunk(images(4, 32)).sum().backward()
    assert trunk.get_parameter("conv1.weight").grad is not None
    assert not torch.equal(trunk.get_buffer("bn1.running_mean"), before)
    assert "bn1.running_mean" not in dict(trunk.named_parameters())


def test_the_fine_tuned_weights_of_a_run_are_weights_and_a_classifier(tmp_path: Path) -> None:
    whole = reference("resnet18", num_classes=7)
    own = {("head." + k[3:] if k.startswith("fc.") else f"backbones.0.{k}"): v for k, v in whole.state_dict().items()}
    path = tmp_path / "weights.pt"
    torch.save(own, path)
    spec, batch = spec_of("resnet18", str(path), size_px=32), images(2, 32)
    classifier = build_classifier(spec, weights_dir=tmp_path, weights_files={spec.weights.identity: str(path)})
    torch.save(whole.state_dict(), tmp_path / "plain.pth")
    with torch.no_grad():
        assert torch.equal(classifier(batch), whole(batch))
        assert torch.equal(from_file("resnet18", path)(batch), from_file("resnet18", tmp_path / "plain.pth")(batch))


def test_the_plan_is_told_what_was_taken(tmp_path: Path) -> None:
    state = dict(reference("resnet18", num_classes=2).state_dict())
    torch.save({"state_dict": shapes.under("module.encoder_q.", state)}, tmp_path / "moco.pth")
    spec, told = spec_of("resnet18", str(tmp_path / "moco.pth"), size_px=32), list[Taken]()
    files = {spec.weights.identity: str(tmp_path / "moco.pth")}
    build(spec, weights_dir=tmp_path, weights_files=files, note=told.append)
    (taken,) = told
    assert (taken.prefix, taken.names, taken.others) == ("state_dict.module.encoder_q.", 122, ())
    assert taken.line == "weights file moco.pth: 122 names taken from those under 'state_dict.module.encoder_q.'"
