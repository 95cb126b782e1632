"""A table as Markdown, as LaTeX, or for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from rich.table import Table

LATEX = {c: f"\\{c}" for c in "_&%#${}"} | {"~": "\\~{}", "^": "\\^{}", "\\": "\\textbackslash{}"}


def captioned(text: str, form: str) -> str:
    """A line above a table: in italics in Markdown, a comment in LaTeX."""
    return f"% {text}\n" if form == "latex" else f"*{text}*\n\n"


def formatted(table: pd.DataFrame, form: str) -> str:
    """A table of texts in Markdown or LaTeX."""
    rows = [[str(cell) for cell in row] for row in table.values.tolist()]
    return format_rows(list(table.columns), rows, form)


def format_rows(header: list[str], rows: list[list[str]], form: str) -> str:
    return (_latex if form == "latex" else _markdown)(header, rows)


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _latex(header: list[str], rows: list[list[str]]) -> str:
    def line(cells: list[str]) -> str:
        return "  " + " & ".join(cells) + " \\\\"

    def plain(text: str) -> str:
        return "".join(LATEX.get(c, c) for c in text)

    body = [line([plain(row[0]), *row[1:]]) for row in rows]
    begin = f"\\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}"
    return "\n".join([begin, line([plain(h) for h in header]), "  \\hline", *body, "\\end{tabular}"])


def as_rich(table: pd.DataFrame, title: str) -> Table:
    """A data frame for the terminal."""
    from rich import box  # not at the top: the driver imports this module, and has no terminal
    from rich.table import Table

    rich = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for i, column in enumerate(table.columns):
        rich.add_column(str(column), justify="left" if i == 0 else "right")
    for row in table.itertuples(index=False):
        rich.add_row(*(str(value) for value in row))
    return rich
