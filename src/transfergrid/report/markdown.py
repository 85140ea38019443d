"""Sections as Markdown: comparison.md, and tables in texts for W&B and for model cards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transfergrid.report.blocks import Section, Table


def document(title: str, sections: Sequence[Section]) -> str:
    return "\n".join([f"# {title}\n", *map(section_text, sections)])


def section_text(section: Section | None) -> str:
    """Empty for None: a section that has nothing to say."""
    if section is None:
        return ""
    blocks = [f"## {section.heading}\n"] if section.title else []
    blocks += [f"{paragraph}\n" for paragraph in section.about]
    for table in section.tables:
        blocks += [f"{table.title}:\n"] if table.title else []
        blocks.append(table_text(table))
    blocks += [list_text(section.items)] if section.items else []
    blocks += [f"{paragraph}\n" for paragraph in section.below]
    return "\n".join(blocks)


def table_text(table: Table[Any], *, units: bool = False) -> str:
    """A pipe table, and below it what its marks say. units: whether the header tells them."""
    header = [column.heading_with_unit if units else column.heading for column in table.columns]
    rule = ["---:" if column.is_number else "---" for column in table.columns]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in (header, rule, *table.texts())]
    lines = "".join(f"| {' | '.join(line)} |\n" for line in cells)
    notes = list_text([f"{mark}: {text}." for mark, text in table.notes])
    return f"{lines}\n{notes}" if notes else lines


def list_text(items: Sequence[str]) -> str:
    return "".join(f"- {item}\n" for item in items)
