"""Features in the store are those of a plain torchvision forward pass, and each backbone is extracted once."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import carry_out, final_run, record_of, request
from torch import nn
from torchvision import models

from transfergrid.paths import cache_paths
from transfergrid.phases import extract
from transfergrid.planning import job
from transfergrid.specs import RunSpec, Runtime, Split
from transfergrid.store import feature_store

WEIGHTS_OF = {
    "vgg16": models.VGG16_Weights.IMAGENET1K_V1,
    "resnet18": models.ResNet18_Weights.IMAGENET1K_V1,
    "googlenet": models.GoogLeNet_Weights.IMAGENET1K_V1,
    "resnet50": models.ResNet50_Weights.IMAGENET1K_V1,
    "densenet121": models.DenseNet121_Weights.IMAGENET1K_V1,
    "vit_b_16": models.ViT_B_16_Weights.IMAGENET1K_V1,
}
SIZES_PX = ((300, 400), (256, 256), (640, 480))  # (width, height) of the pictures: none is the network's own


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of six pictures of mixed sizes, one of them grey, in two classes."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for label, name in enumerate(("ant", "bee")):
            (folder / split / name).mkdir(parents=True)
            for number, (width, height) in enumerate(SIZES_PX):
                coarse = random.integers(0, 256, (height // 20, width // 20, 3), dtype=np.uint8)
                picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
                if number == 0 and label == 0:
                    picture = picture.convert("L")
                picture.save(folder / split / name / f"{number}.png")
    return folder


def write_random_state(name: str, path: Path) -> nn.Module:
    """A state-dict file of the whole classifier, and the classifier; BatchNorm statistics away from their defaults."""
    torch.manual_seed(1)
    arguments = {"aux_logits": True, "init_weights": True} if name == "googlenet" else {}
    network = models.get_model(name, weights=None, **arguments)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    torch.save(network.state_dict(), path)
    network.eval()
    return cast(nn.Module, network)


def headless(name: str, network: nn.Module) -> nn.Module:
    if name == "vgg16":
        network.classifier = network.classifier[:-1]  # type: ignore[index]
    elif name == "vit_b_16":
        network.heads = nn.Identity()
    elif name == "densenet121":
        network.classifier = nn.Identity()
    else:
        network.fc = nn.Identity()
    if name == "googlenet":
        network.__dict__["transform_input"] = True  # what torchvision sets for its published weights
        network.aux1 = network.aux2 = None  # type: ignore[assignment]
    return network.eval()


def plain_features(
    name: str, network: nn.Module, folder: Path, split: str
) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """As anyone would write it: open, convert to RGB, the weights' own transform (on PIL images), forward."""
    transform = WEIGHTS_OF[name].transforms()
    files = sorted((folder / split).glob("*/*.png"))
    inputs = torch.stack([transform(Image.open(file).convert("RGB")) for file in files])
    with torch.inference_mode():
        made: np.ndarray[tuple[int, int], np.dtype[np.float32]] = headless(name, network)(inputs).numpy()
    return made


def stored(run: RunSpec, runtime: Runtime, split: Split) -> np.ndarray[tuple[int, int], np.dtype[np.float16]]:
    path = feature_store.find(cache_paths(runtime), run.feature_key(run.backbones[0], split))
    assert path is not None
    with h5py.File(path) as file:
        features: np.ndarray[tuple[int, int], np.dtype[np.float16]] = file["features"][:]
    return features


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) for name in WEIGHTS_OF],
)
def test_stored_features_are_those_of_a_plain_forward_pass_with_the_weights_own_transform(
    name: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """resnet18 by a whole batch as it is padded, of six pictures to 64; the larger ones by eight, for the time."""
    if name != "resnet18":
        monkeypatch.setattr(extract, "BATCH", 8)
    network = write_random_state(name, tmp_path / "state.pth")
    asked = request(
        tmp_path,
        "phase=extract",
        f"model={name}",
        f"weights={tmp_path / 'state.pth'}",
        "dataset=image_folder",
        f"dataset.folder={pictures}",
        "dataset.max_images=null",
        "dataset.image_size_px=null",
    )
    assert carry_out(asked) == "completed"
    for split in ("train", "test"):
        found_ND = stored(final_run(asked), asked.runtime, split)
        expected_ND = plain_features(name, network, pictures, split)
        assert found_ND.shape == expected_ND.shape and found_ND.dtype == np.float16
        # Half a unit in the last place of float16, and the last bits of another order of summation.
        bound_ND = np.abs(expected_ND) * 2.0**-11 + 2.0**-24 + 1e-5 * np.abs(expected_ND).max()
        assert (np.abs(found_ND.astype(np.float32) - expected_ND) <= bound_ND).all()
        assert np.abs(expected_ND).max() > 0.01, "features that are all but zero would prove nothing"


def test_one_extraction_serves_a_single_model_and_a_join_under_every_seed(tmp_path: Path) -> None:
    first = request(tmp_path, "phase=probe", "model=tinynet_mnist", "seed=0")
    joined = request(tmp_path, "phase=probe", "model=tinynet_mnist+tinynet_cifar", "seed=1")
    assert carry_out(first) == "completed"
    extraction = final_run(joined).extractions[0]
    assert extraction.run_id == final_run(first).extractions[0].run_id
    assert job.carry_out(extraction, joined.runtime) == "reused"
    assert carry_out(joined) == "completed"
    files = sorted(p.name.split("-")[0] for p in (tmp_path / "cache" / "features").rglob("*.h5"))
    assert files == ["tinynet_cifar", "tinynet_cifar", "tinynet_mnist", "tinynet_mnist"]
    assert record_of(final_run(joined), joined.runtime).parameters == 2 * 60_688 + 10 * 128 + 10


def test_a_row_does_not_depend_on_how_many_rows_there_are(tmp_path: Path) -> None:
    some = request(tmp_path, "phase=extract", "model=tinynet_mnist", "dataset.max_images=70")
    more = request(tmp_path, "phase=extract", "model=tinynet_mnist", "dataset.max_images=700")
    features = {}
    for asked in (some, more):
        assert carry_out(asked) == "completed"
        run = final_run(asked)
        path = feature_store.find(cache_paths(asked.runtime), run.feature_key(run.backbones[0], "train"))
        assert path is not None
        found = feature_store.read(path, run.feature_key(run.backbones[0], "train"))
        features[len(found.index_N)] = dict(zip(found.index_N.tolist(), found.features_ND, strict=True))
    shared = sorted(set(features[70]) & set(features[700]))
    assert len(shared) > 10
    assert all(np.array_equal(features[70][index], features[700][index]) for index in shared)


def test_target_statistics_are_another_feature_file_and_do_not_depend_on_labels(tmp_path: Path) -> None:
    usual = request(tmp_path, "phase=extract", "model=tinynet_cifar")
    target = request(tmp_path, "phase=extract", "model=tinynet_cifar", "phase.extract.bn_statistics=target")
    assert carry_out(usual) == carry_out(target) == "completed"
    usual_ND, target_ND = (stored(final_run(a), a.runtime, "test").astype(np.float32) for a in (usual, target))
    assert np.linalg.norm(usual_ND - target_ND) > 0.05 * np.linalg.norm(usual_ND)


@pytest.mark.slow
def test_images_that_do_not_fit_are_read_ahead_and_give_the_same_features(pictures: Path, tmp_path: Path) -> None:
    """A budget of nothing streams every batch from the folder; the features stay bit-equal."""
    features = []
    splits: tuple[Split, ...] = ("train", "test")
    for name, budget in (("resident", "8"), ("streamed", "0")):
        asked = request(
            tmp_path / name,
            "phase=probe",
            "model=tinynet_mnist+tinynet_cifar",
            "dataset=image_folder",
            f"dataset.folder={pictures}",
            "dataset.max_images=null",
            "dataset.image_size_px=null",
            f"data.resident_gb={budget}",
        )
        assert carry_out(asked) == "completed"
        features.append([stored(e, asked.runtime, s) for e in final_run(asked).extractions for s in splits])
    assert all(np.array_equal(one, other) for one, other in zip(*features, strict=True))
