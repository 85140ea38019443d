"""What can be named on a command line, with the facts that are known without torch and without reading a picture."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from transfergrid import data
from transfergrid.config.cluster_file import read_cluster_file
from transfergrid.config.folders import choices, conf_dir, content_of, find
from transfergrid.data import sets
from transfergrid.errors import ConfigError, one_line
from transfergrid.networks import architectures, backbones
from transfergrid.networks.backbones import timm_names

Row = tuple[str, ...]


def rows_of(kind: str, word: str | None) -> list[Row]:
    """The rows in which the word stands, in whatever case; all where there is none."""
    rows = list(LISTS[kind][1]())
    if kind == "models" and word is not None:
        rows += [(f"timm/{name}", "", "", "a network of timm") for name in sorted(timm_names())]
    return [row for row in rows if word is None or word.lower() in " ".join(row).lower()]


def _models() -> Iterator[Row]:
    for name in backbones.names():
        known = backbones.entry(name)
        text = f"backbone: {', '.join(known.weights) or 'random weights alone'}"
        yield name, f"{known.parameters / 1e6:.2f} M", str(known.feature_dim), text
    for name in architectures.names():
        yield name, "", "", f"from scratch: {_first_line(architectures.text_of(name))}"


def _datasets() -> Iterator[Row]:
    for name in choices("dataset"):
        try:
            content = content_of("dataset", name)
        except ConfigError as error:
            yield name, "", "", "", one_line(error)
            continue
        kind = str(content.get("kind"))
        if kind not in data.kinds():
            yield name, "", "", "", f"{find('dataset', name)}: unknown kind {kind!r}"
            continue
        text = _first_line((Path(sets.__path__[0]) / f"{kind}.py").read_text(encoding="utf-8")).partition(": ")[0]
        if kind == "image_folder":
            yield name, "", "", "", f"{text}: dataset.folder={content.get('folder') or 'DIR'}"
        else:
            facts = data.facts(kind)
            images = (str(facts.num_images.get(split, "")) for split in ("train", "test"))
            yield name, str(facts.num_classes), *images, text


def _grids() -> Iterator[Row]:
    for name in choices("grid"):
        file = find("grid", name)
        assert file is not None, name
        text = file.read_text(encoding="utf-8", errors="replace")
        runs = re.search(r"^# Runs: ([\d,]+)$", text, re.MULTILINE)
        yield name, runs[1] if runs else "", _question(text) + _place(file)


def _question(text: str) -> str:
    """The first sentence of a grid file's header."""
    comments = [line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#")]
    prose = [line for line in comments if not line.startswith(("@package", "python jobs/", "Runs:", "transfergrid "))]
    words = " ".join(prose).strip()
    end = re.search(r"[.?:](?= |$)", words)
    return words[: end.end()].rstrip(":.") if end else words[:100]


def _clusters() -> Iterator[Row]:
    for name in choices("cluster"):
        values: dict[str, object] = {}
        try:
            for _, content in read_cluster_file(name):
                values |= content
        except ConfigError as error:
            yield name, "", "", one_line(error)
            continue
        file = find("cluster", name)
        assert file is not None, name
        yield name, str(values.get("kind") or "auto"), str(values.get("partition") or ""), str(file)


def _place(file: Path) -> str:
    """Of a user's own file, where it lies."""
    return "" if file.is_relative_to(conf_dir().resolve()) else f" [{file}]"


def _first_line(module: str) -> str:
    """Of a module's docstring, from its text: importing it may load torch."""
    docstring = ast.get_docstring(ast.parse(module)) or ""
    return docstring.partition("\n")[0].rstrip(".")


# Of each kind of thing: the columns, the last of which is text, and what makes the rows.
LISTS: Mapping[str, tuple[Row, Callable[[], Iterator[Row]]]] = {
    "models": (("model", "parameters", "features", "weights, or what it is"), _models),
    "datasets": (("data set", "classes", "train", "test", "what it is"), _datasets),
    "grids": (("grid", "runs", "what it asks"), _grids),
    "clusters": (("cluster", "kind", "partition", "file"), _clusters),
}
