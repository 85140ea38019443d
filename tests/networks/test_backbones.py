"""Builders: every backbone turns images into features of the stated dimension, from weights that are checked."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
import torch
from backbone_files import from_file, images, random_trunk, reference, spec_of
from torch import nn
from torchvision import models

from transfergrid.errors import ConfigError, DataError
from transfergrid.networks import architectures, backbones
from transfergrid.networks.backbones.build import (
    Frozen,
    attach_auxiliary_heads,
    bn_statistics,
    build,
    build_classifier,
)
from transfergrid.networks.backbones.construct import behead, construct, group_parameters
from transfergrid.networks.backbones.generate import describe_timm, takes
from transfergrid.networks.backbones.state_dicts import weights_file
from transfergrid.networks.size import describe
from transfergrid.specs import BackboneSpec
from transfergrid.store import durable

FAMILIES = (
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "inception_v3",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "resnet18",
    "shufflenet_v2_x0_5",
    "swin_t",
)
# Not here: maxvit_t, which also takes the three sizes below its own (see generate.sizes_px), and networks of more than
# 300 million parameters: 10 GB of memory for what the smaller ones of their families say as well.
OTHERS = tuple(
    name
    for name in backbones.names()
    if name not in (*FAMILIES, "maxvit_t") and backbones.entry(name).parameters <= 300_000_000
)


@pytest.fixture(scope="module")
def resnet18_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(reference("resnet18").state_dict(), path)
    return path


def contract(name: str) -> None:
    """Dimension, smallest size, parameters and groups are those of the catalog; features are finite and differ."""
    known = backbones.entry(name)
    size_px = known.fixed_size_px or max(64, known.min_size_px)
    trunk = random_trunk(name, size_px=size_px)
    with torch.no_grad():
        features_ND = trunk(images(2, size_px))
    assert features_ND.shape == (2, known.feature_dim) and features_ND.dtype == torch.float32
    assert bool(features_ND.isfinite().all()) and not torch.equal(features_ND[0], features_ND[1])
    assert not trunk.training
    # Random weights of the deepest network do overflow float16; its extraction then asks for float32.
    assert float(features_ND.abs().max()) < 60_000 or name == "efficientnet_v2_l"
    assert sum(p.numel() for p in trunk.parameters()) == known.parameters
    groups = group_parameters(trunk, known.groups)
    assert [group for group, _ in groups] == [group for group, _ in known.groups]
    named = [pair for _, pairs in groups for pair in pairs]
    assert {n for n, _ in named} == {n for n, _ in trunk.named_parameters()} and len(named) == len(dict(named))
    assert takes(trunk, known.min_size_px)
    assert known.min_size_px == 1 or known.architecture == "tinynet" or not takes(trunk, known.min_size_px - 1)


@pytest.mark.parametrize("name", FAMILIES)
def test_one_backbone_of_each_family_keeps_what_the_catalog_promises(name: str) -> None:
    contract(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_every_other_backbone_keeps_what_the_catalog_promises(name: str) -> None:
    contract(name)


@pytest.mark.parametrize(
    ("name", "head", "size_px"),
    [
        ("resnet18", "fc", 32),
        ("densenet121", "classifier", 32),
        pytest.param("vit_b_32", "heads", 224, marks=pytest.mark.slow),
        pytest.param("vgg16", "classifier.6", 32, marks=pytest.mark.slow),
    ],
)
def test_features_from_a_file_are_bit_equal_to_torchvisions_network_without_its_head(
    name: str, head: str, size_px: int, tmp_path: Path
) -> None:
    plain = reference(name)
    torch.save(plain.state_dict(), tmp_path / "weights.pth")
    plain.set_submodule(head, nn.Identity())
    trunk = from_file(name, tmp_path / "weights.pth", size_px=size_px)
    with torch.no_grad():
        assert torch.equal(trunk(images(2, size_px)), plain(images(2, size_px)))


def test_a_state_dict_is_taken_wrapped_prefixed_in_half_precision_and_without_its_head(
    resnet18_file: Path, tmp_path: Path
) -> None:
    whole = torch.load(resnet18_file, weights_only=True)
    headless = {key: value for key, value in whole.items() if not key.startswith("fc.")}
    variants = {
        "headless": headless,
        "wrapped": {"epoch": 3, "state_dict": whole},
        "prefixed": {"model": {f"module.{key}": value for key, value in whole.items()}},
        "other_head": {**headless, "fc.1.weight": torch.zeros(7, 512)},
    }
    expected = from_file("resnet18", resnet18_file)(images(2, 32))
    for name, content in variants.items():
        torch.save(content, tmp_path / f"{name}.pth")
        assert torch.equal(from_file("resnet18", tmp_path / f"{name}.pth")(images(2, 32)), expected), name
    torch.save({k: v.half() if v.is_floating_point() else v for k, v in whole.items()}, tmp_path / "half.pth")
    half = from_file("resnet18", tmp_path / "half.pth")
    assert {p.dtype for p in half.parameters()} == {torch.float32}


def test_a_safetensors_file_is_a_state_dict_too(resnet18_file: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(torch.load(resnet18_file, weights_only=True), tmp_path / "weights.safetensors")
    again = from_file("resnet18", tmp_path / "weights.safetensors")
    assert torch.equal(again(images(1, 32)), from_file("resnet18", resnet18_file)(images(1, 32)))


def test_old_densenet_files_with_dots_in_layer_names_are_understood(tmp_path: Path) -> None:
    plain = reference("densenet121")
    old = {re.sub(r"\.(norm|conv)([12])\.", r".\1.\2.", key): value for key, value in plain.state_dict().items()}
    old = {key: value for key, value in old.items() if not key.endswith("num_batches_tracked")}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "old.pth")
    plain.set_submodule("classifier", nn.Identity())
    with torch.no_grad():
        assert torch.equal(from_file("densenet121", tmp_path / "old.pth")(images(1, 32)), plain(images(1, 32)))


def test_weights_of_another_network_are_refused_with_the_first_key_that_does_not_fit(
    resnet18_file: Path, tmp_path: Path
) -> None:
    whole = torch.load(resnet18_file, weights_only=True)
    cases = {
        "it lacks 'layer1.0.conv1.weight'": {k: v for k, v in whole.items() if k != "layer1.0.conv1.weight"},
        "it has 'layer5.weight', which is unknown": {**whole, "layer5.weight": torch.zeros(1)},
        "'conv1.weight' has shape (64, 3, 3, 3), wanted (64, 3, 7, 7)": {
            **whole,
            "conv1.weight": torch.zeros(64, 3, 3, 3),
        },
        "'layer4.1.bn2.running_var' holds values that are not finite": {
            **whole,
            "layer4.1.bn2.running_var": torch.full((512,), torch.nan),
        },
        "holds no state dict": {"epoch": 3},
    }
    for index, (says, content) in enumerate(cases.items()):
        torch.save(content, tmp_path / f"{index}.pth")
        with pytest.raises(DataError, match=re.escape(says)) as caught:
            from_file("resnet18", tmp_path / f"{index}.pth")
        assert "\n" not in str(caught.value) and f"{index}.pth" in str(caught.value)


def test_a_truncated_file_and_a_pickled_object_are_refused(resnet18_file: Path, tmp_path: Path) -> None:
    content = resnet18_file.read_bytes()
    (tmp_path / "cut.pth").write_bytes(content[: len(content) // 2])
    torch.save(nn.Linear(2, 2), tmp_path / "object.pth")
    (tmp_path / "text.pth").write_text("not found")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    for name in ("cut.pth", "object.pth", "text.pth", "cut.safetensors"):
        with pytest.raises(DataError, match="cannot be read as a state dict"):
            from_file("resnet18", tmp_path / name)


def test_a_file_that_changed_since_the_plan_is_refused(resnet18_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(resnet18_file.read_bytes())
    spec = spec_of("resnet18", str(file), size_px=32)
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(DataError, match="is not the file it should be: its sha256 begins with"):
        build(spec, weights_dir=tmp_path, weights_files={spec.weights.identity: str(file)})
    with pytest.raises(DataError, match=re.escape("give weights_files.resnet18=FILE")):
        build(spec, weights_dir=tmp_path, weights_files={})


def test_a_published_file_is_looked_for_in_weights_dir_and_its_hash_is_checked(tmp_path: Path) -> None:
    spec = spec_of("resnet18", "IMAGENET1K_V1", size_px=32)
    with pytest.raises(DataError) as caught:
        build(spec, weights_dir=tmp_path, weights_files={}, download=False)
    assert "put resnet18-f37072fd.pth into" in str(caught.value)
    assert str(tmp_path) in str(caught.value) and "weights_dir=" in str(caught.value)
    (tmp_path / "resnet18-f37072fd.pth").write_bytes(b"something else")
    with pytest.raises(DataError, match="expected f37072fd; remove it and fetch it again"):
        build(spec, weights_dir=tmp_path, weights_files={})


def test_a_download_that_fails_says_which_file_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unreachable = type("Weights", (), {"url": "http://127.0.0.1:9/resnet18-f37072fd.pth"})  # nothing listens there
    monkeypatch.setattr(models, "get_model_weights", lambda name: {"IMAGENET1K_V1": unreachable})
    with pytest.raises(DataError, match="could not be downloaded .* put resnet18-f37072fd.pth into"):
        build(spec_of("resnet18", "IMAGENET1K_V1", size_px=32), weights_dir=tmp_path / "new", weights_files={})
    assert not list((tmp_path / "new").glob("resnet18*"))


def test_a_download_is_verified_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resnet18_file: Path) -> None:
    local = type("Weights", (), {"url": resnet18_file.as_uri()})
    monkeypatch.setattr(models, "get_model_weights", lambda name: {"IMAGENET1K_V1": local})
    spec = spec_of("resnet18", "IMAGENET1K_V1", size_px=32)
    with pytest.raises(DataError, match="invalid hash value"):
        build(spec, weights_dir=tmp_path, weights_files={})
    right = durable.sha256_of(resnet18_file)[:8]
    known = backbones.entry("resnet18").weights["IMAGENET1K_V1"]
    monkeypatch.setattr(type(known), "hash_prefix", right)
    path = weights_file(spec, weights_dir=tmp_path, weights_files={}, download=True)
    assert path == tmp_path / "resnet18-f37072fd.pth" and path.read_bytes() == resnet18_file.read_bytes()


def test_a_classifier_has_the_head_and_the_classes_of_its_file(tmp_path: Path) -> None:
    plain = reference("resnet18", num_classes=7)
    torch.save(plain.state_dict(), tmp_path / "seven.pth")
    spec = spec_of("resnet18", str(tmp_path / "seven.pth"), size_px=32)
    files = {spec.weights.identity: str(tmp_path / "seven.pth")}
    classifier = build_classifier(spec, weights_dir=tmp_path, weights_files=files)
    with torch.no_grad():
        assert torch.equal(classifier(images(2, 32)), plain(images(2, 32)))
    assert classifier(images(2, 32)).shape == (2, 7)


def test_a_file_or_a_backbone_without_a_head_is_no_classifier(resnet18_file: Path, tmp_path: Path) -> None:
    whole = torch.load(resnet18_file, weights_only=True)
    torch.save({k: v for k, v in whole.items() if not k.startswith("fc.")}, tmp_path / "headless.pth")
    spec = spec_of("resnet18", str(tmp_path / "headless.pth"), size_px=32)
    with pytest.raises(DataError, match=re.escape("holds no head (fc.weight)")):
        files = {spec.weights.identity: str(tmp_path / "headless.pth")}
        build_classifier(spec, weights_dir=tmp_path, weights_files=files)
    with pytest.raises(ConfigError, match="vgg16_gap has no head of its own"):
        spec = spec_of("vgg16_gap", "IMAGENET1K_V1", size_px=32)
        build_classifier(spec, weights_dir=tmp_path, weights_files={})


def test_a_built_in_backbone_is_read_from_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = architectures.build("tinynet", 10, 0).eval()
    torch.save(network.state_dict(), tmp_path / "tinynet_mnist.pt")
    catalog = json.loads(backbones.CATALOG.read_bytes())
    weights = catalog["builtin"]["tinynet_mnist"]["weights"]["builtin"]
    weights["hash_prefix"] = durable.sha256_of(tmp_path / "tinynet_mnist.pt")
    (tmp_path / "catalog.json").write_text(json.dumps(catalog))
    monkeypatch.setattr(backbones, "CATALOG", tmp_path / "catalog.json")
    monkeypatch.setattr(backbones, "BUILTIN_FOLDER", tmp_path)
    spec = spec_of("tinynet_mnist", "builtin", size_px=32)
    trunk = build(spec, weights_dir=Path("unused"), weights_files={})
    assert trunk(images(2, 32)).shape == (2, 64)
    classifier = build_classifier(spec, weights_dir=Path("unused"), weights_files={})
    with torch.no_grad():
        assert torch.equal(classifier(images(2, 32)), network(images(2, 32)))
    (tmp_path / "tinynet_mnist.pt").write_bytes(b"damaged")
    with pytest.raises(DataError, match="is not the file it should be"):
        build(spec, weights_dir=Path("unused"), weights_files={})


def test_random_weights_follow_their_seed_and_nothing_else() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = random_trunk("resnet18", size_px=32).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    again = random_trunk("resnet18", size_px=32).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert float(first["bn1.running_var"].mean()) != 1.0


@pytest.mark.parametrize("name", ["googlenet", "mobilenet_v3_small", "alexnet"])
def test_features_of_random_networks_survive_float16(name: str) -> None:
    trunk = random_trunk(name, size_px=64)
    with torch.no_grad():
        features_ND = trunk(images(8, 64))
    stored_ND = features_ND.half().float()
    vanished = ((stored_ND == 0) & (features_ND != 0)).float().mean()
    assert float(vanished) < 0.01 and bool(stored_ND.isfinite().all())
    assert float((stored_ND - features_ND).norm() / features_ND.norm()) < 1e-3
    assert float(stored_ND.std(dim=0).max()) > 1e-3


def test_bn_statistics_are_the_averages_over_batches_weighted_by_their_images() -> None:
    module = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(3)).eval()
    layer = module[1]
    assert isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None and layer.running_var is not None
    batches = [images(n, 4, seed=n) * n + n for n in (6, 3, 2, 1)]  # the last image joins the two before it
    bn_statistics(module, batches)
    parts = [batches[0], batches[1], torch.cat(batches[2:])]
    mean = sum(len(p) * p.mean(dim=(0, 2, 3)) for p in parts) / 12
    variance = sum(len(p) * p.var(dim=(0, 2, 3)) for p in parts) / 12
    torch.testing.assert_close(layer.running_mean, mean)
    torch.testing.assert_close(layer.running_var, variance)
    assert not module.training and not layer.training and layer.momentum == 0.1


def test_bn_statistics_move_a_frozen_backbone_once_and_leave_it_frozen() -> None:
    frozen = Frozen(random_trunk("resnet18", size_px=32))
    before = frozen(images(2, 32))
    bn_statistics(frozen, [images(16, 32) * 3 + 1])
    after = frozen(images(2, 32))
    assert not torch.equal(before, after) and torch.equal(after, frozen(images(2, 32)))
    assert not any(module.training for module in frozen.modules())


def test_frozen_gives_float32_features_without_gradients_under_autocast() -> None:
    frozen = Frozen(random_trunk("resnet18", size_px=32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features_ND = frozen(images(2, 32))
    assert features_ND.dtype == torch.float32 and not features_ND.requires_grad
    assert not any(p.requires_grad for p in frozen.parameters())


def test_googlenet_trains_with_auxiliary_heads_and_evaluates_without(tmp_path: Path) -> None:
    plain = reference("googlenet")
    torch.save(plain.state_dict(), tmp_path / "googlenet.pth")
    trunk = from_file("googlenet", tmp_path / "googlenet.pth", auxiliary=True)
    attach_auxiliary_heads(trunk, 10, torch.Generator().manual_seed(1))
    assert torch.equal(trunk.get_parameter("aux2.fc1.weight"), plain.get_parameter("aux2.fc1.weight"))
    features_ND, first_NC, second_NC = trunk.train()(images(4, 32))
    assert features_ND.shape == (4, 1024) and first_NC.shape == second_NC.shape == (4, 10)
    first_NC.sum().backward()
    assert trunk.get_parameter("aux1.fc2.weight").grad is not None
    assert trunk.get_parameter("aux2.fc2.weight").grad is None
    assert trunk.eval()(images(4, 32)).shape == (4, 1024)
    groups = group_parameters(trunk, backbones.entry("googlenet").groups)
    assert not any(name.startswith("aux") for _, named in groups for name, _ in named)


def test_auxiliary_heads_follow_the_generator_and_belong_to_googlenet_alone(tmp_path: Path) -> None:
    trunks = [random_trunk("googlenet", size_px=32) for _ in range(3)]
    for trunk, seed in zip(trunks, (1, 1, 2), strict=True):
        attach_auxiliary_heads(trunk, 10, torch.Generator().manual_seed(seed))
    first, again, other = (trunk.get_parameter("aux1.conv.conv.weight") for trunk in trunks)
    assert torch.equal(first, again) and not torch.equal(first, other)
    with pytest.raises(ConfigError, match="ResNet has no auxiliary heads, only googlenet has them"):
        attach_auxiliary_heads(random_trunk("resnet18", size_px=32), 10, torch.Generator())
    with pytest.raises(ConfigError, match="resnet18 has no auxiliary heads"):
        spec = spec_of("resnet18", "random", size_px=32)
        build(spec, weights_dir=tmp_path, weights_files={}, auxiliary=True)


@pytest.mark.slow
def test_a_timm_network_is_described_once_and_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = backbones.entry("timm/test_resnet", catalog_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["timm-test_resnet.json"]
    label = known.default_weights
    chosen = backbones.weights_spec("timm/test_resnet", label, catalog_dir=tmp_path)
    assert chosen.identity == f"tag:timm/test_resnet.{label}"
    template = spec_of("resnet18", "random", size_px=64)
    random = backbones.weights_spec("timm/test_resnet", "random", catalog_dir=tmp_path)
    spec = BackboneSpec(name=known.name, tap=known.tap, weights=random, preprocess=template.preprocess)
    trunk = build(spec, weights_dir=tmp_path, weights_files={})
    assert trunk(images(2, 64)).shape == (2, known.feature_dim)
    assert sum(len(named) for _, named in group_parameters(trunk, known.groups)) == len(list(trunk.parameters()))

    whole = build_classifier(spec, weights_dir=tmp_path, weights_files={})
    torch.save(whole.state_dict(), tmp_path / f"test_resnet.{label}.pth")  # as if it had been downloaded
    published = BackboneSpec(name=known.name, tap=known.tap, weights=chosen, preprocess=template.preprocess)
    again = build(published, weights_dir=tmp_path, weights_files={})
    assert torch.equal(again(images(2, 64)), trunk(images(2, 64)))
    same = build_classifier(published, weights_dir=tmp_path, weights_files={})
    assert torch.equal(same(images(2, 64)), whole(images(2, 64)))
    with pytest.raises(DataError, match=rf"put test_resnet\.{label}\.safetensors into"):
        build(published, weights_dir=tmp_path / "empty", weights_files={}, download=False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    started_s = time.monotonic()
    with pytest.raises(DataError, match="could not be downloaded"):
        build(published, weights_dir=tmp_path / "empty", weights_files={})
    assert time.monotonic() - started_s < 20


def test_an_unknown_timm_network_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="unknown timm network 'resnt50'; nearest: timm/resnet50"):
        describe_timm("resnt50")
    with pytest.raises(ConfigError, match="timm/resnet18 has no weights 'nobody'"):
        describe_timm("resnet18.nobody")


@pytest.mark.slow
def test_an_unknown_timm_network_leaves_nothing_in_the_cache(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown timm network 'resnt50'; nearest: timm/resnet50"):
        backbones.entry("timm/resnt50", catalog_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_size_and_cost_are_counted_as_the_records_state_them() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 16, 5)
    ).train()
    network[0].requires_grad_(False)
    size = describe(network, [(3, 4, 4)])
    assert size.parameters == 224 + 16 + 645
    assert size.size_mb == pytest.approx(4 * (885 + 16) / 1e6)
    assert size.gflops_per_image == pytest.approx(2 * (16 * 8 * 27 + 128 * 5) / 1e9)
    assert network.training and network[1].training


def test_resnet18_costs_what_torchvision_says() -> None:
    size = describe(behead(construct("resnet18", num_classes=1000), "resnet18", "fc"), [(3, 224, 224)])
    assert size.parameters == backbones.entry("resnet18").parameters
    assert size.gflops_per_image == pytest.approx(2 * 1.814, rel=0.01)
