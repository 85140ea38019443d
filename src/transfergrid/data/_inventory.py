"""What lies in a folder of images, and what of it is not read: counted, so that nothing is passed over in silence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from transfergrid.names import some

# split -> class -> paths relative to the folder
Listing = Mapping[str, Mapping[str, list[str]]]

SPLITS = ("train", "val", "test")
OUTSIDE = "outside of class folders"
THUMBNAILS = "folders of thumbnails"
HIDDEN = "hidden"
TWICE = {split: f"more than once in {split}" for split in SPLITS}
_MOST_NAMES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """per_class: split -> images of its smallest and of its largest class.

    folders: split -> the folder that serves as it, where that has another name. skipped: why -> how many entries, and
    the first. unused: folders beside those of the splits. copies: where -> how many pictures are there more than once,
    byte for byte. damaged: path -> why it cannot be used, of those that `skip_damaged` leaves out.
    respelled: of each class whose folders look alike and are spelled in two ways, where and how.
    """

    per_class: Mapping[str, tuple[int, int]]
    folders: Mapping[str, str] = field(default_factory=dict)
    skipped: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    copies: Mapping[str, int] = field(default_factory=dict)
    damaged: Mapping[str, str] = field(default_factory=dict)
    respelled: tuple[str, ...] = ()

    @property
    def is_odd(self) -> bool:
        """Whether a person should look: pictures are left out, or stand where they make a number too good."""
        across = set(self.copies) - set(TWICE.values())
        return bool(self.unused or across or self.damaged or set(self.skipped) - {HIDDEN})

    def parts(self, num_images: Mapping[str, int]) -> Iterator[str]:
        """The sentence, in its parts. num_images: split -> images."""
        yield ", ".join(f"{s} {num_images[s]} images ({_range(*self.per_class[s])} per class)" for s in num_images)
        for split, folder in self.folders.items():
            yield f"{split} is {folder}/"
        if self.skipped:
            yield "not read: " + ", ".join(f"{n} {why} (as {first})" for why, (n, first) in self.skipped.items())
        if self.damaged:
            yield f"left out because they cannot be used: {len(self.damaged)}"
        if self.unused:
            yield "not used: " + ", ".join(f"{name}/" for name in self.unused)
        if self.respelled:
            yield f"class folders spelled in two ways are one class (Unicode NFC): {some(self.respelled, 1)}"
        if self.copies:
            yield "the same picture: " + ", ".join(f"{n} {where}" for where, n in self.copies.items())

    def as_details(self) -> dict[str, object]:
        """For the record; of what was left out as damaged the number and the first names."""
        counted = {why: n for why, (n, _) in self.skipped.items()}
        details = {"folders": dict(self.folders), "skipped": counted, "unused": list(self.unused)}
        details |= {"copies": dict(self.copies), "damaged": len(self.damaged)}
        details["damaged_files"] = sorted(self.damaged)[:_MOST_NAMES]
        return {name: value for name, value in details.items() if value}


def skip(skipped: dict[str, tuple[int, str]] | None, why: str, path: str) -> None:
    """Count one entry that is not read; the first by name is kept, whatever order a file system has."""
    if skipped is not None:
        count, first = skipped.get(why, (0, path))
        skipped[why] = (count + 1, min(first, path))


def copies(listing: Listing, sha256_of: Mapping[str, str]) -> dict[str, int]:
    """Where pictures of the same bytes lie. sha256_of: path -> of the file."""
    places: dict[str, list[tuple[str, str]]] = {}
    for split, classes in listing.items():
        for name, paths in classes.items():
            for path in paths:
                places.setdefault(sha256_of[path], []).append((split, name))
    counts: Counter[str] = Counter()
    for where in places.values():
        if len(where) == 1:
            continue
        splits = [s for s in SPLITS if any(s == split for split, _ in where)]
        if len({name for _, name in where}) > 1:
            counts["in two classes or more"] += 1
        if len(splits) > 1:
            counts[f"in {' and in '.join(splits)}"] += 1
        elif len(set(where)) == 1:
            counts[TWICE[splits[0]]] += 1
    return dict(counts)


def per_class(listing: Listing) -> dict[str, tuple[int, int]]:
    return {s: (min(map(len, c.values())), max(map(len, c.values()))) for s, c in listing.items()}


def _range(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"
