"""index.html: the whole report on one page, in one file that loads nothing and runs no script but its own.

Names of models, classes, data sets, folders and errors come from outside: jinja2 escapes all of them, and the page's
policy lets a browser run or fetch nothing else, whatever was overlooked.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

from transfergrid.names import utf8
from transfergrid.report import wording
from transfergrid.report.analysis import handover, integrity, remarks
from transfergrid.report.analysis.answer import answer_of
from transfergrid.report.analysis.columns import columns_of, use_notes
from transfergrid.report.analysis.comparison import Comparison
from transfergrid.report.analysis.rows import ComparisonRow
from transfergrid.report.blocks import Section
from transfergrid.report.page import models, provenance
from transfergrid.report.page.embedding import PAGE_BYTES, Embedded, embed
from transfergrid.report.page.first_screen import SIGNS, beside_lines, data_lines, standings
from transfergrid.report.page.models import RowDetails
from transfergrid.report.page.provenance import Flag
from transfergrid.report.page.table import cells_of, page_table, short_names

if TYPE_CHECKING:
    from transfergrid.report.figures import Figure

FIRST_FIGURES = "accuracy"  # the section whose figures stand above the table
FIRST = ("claims",)  # sections that stand above the table
ELSEWHERE = ("rows", "failures", "integrity")  # those that the page tells in its own place
OF_A_MODEL = ("curves", "errors", "architecture", "calibration")  # figures that stand with their model where it is one
FILTERS = ("grid", "dataset", "phase", "status")
_SPARE_BYTES = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSection:
    name: str
    about: str
    rows: list[RowDetails]
    summary: str


def render_page(
    comparison: Comparison,
    sections: Sequence[Section],
    *,
    figures: Sequence[Figure] = (),
    figure_notes: Sequence[str] = (),
    summaries: Mapping[str, str] | None = None,
) -> str:
    """The page as text, below 5 MB. sections: those of comparison.md.

    summaries: model -> its layers as torchinfo prints them.
    """
    context = _context(comparison, sections, summaries or {})
    context["figure_notes"] = list(figure_notes)
    bare = _rendered(context, figures, {}, ())
    budget = PAGE_BYTES - len(utf8(bare)) - _SPARE_BYTES - sum(1_000 + 6 * len(f.caption) for f in figures)
    embedded, left_out = embed(figures, budget_bytes=max(0, budget))
    return _rendered(context, figures, embedded, left_out)


# --------------------------------------------------------------------------------------------------------- the template
def _rendered(
    context: dict[str, Any],
    figures: Sequence[Figure],
    embedded: Mapping[str, Embedded],
    left_out: Sequence[Figure],
) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("transfergrid.report.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["as_page_table"] = page_table
    style, script = _asset("page.css"), _asset("page.js")
    of_models: dict[str, list[Embedded]] = {}
    sections: dict[str, list[Embedded]] = {}
    first_figures = [e for e in embedded.values() if e.figure.section == FIRST_FIGURES]
    for e in embedded.values():
        if e.figure.section == FIRST_FIGURES:
            continue
        if e.figure.section in OF_A_MODEL and len(e.figure.models) == 1:
            of_models.setdefault(e.figure.models[0], []).append(e)
        else:
            sections.setdefault(e.figure.section, []).append(e)
    return environment.get_template("page.html.j2").render(
        context,
        style=Markup(style),
        script=Markup(script),
        policy=_policy(style, script),
        figures=bool(figures),
        first_figures=first_figures,
        figure_sections=sections,
        figures_of_models=of_models,
        left_out=[figure.png.name for figure in left_out],
    )


def _asset(name: str) -> str:
    return (resources.files("transfergrid.report.page") / "templates" / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    def source(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; img-src data:; style-src {source(style)}; script-src {source(script)}; "
        "base-uri 'none'; form-action 'none'"
    )


# ---------------------------------------------------------------------------------------------------------- the context
def _context(comparison: Comparison, sections: Sequence[Section], summaries: Mapping[str, str]) -> dict[str, Any]:
    short, columns = short_names(comparison.rows), columns_of(comparison.rows)
    if len({row.dataset for row in comparison.rows}) == 1:
        short -= {"dataset"}  # the first sentence names it
    standing_by_row = standings(comparison, answer_of(comparison))
    details = models.row_details(comparison, _flags(comparison))
    cells = [cells_of(row, columns, short) for row in comparison.rows]
    codes = len({line[2] for line in provenance.provenance_lines(comparison)})
    return {
        "title": f"Comparison: {comparison.grid}",
        "verdict": wording.verdict(comparison),
        "beside_lines": beside_lines(answer_of(comparison)),
        "data_lines": data_lines(comparison),
        "counts": sections[0].about[0] if sections else "",
        "times": provenance.times(comparison),
        "first": [s for s in sections if s.name in FIRST],
        "others": [s for s in sections if s.name not in FIRST + ELSEWHERE],
        "columns": [(column, name in short) for name, column in columns.items()],
        "rows": sorted(zip(details, cells, standing_by_row, strict=True), key=lambda row: row[2].rank),
        "signs": [sign for kind, sign in SIGNS.items() if kind in {standing.kind for standing in standing_by_row}],
        "measured_on": use_notes(comparison.rows),
        "understates": remarks.UNDERSTATES if any(row.better_than_head for row in comparison.rows) else "",
        "val_column": f"val_{comparison.rows[0].select_by}" if comparison.rows else "val_accuracy",
        "filters": _filters(comparison.rows),
        "filter_names": FILTERS,
        "models": _models(comparison.rows, details, summaries),
        "missing": wording.missing(comparison),
        "provenance": provenance.table(comparison),
        "provenance_verdict": _provenance_verdict(codes),
    }


def _flags(comparison: Comparison) -> list[tuple[Flag, ...]]:
    """Beside each row what is doubtful about its runs, in a few words and without doubles."""
    doubts = [[Flag(finding.kind) for finding in of_row] for of_row in integrity.findings(comparison)]
    starts = [[Flag(kind) for kind in of_row] for of_row in handover.flags(comparison)]
    beside = zip(doubts, provenance.code_flags(comparison), starts, strict=True)
    return [tuple(dict.fromkeys(flag for flags in of_row for flag in flags)) for of_row in beside]


def _provenance_verdict(codes: int) -> str:
    if codes == 0:
        return "No run has completed yet."
    if codes == 1:
        return "All runs were made by the same code."
    return f"The runs were made by {codes} versions of the code; the table marks rows that differ."


def _filters(rows: Sequence[ComparisonRow]) -> dict[str, list[str]]:
    """What the selects choose by, and from what; the grid where there are several."""
    filters = {name: list(dict.fromkeys(getattr(row, name) for row in rows)) for name in FILTERS}
    return {name: options for name, options in filters.items() if name != "grid" or len(options) > 1}


# ----------------------------------------------------------------------------------------------------------- the models
def _models(
    rows: Sequence[ComparisonRow], details: Sequence[RowDetails], summaries: Mapping[str, str]
) -> list[ModelSection]:
    return [
        ModelSection(
            name=model,
            about=_about([row for row in rows if row.model == model]),
            rows=[of_row for of_row in details if of_row.row.model == model],
            summary=summaries.get(model, ""),
        )
        for model in dict.fromkeys(row.model for row in rows)
    ]


def _about(rows: Sequence[ComparisonRow]) -> str:
    size = next((f"{row.parameters:,} parameters" for row in rows if row.parameters is not None), "")
    return ", ".join(part for part in (f"{len(rows)} row{'s' if len(rows) != 1 else ''}", size) if part)
