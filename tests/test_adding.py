"""docs/adding.md, followed: its data set and its architecture are one new file each, found, and trained with."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from small_runs import MACHINE, carry_out, final_run, record_of

from transfergrid import data
from transfergrid.config import load_run
from transfergrid.config.compose import compose_config
from transfergrid.config.folders import choices
from transfergrid.data import sets
from transfergrid.errors import DataError
from transfergrid.networks import architectures

PAGE = Path(__file__).parents[1] / "docs" / "adding.md"


def file_under(heading: str) -> str:
    """The Python file that a section of the page shows: its first block that begins with a docstring."""
    section = PAGE.read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    block = re.search(r'^    """.*?(?=^\S)', section, re.MULTILINE | re.DOTALL)
    assert block is not None, heading
    return "\n".join(line.removeprefix("    ") for line in block[0].splitlines()).strip() + "\n"


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Both files where the program looks, with the checksums of files that are written here; returns data.dir."""
    folder = tmp_path / "data" / "stripes"
    folder.mkdir(parents=True)
    text = file_under("A published data set")
    lines = np.tile(np.array([[0], [255]], dtype=np.uint8), (8, 16))[..., None]
    for split, num_images in (("train", 40), ("test", 10)):
        labels_N = np.arange(num_images, dtype=np.int64) % 2
        noise_NHWC = np.random.default_rng(num_images).integers(0, 40, (num_images, 16, 16, 1))
        images_NHWC = np.stack([lines if label == 0 else lines.transpose(1, 0, 2) for label in labels_N])
        arrays: dict[str, NDArray[Any]] = {
            "images": (images_NHWC * 0.8 + noise_NHWC).astype(np.uint8),
            "labels": labels_N,
        }
        for name, array in arrays.items():
            np.save(path := folder / f"{split}_{name}.npy", array)
            md5 = hashlib.md5(path.read_bytes()).hexdigest()
            text, replaced = re.subn(rf'("{path.name}": )"\w+"', rf'\1"{md5}"', text)
            assert replaced == 1
    for package, name, content in (
        (sets, "stripes", text),
        (architectures, "two_stages", file_under("An architecture trained from scratch")),
    ):
        place = tmp_path / package.__name__.rpartition(".")[2]
        place.mkdir()
        (place / f"{name}.py").write_text(content)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(place)])
    compose_config.__globals__["_composed"].cache_clear()
    yield tmp_path / "data"
    compose_config.__globals__["_composed"].cache_clear()
    for name in ("data.sets.stripes", "networks.architectures.two_stages"):
        sys.modules.pop(f"transfergrid.{name}", None)


def test_one_new_file_is_a_data_set_and_one_an_architecture_and_a_run_trains_the_one_on_the_other(
    added: Path, tmp_path: Path
) -> None:
    assert "stripes" in data.kinds() and "stripes" in choices("dataset") and "two_stages" in architectures.names()
    settings = ("phase.scratch.epochs=8", "phase.scratch.batch_size=9", "phase.scratch.precision=fp32")
    places = (f"store.dir={tmp_path / 'store'}", f"cache.dir={tmp_path / 'cache'}", f"data.dir={added}")
    asked = load_run(["model=two_stages", "dataset=stripes", "phase=scratch", *settings, *places, *MACHINE])
    assert carry_out(asked) == "completed"
    record = record_of(final_run(asked), asked.runtime)
    assert (record.parameters, record.n_train) == (1_450, 36)  # for two classes; ten of a hundred images are held out
    assert record.metrics["test_accuracy"] == 1.0


def test_its_files_are_verified_and_a_missing_one_is_told(added: Path) -> None:
    data.find("stripes", data_dir=added)
    (added / "stripes" / "test_labels.npy").unlink()
    with pytest.raises(DataError, match=r"stripes: test_labels.npy not found in .*stripes \(nothing fetches them\)"):
        data.find("stripes", data_dir=added)
