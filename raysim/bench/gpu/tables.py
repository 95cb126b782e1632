"""The rows of all steps as Markdown."""

from __future__ import annotations

from typing import Any


def markdown(found: dict[str, Any]) -> str:
    """A section for every step: a table of its rows, and what failed."""
    parts = []
    for name, step in found.items():
        parts += [f"### {name}", ""]
        parts += [*_table(step["rows"]), ""] if step["rows"] else []
        if step["failure"]:
            parts += [f"**failed after {step['seconds']} s**:", "", "```", step["failure"], "```", ""]
    return "\n".join(parts)


def _table(rows: list[dict[str, Any]]) -> list[str]:
    """Rows with the same keys share a table."""
    lines: list[str] = []
    before: list[str] = []
    for row in rows:
        if list(row) != before:
            before = list(row)
            lines += [""] if lines else []
            lines += [f"| {' | '.join(before)} |", f"|{'---|' * len(before)}"]
        lines.append(f"| {' | '.join(map(_cell, row.values()))} |")
    return lines


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
