"""The table of a paper: a row per method, columns per data set, best and second best marked."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from raysim.analysis.comparison import Cell, Last, columns, samples
from raysim.analysis.table_formats import captioned, format_rows
from raysim.views import View


def paper_table(
    histories: Mapping[str, pd.DataFrame], views: Mapping[str, View], by: str, last: Last, form: str
) -> str:
    """The paper's table in Markdown, LaTeX or CSV: a row per group, columns per data set, best and second best marked.

    Accuracy and AUC of the headline, and the accuracy of the other family. It also says how many seeds or runs each group
    has, and what the numbers are about. A group that has fewer seeds than another one is not marked: its mean is less
    certain.

    Args:
        histories: per data set, a row per run and round.
        views: per data set, all of the same model.
        form: ``markdown`` (bold, underlined), ``latex`` (the same; needs no packages), or ``csv`` (numbers in
            percent, mean and standard deviation in columns of their own, nothing marked).
    """
    (model,) = {view.model for view in views.values()}
    titles = {k: v for k, v in columns(model).items() if k.endswith(("accuracy_mean", "auc_mean")) and "new_" not in k}
    shown: dict[str, dict[str, Cell | int]] = {}
    marks: dict[str, dict[str, str]] = {}
    for data, history in histories.items():
        prefix = "" if len(histories) == 1 else f"{data}: "
        final = {str(group): samples(runs, model, by, last) for group, runs in history.groupby(by, sort=False)}
        counts = {group: len(runs) for group, runs in final.items()}
        shown[prefix + ("seeds" if by == "name" else "runs")] = dict(counts)
        for metric, name in titles.items():
            title = prefix + name
            shown[title] = {group: Cell.of(runs[metric]) for group, runs in final.items() if metric in runs}
            marks[title] = _marks({g: cell for g, cell in shown[title].items() if counts[g] == max(counts.values())})
    groups = list(dict.fromkeys(group for cells in shown.values() for group in cells))
    texts = {str(view) for view in views.values()}
    about = texts.pop() if len(texts) == 1 else "; ".join(f"{data}: {view}" for data, view in views.items())
    if form == "csv":
        return _csv(shown, groups, by, about)
    rows = [[g, *(_marked(shown[t].get(g), marks.get(t, {}).get(g, ""), form) for t in shown)] for g in groups]
    return captioned(f"{', '.join(histories)}: {about}, percent", form) + format_rows([by, *shown], rows, form)


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
    table["about"] = shown
    return table.to_csv(index=False, float_format="%.3f").rstrip()
