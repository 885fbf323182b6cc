"""Tables as plain text, Markdown, CSV or LaTeX."""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len

from denetdm_cli.utils.log import shown

_LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


@dataclass(frozen=True)
class Sheet:
    """A table of text.

    Attributes:
        title: above it; empty for none.
        columns: their headings.
        rows: as many cells each.
        left: how many of the first columns are words, and not figures.
        notes: below it.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int
    notes: Sequence[str] = ()


def as_text(sheet: Sheet) -> str:
    """Columns of a fixed width; nothing is cut off, and what could not be printed is escaped."""
    rows = [[shown(cell) for cell in row] for row in (sheet.columns, *sheet.rows)]
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        cells = []
        for at, (cell, width) in enumerate(zip(row, widths, strict=True)):
            gap = " " * (width - cell_len(cell))
            cells.append(cell + gap if at < sheet.left else gap + cell)
        return "  ".join(cells).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    body = [line(rows[0]), rule, *map(line, rows[1:])]
    return _paragraphs([sheet.title] if sheet.title else [], body, [shown(note) for note in sheet.notes])


def as_markdown(sheet: Sheet) -> str:
    """A table of GitHub's Markdown."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"

    marks = ["---" if at < sheet.left else "---:" for at in range(len(sheet.columns))]
    rows = [line([_markdown(cell) for cell in row]) for row in (sheet.columns, *sheet.rows)]
    body = [rows[0], line(marks), *rows[1:]]
    title = [f"**{_markdown(sheet.title)}**"] if sheet.title else []
    return _paragraphs(title, body, [f"- {_markdown(note)}" for note in sheet.notes])


def as_latex(sheet: Sheet) -> str:
    """A floating table that needs no package."""

    def line(cells: Sequence[str]) -> str:
        return f"    {' & '.join(map(_latex, cells))} \\\\"

    layout = "".join("l" if at < sheet.left else "r" for at in range(len(sheet.columns)))
    lines = [
        r"\begin{table}",
        r"  \centering",
        *([f"  \\caption{{{_latex(sheet.title)}.}}"] if sheet.title else []),
        f"  \\begin{{tabular}}{{{layout}}}",
        r"    \hline",
        line(sheet.columns),
        r"    \hline",
        *map(line, sheet.rows),
        r"    \hline",
        r"  \end{tabular}",
        *(f"  \\par {_latex(note)}" for note in sheet.notes),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def as_csv(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Comma-separated values, figures in full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def _paragraphs(title: Sequence[str], body: Sequence[str], notes: Sequence[str]) -> str:
    parts = ["\n".join(lines) for lines in (title, body, notes) if lines]
    return "\n\n".join(parts) + "\n"


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", shown(text))


def _latex(text: str) -> str:
    escaped = "".join(_LATEX.get(character, character) for character in shown(text))
    # A sign before a figure is a minus and not a hyphen, and between two figures it is a dash.
    return re.sub(r"(?<![\w.-])-(?=\d)", "$-$", re.sub(r"(?<=\d)-(?=\d)", "--", escaped))
