"""The table of a paper: a row per method, columns per data set, best and second best marked."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from raysim.analysis.comparison import COLUMNS, Cell, Last, rounds_shown, samples
from raysim.analysis.table_formats import captioned, format_rows


def paper_table(histories: Mapping[str, pd.DataFrame], by: str, last: Last, form: str) -> str:
    """The paper's table in Markdown, LaTeX or CSV: a row per group, columns per data set, best and second best marked.

    It also says how many seeds or runs each group has, and which rounds the numbers come from. A group that has fewer of
    them than another one is not marked: its mean is less certain.

    Args:
        histories: per data set, a row per run and round.
        form: ``markdown`` (bold, underlined), ``latex`` (the same; needs no packages), or ``csv`` (numbers in
            percent, mean and standard deviation in columns of their own, nothing marked).
    """
    metrics = ["personalized/accuracy_mean", "personalized/auc_micro"]
    columns: dict[str, dict[str, Cell | int]] = {}
    marks: dict[str, dict[str, str]] = {}
    for data, history in histories.items():
        prefix = "" if len(histories) == 1 else f"{data}: "
        final = {str(group): samples(runs, by, last) for group, runs in history.groupby(by, sort=False)}
        counts = {group: len(runs) for group, runs in final.items()}
        columns[prefix + ("seeds" if by == "name" else "runs")] = dict(counts)
        for metric in metrics:
            title = prefix + COLUMNS[metric]
            columns[title] = {group: Cell.of(runs[metric]) for group, runs in final.items()}
            marks[title] = _marks({g: cell for g, cell in columns[title].items() if counts[g] == max(counts.values())})
    groups = list(dict.fromkeys(group for cells in columns.values() for group in cells))
    shown = rounds_shown(last, pd.concat(histories.values()))
    if form == "csv":
        return _csv(columns, groups, by, shown)
    rows = [[g, *(_marked(columns[t].get(g), marks.get(t, {}).get(g, ""), form) for t in columns)] for g in groups]
    about = captioned(f"{', '.join(histories)}: {shown}, percent", form)
    return about + format_rows([by, *columns], rows, form)


def _marks(cells: Mapping[str, Cell | int]) -> dict[str, str]:
    """Which groups are ``best`` and ``second`` by the mean as printed: equal printed means share a place."""
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


def _csv(columns: Mapping[str, Mapping[str, Cell | int]], groups: list[str], by: str, shown: str) -> str:
    table = pd.DataFrame({by: groups})
    for title, cells in columns.items():
        found = [cells.get(group) for group in groups]
        if all(cell is None or isinstance(cell, int) for cell in found):
            table[title] = pd.Series(found, dtype="Int64")
            continue
        known = [cell if isinstance(cell, Cell) else None for cell in found]
        table[f"{title} mean"] = [100 * cell.mean if cell else None for cell in known]
        table[f"{title} std"] = [100 * cell.std if cell and cell.std is not None else None for cell in known]
    table["rounds"] = shown
    return table.to_csv(index=False, float_format="%.3f").rstrip()
