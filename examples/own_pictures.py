"""Your own pictures: a folder of pictures, a grid of networks on it, the best of them, and names for new pictures.

    python examples/own_pictures.py

Works in the folder where it is started, from a checkout or with transfergrid installed; writes pictures/, results/ and
cache/ there. It takes half a minute on two CPU cores and needs no network: the pictures are handwritten digits from
scikit-learn, the networks are the two tiny ones inside transfergrid. Each step says what to put in for your own.
"""

import json
import subprocess
import sys
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits

import transfergrid

PICTURES, NEW = Path("pictures"), Path("new_pictures")
GRID = "compare-pictures"  # `compare-` and the folder's name
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def make_pictures() -> None:
    """Of each class 80 pictures to train on, 40 to test with and one new one. Yours lie in such folders already."""
    digits = load_digits()
    for label, name in enumerate(NAMES):
        for number, pixels in enumerate(digits.images[digits.target == label][:121]):
            folder = PICTURES / "train" / name if number < 80 else PICTURES / "test" / name if number < 120 else NEW
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray((pixels * 15).astype("uint8")).save(folder / f"{name}_{number}.png")


def launch() -> None:
    """For your pictures: dataset.folder=DIR, 'grid.models=[resnet18,vgg16,resnet18+vgg16]', and no weights=."""
    models = "grid.models=[tinynet_mnist,tinynet_cifar,tinynet_mnist+tinynet_cifar]"
    grid = ("grid=compare", models, "weights=builtin", "grid.phases=[probe]", "grid.seeds=[0]")
    place = ("dataset=image_folder", f"dataset.folder={PICTURES}", "cluster=local", "tracking=disabled")
    subprocess.run([sys.executable, "-m", "transfergrid", "launch", *grid, *place], check=True)


def best_run() -> str:
    """The run of the row with the highest accuracy on val. Choices are made on val, so that test stays unseen."""
    rows = [row for row in transfergrid.read_comparison(GRID) if row.val_accuracy is not None]
    best = max(rows, key=lambda row: row.val_accuracy or 0)
    print(f"\nbest on val: {best.model} ({best.phase}), test accuracy {best.test_accuracy:.3f}")
    configurations = json.loads(Path(f"results/grids/{GRID}.json").read_text())["configurations"]
    run: str = next(c["run_id"] for c in configurations if (c["model"], c["phase"]) == (best.model, best.phase))
    return run


def name_pictures(run: str) -> None:
    model = transfergrid.load_model(run)
    for picture in model.predict(sorted(NEW.iterdir())):
        if picture.logits_C is None:
            print(picture.error)
        else:
            print(f"{Path(picture.file).name:14} {model.class_names[int(picture.logits_C.argmax())]}")


if __name__ == "__main__":
    make_pictures()
    launch()
    name_pictures(best_run())
