"""Pages of the site that lie at the top of the repository: README.md is its start; their links lead beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).absolute().parents[2]
PAGES = {"README.md": "index.md", **{name: name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")}}


def on_files(files: Files, config: Any) -> Files:
    """Add them to the files of docs/."""
    for source, target in PAGES.items():
        text = (ROOT / source).read_text()
        for before in ("](", 'src="', 'srcset="'):
            text = text.replace(f"{before}docs/", before)
        files.append(File.generated(config, target, content=text))
    return files
