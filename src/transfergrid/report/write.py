"""results/reports/<name>/: answer.json, comparison.csv, comparison.md, comparison.tex, index.html, figures/."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from transfergrid.errors import one_line
from transfergrid.names import utf8
from transfergrid.report import markdown, several
from transfergrid.report.analysis.answer import answer_of
from transfergrid.report.analysis.comparison import Comparison
from transfergrid.report.documents import as_csv
from transfergrid.report.latex import as_latex
from transfergrid.report.page.render import render_page
from transfergrid.report.wording import ties, verdict
from transfergrid.store import durable


def write(
    comparisons: Sequence[Comparison],
    *,
    figures: bool,
    folder: Path | None = None,
    show: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Write the report of one grid, or of several side by side under <A>-vs-<B>; returns the path of comparison.md.

    Without `figures` the tables and the page alone, in a second. folder: another place than the store's. show: is told
    after each figure how many are drawn, of how many.
    """
    whole = several.joined(comparisons)
    apart = several.named_apart(whole)
    folder = folder or whole.store.report(report_name([c.grid for c in comparisons]))
    sections = several.sections(comparisons)
    notes_below = [*verdict(whole).splitlines(), *ties(apart)]
    write_answer(whole, folder)
    durable.write_bytes(folder / "comparison.csv", utf8(as_csv(whole.rows)))
    durable.write_bytes(folder / "comparison.md", utf8(markdown.document(f"Comparison: {whole.grid}", sections)))
    durable.write_bytes(folder / "comparison.tex", utf8(as_latex(whole.grid, apart.rows, notes=notes_below)))
    # Tables and page stand before the figures are begun: those can take minutes, and a job has its limits.
    page = render_page(whole, sections, figure_notes=["figures were not asked for, or are still being made"])
    durable.write_bytes(folder / "index.html", utf8(page))
    if figures:
        from transfergrid.data.images_at_hand import images_at_hand
        from transfergrid.report.figures import make_figures

        drawn, notes = make_figures(apart, folder / "figures", images=images_at_hand(whole.store), show=show)
        summaries = _summaries(whole, notes)
        page = render_page(whole, sections, figures=drawn, figure_notes=notes, summaries=summaries)
        durable.write_bytes(folder / "index.html", utf8(page))
    return folder / "comparison.md"


def write_answer(comparison: Comparison, folder: Path) -> None:
    durable.write_json(folder / "answer.json", answer_of(comparison).as_json())


def report_name(grids: Sequence[str]) -> str:
    return "-vs-".join(grids)


def _summaries(comparison: Comparison, notes: list[str]) -> dict[str, str]:
    """Model -> its layers; a network that cannot be built here is noted, and stops nothing."""
    from transfergrid.report.figures.architecture import table

    summaries: dict[str, str] = {}
    for runs in comparison.runs:
        for record in runs[:1]:
            if record.spec.model in summaries:
                continue
            try:
                summaries[record.spec.model] = table(record.spec)
            except Exception as error:  # whatever one network's code does, the report is wanted
                notes.append(f"no layers of {record.spec.model}: {one_line(error)}")
                summaries[record.spec.model] = ""
    return summaries
