"""Tables on terminals of any width, without a word or a figure that is cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

from transfergrid.cli.console import wrapped

FOLDED_WIDTH = 16


@dataclass(frozen=True, slots=True)
class Fitting:
    """A table whose columns share the width of the console so that no word is cut: where that is needed columns stand
    closer, and texts break between words. Where the longest words have no room side by side, each row is a line of its
    first texts, and one of its figures with their names.

    table: with a box of one column between cells. whole: positions of columns whose cells do not break. folded: of
    columns whose words may break at FOLDED_WIDTH.
    """

    table: Table
    whole: frozenset[int] = frozenset()
    folded: frozenset[int] = frozenset()

    @property
    def row_count(self) -> int:
        return self.table.row_count

    @property
    def whole_width(self) -> int:
        """In which no line is broken."""
        return sum(self._widths(_longest_line)) + 2 * (len(self.table.columns) - 1)

    @property
    def least_width(self) -> int:
        """In which no word is cut."""
        return sum(self._least()) + len(self.table.columns) - 1

    def _widths(self, of_text: Callable[[str], int]) -> list[int]:
        texts = ([str(column.header), *map(str, column.cells)] for column in self.table.columns)
        return [max(map(of_text, of_column)) for of_column in texts]

    def _least(self) -> list[int]:
        cells = [max(map(_longest_line, map(str, c.cells)), default=1) for c in self.table.columns]
        words = self._widths(_longest_word)
        words = [min(word, FOLDED_WIDTH) if i in self.folded else word for i, word in enumerate(words)]
        return [max(words[i], cell) if i in self.whole else words[i] for i, cell in enumerate(cells)]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        if self.least_width > options.max_width:
            yield from self._row_by_row(options.max_width)
            return
        fits = self.whole_width <= options.max_width
        self.table.padding = (0, 1, 0, 0) if fits else 0
        widths, least = self._widths(_longest_line), self._least()
        over = 0 if fits else sum(widths) + len(widths) - 1 - options.max_width
        for _ in range(over):
            widest = max((i for i in range(len(widths)) if widths[i] > least[i]), key=lambda i: widths[i])
            widths[widest] -= 1
        for column, width in zip(self.table.columns, widths, strict=True):
            column.width = width
        yield self.table

    def _row_by_row(self, width: int) -> Iterator[Text]:
        names = [str(column.header) for column in self.table.columns]
        first = next((i for i, column in enumerate(self.table.columns) if i and column.justify == "right"), len(names))
        cells = [[str(cell).replace("+\n", "+").replace("\n", " ") for cell in c.cells] for c in self.table.columns]
        for row, texts in zip(self.table.rows, zip(*cells, strict=True), strict=True):
            figures = [f"{name} {text}" for name, text in zip(names[first:], texts[first:], strict=True) if text]
            lines = [wrapped(" ".join(filter(None, texts[:first])), width)]
            lines += [wrapped("  " + "; ".join(figures), width)] if figures else []
            yield Text("\n".join(lines), style=row.style or "", overflow="fold")
        for line in str(self.table.caption or "").splitlines():
            yield Text(wrapped(line, width), overflow="fold")


def _longest_line(text: str) -> int:
    return max(map(cell_len, text.split("\n")))


def _longest_word(text: str) -> int:
    return max(map(cell_len, text.replace("\n", " ").split(" ")))
