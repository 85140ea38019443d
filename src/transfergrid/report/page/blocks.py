"""The report's own Markdown, taken apart into blocks, so that page and Markdown say the same from one source.

It knows what `documents` writes: `##` headings, paragraphs, `-` lists, pipe tables. Text stays text; the page
escapes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby

SENTENCE = 40  # characters; a longer cell is no name
FOLDED = ("study", "variant", "weights", "protocol")  # columns that leave their table where all lines say the same
_CELL_END = re.compile(r"(?<!\\)\|")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A paragraph (`lines` holds one), a list, or a table (header, cells); text may hold `code` in backticks.

    same: of a table, what holds for all its lines and stands in no column: `weights random, protocol fair`.
    """

    kind: str
    lines: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    numeric: tuple[bool, ...] = ()
    cells: tuple[tuple[str, ...], ...] = ()
    same: str = ""

    @property
    def wide(self) -> tuple[bool, ...]:
        """Per column of a table: does it hold sentences, which need room?"""
        return tuple(max(map(len, column)) > SENTENCE for column in zip(*self.cells, strict=True))


def folded(block: Block) -> Block:
    """A table without the columns of FOLDED whose cells are all alike; `same` says what they held."""
    if not block.cells:
        return block
    columns = dict(zip(block.header, zip(*block.cells, strict=True), strict=True))
    same = {name: columns[name][0] for name in FOLDED if name in columns and len(set(columns[name])) == 1}
    kept = [i for i, name in enumerate(block.header) if name not in same]
    return replace(
        block,
        header=tuple(block.header[i] for i in kept),
        numeric=tuple(block.numeric[i] for i in kept),
        cells=tuple(tuple(line[i] for i in kept) for line in block.cells),
        same=", ".join(f"{name} {value}" for name, value in same.items() if value),
    )


@dataclass(frozen=True, slots=True)
class Section:
    """A `##` heading and what stands below it; the heading is empty for what comes before the first."""

    heading: str
    blocks: tuple[Block, ...]


def sections(markdown: str) -> tuple[Section, ...]:
    found: list[tuple[str, list[str]]] = [("", [])]
    for line in markdown.splitlines():
        if line.startswith("## "):
            found.append((line[3:].strip(), []))
        elif not line.startswith("# "):
            found[-1][1].append(line)
    return tuple(Section(heading, blocks("\n".join(lines))) for heading, lines in found)


def blocks(markdown: str) -> tuple[Block, ...]:
    return tuple(_blocks(markdown.splitlines()))


def _blocks(lines: list[str]) -> Iterator[Block]:
    for kind, group in groupby(_with_kind(lines), key=lambda pair: pair[0]):
        texts = [text for _, text in group]
        if kind == "table":
            yield _table(texts)
        elif kind == "list":
            yield Block(kind="list", lines=tuple(_joined(texts)))
        elif kind == "heading":
            yield from (Block(kind="heading", lines=(text.lstrip("# "),)) for text in texts)
        elif kind:
            yield Block(kind="paragraph", lines=(" ".join(text.strip() for text in texts),))


def _with_kind(lines: list[str]) -> Iterator[tuple[str, str]]:
    kind = ""
    for line in lines:
        if not line.strip():
            kind = ""
        elif line.startswith("|"):
            kind = "table"
        elif line.startswith("#"):
            kind = "heading"
        elif line.startswith("- "):
            kind = "list"
        elif not (kind == "list" and line.startswith("  ")):
            kind = "paragraph"
        yield kind, line


def _joined(texts: list[str]) -> Iterator[str]:
    """List items, each with its continuation lines."""
    item = ""
    for text in texts:
        if text.startswith("- "):
            if item:
                yield item
            item = text[2:].strip()
        else:
            item += " " + text.strip()
    yield item


def _table(texts: list[str]) -> Block:
    header, rule, *rows = [tuple(_cells(text)) for text in texts]
    return Block(kind="table", header=header, numeric=tuple(r.endswith(":") for r in rule), cells=tuple(rows))


def _cells(line: str) -> list[str]:
    return [cell.strip().replace("\\|", "|") for cell in _CELL_END.split(line)[1:-1]]
