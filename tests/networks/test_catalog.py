"""The catalog of backbones says what torchvision says, and reading it loads none of the heavy libraries."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from transfergrid.errors import ConfigError
from transfergrid.networks import backbones
from transfergrid.store import durable

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "torchvision", "timm", "sklearn", "pandas")


@pytest.fixture
def builtin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    catalog = json.loads(backbones.CATALOG.read_bytes())
    facts = catalog["builtin"]["tinynet_mnist"]
    facts["weights"]["builtin"]["hash_prefix"] = "ab" * 32
    (tmp_path / "catalog.json").write_text(json.dumps(catalog | {"builtin": {"tinynet_mnist": facts}}))
    monkeypatch.setattr(backbones, "CATALOG", tmp_path / "catalog.json")
    monkeypatch.setattr(backbones, "BUILTIN_FOLDER", tmp_path)
    yield tmp_path


def test_catalog_lists_every_torchvision_classifier_or_says_why_not() -> None:
    from torchvision import models

    kept = json.loads(backbones.CATALOG.read_bytes())
    pinned = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]["constraint-dependencies"]
    assert f"torchvision=={kept['torchvision']}" in pinned  # what is developed with; others must have the same networks
    assert {*kept["networks"], *kept["refused"]} == {*models.list_models(module=models), "vgg16_gap"}
    assert set(kept["refused"]) == {"squeezenet1_0", "squeezenet1_1"}


@pytest.mark.full
def test_catalog_file_equals_a_fresh_generation() -> None:
    from transfergrid.networks.backbones import generate

    assert backbones.CATALOG.read_text() == generate.as_text(generate.generate())


def test_reading_the_catalog_imports_nothing_heavy() -> None:
    code = (
        "import sys; from transfergrid.networks import backbones; backbones.entry('resnet18');"
        "backbones.weights_spec('vgg16', 'IMAGENET1K_V1'); backbones.check_image_size('vit_b_16', 224);"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_entries_state_dimension_tap_size_and_default_weights() -> None:
    known = {name: backbones.entry(name) for name in ("resnet18", "googlenet", "vgg16", "vgg16_gap", "vit_b_16")}
    assert {name: e.feature_dim for name, e in known.items()} == {
        "resnet18": 512,
        "googlenet": 1024,
        "vgg16": 4096,
        "vgg16_gap": 512,
        "vit_b_16": 768,
    }
    assert [known[n].tap for n in ("resnet18", "vgg16", "vgg16_gap")] == ["avgpool", "fc7", "global_average"]
    assert [known[n].parameters for n in ("resnet18", "googlenet", "vgg16")] == [11_176_512, 5_599_904, 134_260_544]
    assert known["vit_b_16"].fixed_size_px == 224
    assert all(e.default_weights == "IMAGENET1K_V1" for e in known.values())
    assert known["resnet18"].weights["IMAGENET1K_V1"].file == "resnet18-f37072fd.pth"
    assert [name for name, _ in known["resnet18"].groups] == ["stem", "layer1", "layer2", "layer3", "layer4"]


def test_where_a_network_has_no_v1_weights_its_first_tag_is_the_default() -> None:
    assert backbones.entry("vit_h_14").default_weights == "IMAGENET1K_SWAG_LINEAR_V1"
    assert backbones.entry("regnet_y_128gf").default_weights == "IMAGENET1K_SWAG_E2E_V1"


def test_tags_become_identities_with_torchvisions_own_hash() -> None:
    spec = backbones.weights_spec("resnet18", "IMAGENET1K_V1")
    assert (spec.label, spec.identity) == ("IMAGENET1K_V1", "tag:resnet18-f37072fd.pth")


def test_random_weights_carry_the_rule_and_the_seed() -> None:
    assert backbones.weights_spec("resnet18", "random", weights_seed=3).identity == "random:v1:3"


def test_a_file_is_known_by_its_content(tmp_path: Path) -> None:
    file = tmp_path / "mine.pth"
    file.write_bytes(b"abc")
    first = backbones.weights_spec("resnet18", str(file))
    assert first.label == f"file-{first.identity[5:17]}"
    assert first.identity == "file:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    file.write_bytes(b"abcd")
    assert backbones.weights_spec("resnet18", str(file)).identity != first.identity


@pytest.mark.parametrize(
    ("name", "weights", "says"),
    [
        ("resnet50", "DEFAULT", "IMAGENET1K_V1, IMAGENET1K_V2"),
        ("resnet18", "IMAGENET1K_V2", "known: IMAGENET1K_V1"),
        ("resnet18", "nowhere/weights.pth", "'nowhere/weights.pth' of 'resnet18' is not there"),
        ("vgg16", "IMAGENET1K_FEATURES", "known: IMAGENET1K_V1"),
    ],
)
def test_weights_that_make_no_sense_are_refused_in_one_line(name: str, weights: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        backbones.weights_spec(name, weights)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_misspelt_backbone_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="unknown backbone 'resnet81'; nearest: resnet18"):
        backbones.entry("resnet81")
    with pytest.raises(ConfigError, match="unknown backbone 'nothing_alike_xyz'; nearest: resnet18, googlenet, vgg16"):
        backbones.entry("nothing_alike_xyz")


def test_squeezenet_is_refused_because_it_ends_in_no_linear_layer() -> None:
    with pytest.raises(ConfigError, match="ends in no linear layer"):
        backbones.entry("squeezenet1_1")


def test_image_sizes_a_backbone_does_not_take_are_refused_with_the_one_it_takes() -> None:
    backbones.check_image_size("vgg16", 32)
    with pytest.raises(ConfigError, match="vgg16 takes images of at least 32 px, not 31"):
        backbones.check_image_size("vgg16", 31)
    with pytest.raises(ConfigError, match="inception_v3 takes images of at least 75 px, not 32"):
        backbones.check_image_size("inception_v3", 32)
    with pytest.raises(ConfigError, match="vit_b_16 takes images of exactly 224 px, not 32"):
        backbones.check_image_size("vit_b_16", 32)


def test_built_in_backbones_are_those_with_a_committed_file(builtin_folder: Path) -> None:
    assert "tinynet_mnist" in backbones.names() and "tinynet_cifar" not in backbones.names()
    entry = backbones.entry("tinynet_mnist")
    assert (entry.architecture, entry.feature_dim, entry.head, entry.default_weights) == (
        "tinynet",
        64,
        "fc",
        "builtin",
    )
    assert entry.weights["builtin"].crop_px == 32 and entry.weights["builtin"].mean == (0.5, 0.5, 0.5)
    assert backbones.weights_spec("tinynet_mnist", "builtin").identity == "builtin:" + "ab" * 32
    assert backbones.builtin_file("tinynet_mnist") == builtin_folder / "tinynet_mnist.pt"
    with pytest.raises(ConfigError, match="unknown backbone 'tinynet_cifar'; nearest: tinynet_mnist"):
        backbones.entry("tinynet_cifar")


def test_committed_built_in_files_are_what_their_list_says() -> None:
    listed = json.loads(backbones.CATALOG.read_bytes())["builtin"]
    files = {path.name for path in backbones.BUILTIN_FOLDER.glob("*.pt")}
    assert files == {facts["weights"]["builtin"]["file"] for facts in listed.values()}
    for name, facts in listed.items():
        path = backbones.builtin_file(name)
        assert durable.sha256_of(path) == facts["weights"]["builtin"]["hash_prefix"]
        assert path.stat().st_size <= 300_000


def test_random_and_file_weights_take_the_default_recipe() -> None:
    entry = backbones.entry("resnet50")
    assert entry.recipe("random") == entry.recipe("mine.pth") == entry.weights["IMAGENET1K_V1"]
    assert entry.recipe("IMAGENET1K_V2").resize_px == 232


def test_a_kept_timm_description_is_read_without_timm(tmp_path: Path) -> None:
    facts = {
        "architecture": "timm/resnet10t",
        "tap": "pre_logits",
        "head": "fc",
        "feature_dim": 512,
        "head_classes": 1000,
        "min_size_px": 1,
        "fixed_size_px": None,
        "groups": [["stem", ["conv1"]], ["stage1", ["layer1"]]],
        "parameters": 4,
        "gmacs": 0.002,
        "default_weights": "random",
        "weights": {},
    }
    kept = {"name": "timm/resnet10t", "version": backbones.TIMM_FORMAT_VERSION, "entry": facts}
    durable.write_json(tmp_path / "timm-resnet10t.json", kept)
    entry = backbones.entry("timm/resnet10t", catalog_dir=tmp_path)
    assert (entry.feature_dim, entry.default_weights, entry.recipe("random").crop_px) == (512, "random", 224)


def test_a_timm_network_without_a_cache_folder_is_refused() -> None:
    with pytest.raises(ConfigError, match="give cache.dir="):
        backbones.entry("timm/resnet10t")
