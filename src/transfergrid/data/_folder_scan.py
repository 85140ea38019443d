"""Everything that lies in a folder of images, by its place: what is read, and what is left out and why."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from transfergrid.data import _inventory as inventory
from transfergrid.data._formats import holds_image, lacking_for, suffixes, why_unread
from transfergrid.data._threads import in_threads
from transfergrid.errors import ConfigError, DataError
from transfergrid.names import composed, readable

_NAMES = {"val": ("val", "valid", "validation")}
_OF_FILE_SERVERS = ("@eaDir", "__MACOSX", "#recycle", "@Recycle")  # thumbnails, forks of resources, bins


@dataclass(frozen=True, slots=True)
class Scan:
    """listing: split -> class -> paths relative to the folder, classes and paths sorted. The rest as in Inventory."""

    listing: dict[str, dict[str, list[str]]]
    renamed: dict[str, str]
    skipped: dict[str, tuple[int, str]]
    unused: tuple[str, ...]
    respelled: tuple[str, ...]


def scan(folder: Path) -> Scan:
    """Everything in a folder, by its place. Checks the layout."""
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder; dataset.folder= wants one with train/<class>/ and test/<class>/")
    beside = _folders_in(folder)
    source_of = _sources(beside)
    present = list(source_of)
    if not present:
        raise DataError(
            f"{folder} has no train/, val/ or test/; wanted train/<class>/* and test/<class>/* (or val/<class>/*)"
        )
    if present == ["train"]:
        raise DataError(f"{folder} has neither test/ nor val/; wanted one of them, with the classes of train/")
    if "test" not in present:
        source_of["test"] = source_of.pop("val")
    skipped: dict[str, tuple[int, str]] = {}
    paths_of = {split: _classes(folder, source, skipped) for split, source in source_of.items()}
    listing, respelled = _compared(folder, paths_of, source_of)
    first, classes = next(iter(listing.items()))
    if first == "train" and len(classes) < 2:
        raise DataError(f"{folder}: train/ has one class, {next(iter(classes))!r}; wanted two or more")
    for split, source in source_of.items():
        if listing[split].keys() != classes.keys():
            odd = sorted(listing[split].keys() ^ classes.keys())[0]
            where, other = (source, first) if odd in listing[split] else (source_of[first], split)
            twin = next((name for name in listing[other] if _letters(name) == _letters(odd)), None)
            if twin is not None:
                raise DataError(
                    f"{folder}: class {odd!a} is in {where}/ only, and {source_of[other]}/ has {twin!a}: the same name"
                    " in another spelling; rename one of them"
                )
            raise DataError(
                f"{folder}: class {odd!r} is in {where}/ only; {source}/ and {source_of[first]}/ need the same classes"
            )
    renamed = {split: source for split, source in source_of.items() if source not in (split, "val")}
    unused = tuple(name for name in beside if name not in source_of.values() and name not in _OF_FILE_SERVERS)
    return Scan(listing, renamed, skipped, unused, respelled)


def scan_classes(folder: Path) -> Scan | None:
    """Of a folder of classes, DIR/<class>/*, all of it in `all`; None where the folder has splits, or no folders."""
    if not folder.is_dir() or not (beside := _folders_in(folder)) or _sources(beside):
        return None
    skipped: dict[str, tuple[int, str]] = {}
    classes = {
        name: [path.removeprefix("./") for path in paths] for name, paths in _classes(folder, ".", skipped).items()
    }
    listing, _ = _compared(folder, {"all": classes}, {"all": "."})
    without_dot = {why: (count, first.removeprefix("./")) for why, (count, first) in skipped.items()}
    return Scan(listing, {}, without_dot, (), ())


def _compared(
    folder: Path, paths_of: dict[str, dict[str, list[str]]], source_of: dict[str, str]
) -> tuple[dict[str, dict[str, list[str]]], tuple[str, ...]]:
    """The classes by their composed names, in the order of the first split's folders, and those whose folders are
    spelled in two ways. Raises DataError where one split has two folders for a class."""
    listing: dict[str, dict[str, list[str]]] = {}
    spelled: dict[str, dict[str, str]] = {}  # class -> how its folder is spelled -> where
    for split, classes in paths_of.items():
        own: dict[str, list[str]] = {}
        for name, paths in classes.items():
            if (class_name := composed(name)) in own:
                twin = next(n for n in classes if composed(n) == class_name)
                raise DataError(
                    f"{folder / source_of[split]}: the class folders {ascii(twin)} and {ascii(name)} look alike"
                    f" ({readable(class_name)}); merge them, or rename one"
                )
            own[class_name] = paths
            spelled.setdefault(class_name, {}).setdefault(name, source_of[split])
        place = {name: i for i, name in enumerate(next(iter(listing.values()), own))}
        listing[split] = dict(sorted(own.items(), key=partial(_place, place)))
    two = {name: forms for name, forms in spelled.items() if len(forms) > 1}
    respelled = (", ".join(f"{ascii(form)} in {where}/" for form, where in forms.items()) for forms in two.values())
    return listing, tuple(respelled)


def _place(place: Mapping[str, int], item: tuple[str, list[str]]) -> int:
    return place.get(item[0], len(place))


def _letters(name: str) -> str:
    """Equal for names that look alike: of composed and decomposed letters, in capitals, with blanks about them."""
    return unicodedata.normalize("NFKC", name).casefold().strip()


def _folders_in(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(e.name for e in entries if not e.name.startswith(".") and os.path.isdir(e.path))
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror})", remedy="mend or remove it") from error


def _sources(folders: Sequence[str]) -> dict[str, str]:
    """split -> its folder: of the names that stand for it the first that is there, then such a name in capitals."""
    source_of = {}
    for split in inventory.SPLITS:
        names = _NAMES.get(split, (split,))
        exact = [name for name in names if name in folders]
        alike = [folder for name in names for folder in folders if folder.lower() == name]
        if exact or alike:
            source_of[split] = (exact or alike)[0]
    return source_of


def _classes(folder: Path, split_folder: str, skipped: dict[str, tuple[int, str]]) -> dict[str, list[str]]:
    names = [name for name in _folders_in(folder / split_folder) if name not in _OF_FILE_SERVERS]
    for name in sorted(os.listdir(folder / split_folder)):
        if name in _OF_FILE_SERVERS:
            inventory.skip(skipped, inventory.THUMBNAILS, f"{split_folder}/{name}")
        elif name not in names and name.lower().endswith(suffixes()):
            inventory.skip(skipped, inventory.OUTSIDE, f"{split_folder}/{name}")
    if not names:
        raise DataError(f"{folder / split_folder} has no class folders; wanted {split_folder}/<class>/*")
    classes = {name: sorted(_images_below(folder, f"{split_folder}/{name}", skipped=skipped)) for name in names}
    for name, paths in classes.items():
        if not paths:
            raise DataError(
                f"{folder / split_folder / name} has no images; wanted files ending in {' '.join(suffixes())}"
            )
    return classes


def _images_below(
    folder: Path,
    relative: str,
    above: tuple[tuple[int, int], ...] = (),
    *,
    others: list[str] | None = None,
    skipped: dict[str, tuple[int, str]] | None = None,
) -> list[str]:
    """above: device and inode of the folders that lead here. others: gets what is no image by its name; with it, what
    cannot be read is listed, folders included, to be named when it is read. skipped: is told of what is left out. Links
    to nothing and pipes are named when they are read.

    Raises DataError for a folder that cannot be read, or that a link within it leads to again.
    """
    path = folder / relative
    paths: list[str] = []
    try:
        stat = os.stat(path)
        here = (stat.st_dev, stat.st_ino)
        if here in above and others is not None:
            return []  # all of it is there already
        if here in above:
            raise DataError(f"{path} is a link to a folder that holds it", remedy="remove the link")
        with os.scandir(path) as entries:
            for entry in entries:
                name = f"{relative}/{entry.name}"
                if entry.name.startswith("."):
                    inventory.skip(skipped, inventory.HIDDEN, name)
                    continue
                kind = Path(entry.path) if entry.is_symlink() else entry  # a link may lead to itself
                if kind.is_dir() and entry.name in _OF_FILE_SERVERS and others is None:
                    inventory.skip(skipped, inventory.THUMBNAILS, name)
                elif kind.is_dir():
                    paths += _images_below(folder, name, (*above, here), others=others, skipped=skipped)
                elif entry.name.lower().endswith(suffixes()) or (others is not None and why_unread(entry.name)):
                    paths.append(name)
                elif others is not None:
                    others.append(name)
                else:
                    inventory.skip(skipped, _by_suffix(name), name)
    except OSError as error:
        if others is not None and above:
            return [*paths, relative]
        raise DataError(
            f"{error.filename or path} cannot be read ({error.strerror})", remedy="mend or remove it"
        ) from error
    return paths


def _by_suffix(name: str) -> str:
    suffix = Path(name).suffix.lower() or "without a suffix"
    lacking = lacking_for(name)
    return f"{suffix}: {lacking}" if lacking else suffix


def image_files(folder: Path, skipped: dict[str, tuple[int, str]] | None = None) -> list[str]:
    """Every image below a folder, sorted, relative to it, whatever becomes of reading it: all that are images by their
    name, and others that hold one. skipped: why -> how many files are no images, or hidden, and the first."""
    others: list[str] = []
    paths = _images_below(folder, ".", others=others, skipped=skipped)
    for path, is_one in zip(others, in_threads(lambda path: holds_image(folder / path), others), strict=True):
        if is_one:
            paths.append(path)
        else:
            inventory.skip(skipped, _by_suffix(path), path)
    return sorted(path.removeprefix("./") for path in paths)
