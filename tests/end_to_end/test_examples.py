"""The notebooks of docs/examples, executed in a kernel as a person would."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def executed(name, folder):
    """All outputs of a notebook, by cell."""
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # they are kept without results
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    return [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]


def tables(outputs):
    return [
        out.data["text/html"]
        for out in outputs
        if "text/html" in out.get("data", {}) and "<table" in out.data["text/html"]
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quickstart", "method", "own_data"])
def test_a_notebook(name, tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    cells = executed(name, tmp_path)
    shown = [table for outputs in cells for table in tables(outputs)]
    names = {"quickstart": ("local", "fedavg"), "method": ("half way", "fedavg"), "own_data": ("local", "fedperfix")}[
        name
    ]
    assert all(word in shown[0] for word in names)
    errors = [out for outputs in cells for out in outputs if out.output_type == "stream" and "Traceback" in out.text]
    assert errors == []
    pictures = [out for outputs in cells for out in outputs if "image/png" in out.get("data", {})]
    assert len(pictures) == (0 if name == "method" else 1)
    assert (tmp_path / "comparison.png").exists() == (name == "own_data")
