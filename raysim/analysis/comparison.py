"""The comparison of runs: one row per group, mean and standard deviation over its runs, as a table of any format."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import pandas as pd

COLUMNS = {
    "personalized/accuracy_mean": "accuracy",
    "personalized/accuracy_weighted": "weighted",
    "personalized/accuracy_worst_decile": "worst decile",
    "personalized/auc_micro": "AUC",
    "global/accuracy": "global",
    "new_clients/accuracy_before_mean": "new clients",
    "new_clients/accuracy_after_mean": "adapted",
}

Last = int | Literal["best"]
"""The mean of so many last evaluated rounds, or the best round of each run."""

LATEX = {c: f"\\{c}" for c in "_&%#${}"} | {"~": "\\~{}", "^": "\\^{}", "\\": "\\textbackslash{}"}


def compare(history: pd.DataFrame, by: str = "name", last: Last = 1) -> pd.DataFrame:
    """From a row per run and round to a row per group, at the mean of its ``last`` evaluated rounds, or at its best round.

    Columns: ``by``, ``seeds`` (``runs``, if not grouped by name), each metric as ``62.1 ± 0.8`` percent (sample standard
    deviation over the group's runs), ``MB/round``, what a federation would send up and down per round, and ``s/round``, the
    median.
    """
    rows, count = [], "seeds" if by == "name" else "runs"
    for group, runs in history.groupby(by, sort=False):
        final = last_rounds(runs, last)
        row: dict[str, object] = {by: group, count: len(final)}
        for metric, column in COLUMNS.items():
            if metric in final and final[metric].notna().any():
                row[column] = str(Cell.of(final[metric]))
        sent = runs["communication/down_bytes"] + runs["communication/up_bytes"]
        row["MB/round"] = f"{sent.mean() / 1e6:.2f}"
        row["s/round"] = f"{runs['system/round_seconds'].median():.2f}"
        rows.append(row)
    table = pd.DataFrame(rows)
    fixed = [by, count, *(c for c in COLUMNS.values() if c in table), "MB/round", "s/round"]
    return table[fixed].fillna("–")


def rounds_shown(last: Last) -> str:
    """Which rounds the numbers are of."""
    if last == "best":
        return "best round of each run, chosen on the test samples: optimistic"
    return "last round" if last == 1 else f"mean of the last {last} evaluated rounds"


def caption(experiment: str, history: pd.DataFrame, by: str = "name", last: Last = 1) -> str:
    """What the numbers of ``compare`` are, in a line."""
    spread = f", mean ± standard deviation over {'seeds' if by == 'name' else 'runs'}"
    several = (history.groupby(by)["run_id"].nunique() > 1).any()
    return f"{experiment}: {rounds_shown(last)}, percent{spread if several else ''}"


def last_rounds(runs: pd.DataFrame, last: Last) -> pd.DataFrame:
    """Per run, the mean of every metric over its ``last`` evaluated rounds: a row per ``run_id``."""
    evaluated = runs.dropna(subset=["personalized/accuracy_mean"]).sort_values("round")
    if last == "best":
        best = evaluated.groupby("run_id", sort=False)["personalized/accuracy_mean"].idxmax()
        return evaluated.loc[best].set_index("run_id").select_dtypes("number")
    return evaluated.groupby("run_id", sort=False).tail(last).groupby("run_id", sort=False).mean(numeric_only=True)


@dataclass(frozen=True)
class Cell:
    """A mean and, of several runs, a standard deviation; fractions, printed as percent."""

    mean: float
    std: float | None

    @classmethod
    def of(cls, values: pd.Series) -> Cell:
        known = values.dropna()
        return cls(float(known.mean()), float(known.std()) if len(known) > 1 else None)

    @property
    def is_known(self) -> bool:
        """Whether any run has it."""
        return not math.isnan(self.mean)

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f}" + (f" ± {100 * self.std:.1f}" if self.std is not None else "")


def paper_table(histories: Mapping[str, pd.DataFrame], by: str, last: Last, form: str) -> str:
    """The paper's table in Markdown, LaTeX or CSV: a row per group, columns per data set, best and second best marked.

    With how many runs each group has, and of which rounds the numbers are.

    Args:
        histories: per data set, a row per run and round.
        form: ``markdown`` (bold, underlined), ``latex`` (the same; needs nothing but the kernel), or ``csv`` (numbers in
            percent, mean and standard deviation in columns of their own, nothing marked).
    """
    metrics = ["personalized/accuracy_mean", "personalized/auc_micro"]
    columns: dict[str, dict[str, Cell | int]] = {}
    for data, history in histories.items():
        prefix = "" if len(histories) == 1 else f"{data}: "
        final = {str(group): last_rounds(runs, last) for group, runs in history.groupby(by, sort=False)}
        columns[prefix + ("seeds" if by == "name" else "runs")] = {group: len(runs) for group, runs in final.items()}
        for metric in metrics:
            columns[prefix + COLUMNS[metric]] = {group: Cell.of(runs[metric]) for group, runs in final.items()}
    groups = list(dict.fromkeys(group for cells in columns.values() for group in cells))
    if form == "csv":
        return _csv(columns, groups, by, last)
    marks = {title: _marks(cells) for title, cells in columns.items()}
    rows = [[g, *(_marked(columns[t].get(g), marks[t].get(g, ""), form) for t in columns)] for g in groups]
    about = captioned(f"{', '.join(histories)}: {rounds_shown(last)}, percent", form)
    return about + _formatted([by, *columns], rows, form)


def captioned(text: str, form: str) -> str:
    """A line above a table: in italics in Markdown, a comment in LaTeX."""
    return f"% {text}\n" if form == "latex" else f"*{text}*\n\n"


def formatted(table: pd.DataFrame, form: str) -> str:
    """A table of texts in Markdown or LaTeX."""
    rows = [[str(cell) for cell in row] for row in table.values.tolist()]
    return _formatted(list(table.columns), rows, form)


def _formatted(header: list[str], rows: list[list[str]], form: str) -> str:
    return (_latex if form == "latex" else _markdown)(header, rows)


def _marks(cells: Mapping[str, Cell | int]) -> dict[str, str]:
    """``best`` and ``second`` by mean as printed: groups that print the same share a place."""
    printed = {
        group: round(100 * cell.mean, 1) for group, cell in cells.items() if isinstance(cell, Cell) and cell.is_known
    }
    places = sorted(set(printed.values()), reverse=True)[:2]
    return {g: ("best", "second")[places.index(value)] for g, value in printed.items() if value in places}


def _marked(cell: Cell | int | None, mark: str, form: str) -> str:
    if cell is None or (isinstance(cell, Cell) and not cell.is_known):
        return "–" if form == "markdown" else "--"
    if form == "markdown":
        return {"best": f"**{cell}**", "second": f"<u>{cell}</u>"}.get(mark, str(cell))
    text = str(cell).replace("±", "$\\pm$")
    return {"best": f"\\textbf{{{text}}}", "second": f"\\underline{{{text}}}"}.get(mark, text)


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


def _csv(columns: Mapping[str, Mapping[str, Cell | int]], groups: list[str], by: str, last: Last) -> str:
    table = pd.DataFrame({by: groups})
    for title, cells in columns.items():
        found = [cells.get(group) for group in groups]
        if all(cell is None or isinstance(cell, int) for cell in found):
            table[title] = pd.Series(found, dtype="Int64")
            continue
        known = [cell if isinstance(cell, Cell) else None for cell in found]
        table[f"{title} mean"] = [100 * cell.mean if cell else None for cell in known]
        table[f"{title} std"] = [100 * cell.std if cell and cell.std is not None else None for cell in known]
    table["of"] = rounds_shown(last)
    return table.to_csv(index=False, float_format="%.3f").rstrip()
