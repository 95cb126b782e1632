"""The YAML files that come with raysim: the folder ``yaml/``, which is ``raysim/examples`` where it is installed."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent.parent / "examples"


def example(name: str) -> Path | None:
    """The file of an example by its name, such as ``fedperfix/cifar100_small``; None if there is none."""
    path = FOLDER / f"{name}.yaml"
    return path if path.is_file() and ".." not in path.parts else None


def examples() -> dict[str, str]:
    """What each is about, its first comment, by name."""
    return {
        path.relative_to(FOLDER).with_suffix("").as_posix(): _about(path) for path in sorted(FOLDER.rglob("*.yaml"))
    }


def _about(path: Path) -> str:
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.removeprefix("#").strip()
        if not line.startswith("#") or (lines and not text):
            break
        if not text.startswith("yaml-language-server"):
            lines.append(text)
    return " ".join(lines)
