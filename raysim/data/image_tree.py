"""A folder of images: which lies in which class and domain, and what is left out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raysim.errors import ConfigError

Ints = NDArray[np.int64]
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
# Made by NAS boxes, macOS, file systems and Windows; names that begin with a dot are left out, too.
SYSTEM = {"@eaDir", "__MACOSX", "lost+found", "$RECYCLE.BIN", "System Volume Information", "Thumbs.db", "desktop.ini"}
SPLITS = {"train", "training", "val", "valid", "validation", "dev", "eval", "test", "testing"}


@dataclass(frozen=True)
class ImageTree:
    """The images of a folder, by domain, class and name.

    Attributes:
        paths: n of them.
        labels: (n,) into ``class_names``.
        domains: (n,) into ``domain_names``; None if the folder has no domains.
        left_out: how many files and folders were not read, by what they are.
    """

    paths: list[Path]
    labels: Ints
    domains: Ints | None
    class_names: tuple[str, ...]
    domain_names: tuple[str, ...]
    left_out: dict[str, int]


def read_tree(root: Path, layout: str) -> ImageTree:
    """The images in ``root/<domain>/<class>/<image>``, or in ``root/<class>/<image>`` for the layout ``class``.

    Exactly so: anything else is refused. Hidden folders and those of the system are left out, and links among images that
    lead to a folder or out of ``root``; where a domain or a class is expected, a link to a folder is refused.

    Raises:
        ConfigError: images lie elsewhere, a class has none, domains differ in classes, a name is not UTF-8.
    """
    walk = _Walk(root, layout)
    try:
        domains = [root] if layout == "class" else walk.folders(root, "domain")
        classes = [walk.folders(domain, "class") for domain in domains]
        images = [[walk.images(folder) for folder in folders] for folders in classes]
    except OSError as error:
        raise ConfigError(f"data.root: {root} can't be read: {error}") from error
    names = [[folder.name for folder in folders] for folders in classes]
    domain_names = [] if layout == "class" else [folder.name for folder in domains]
    for domain, own in zip(domain_names, names, strict=False):
        if own != names[0]:
            only = [_some(sorted({*a} - {*b})) or "none" for a, b in ((names[0], own), (own, names[0]))]
            raise ConfigError(
                f"data.root: {root}: domains {domain_names[0]} and {domain} differ in classes: only in "
                f"{domain_names[0]}: {only[0]}; only in {domain}: {only[1]}"
            )
    sizes = [[len(paths) for paths in of_domain] for of_domain in images]
    return ImageTree(
        [path for of_domain in images for paths in of_domain for path in paths],
        np.concatenate([np.repeat(np.arange(len(row)), row) for row in sizes]).astype(np.int64),
        np.repeat(np.arange(len(sizes)), [sum(row) for row in sizes]).astype(np.int64) if domain_names else None,
        tuple(names[0]),
        tuple(domain_names),
        dict(walk.left_out),
    )


class _Walk:
    """Goes through the levels of a folder and counts what is left out."""

    def __init__(self, root: Path, layout: str) -> None:
        self._root, self._layout = root, layout
        self._real = Path(os.path.realpath(root))
        self.left_out: Counter[str] = Counter()

    def folders(self, folder: Path, what: str) -> list[Path]:
        """The folders in a folder, each of which is a domain or a class, by name."""
        folders, images = self._divided(folder)
        where = self._shown(folder)
        if links := [path.name for path in sorted(folder.iterdir()) if path.is_symlink() and path.is_dir()]:
            raise self._wrong(f"{_some(links)} in {where} are links to folders", "put the folders themselves there")
        if images:
            hint = "with data.layout: class, its folders are the classes" if what == "class" else ""
            raise self._wrong(f"{where} has images in it ({_some([p.name for p in images])})", hint)
        if not folders:
            raise self._wrong(f"{where} has no folders{self._without()}")
        names = [path.name for path in folders]
        if {name.casefold() for name in names} <= SPLITS:
            of = next((path for path in folders if path.name.casefold().startswith("train")), folders[0])
            plural = "domains" if what == "domain" else "classes"
            raise self._wrong(
                f"the folders {_some(names)} in {where} look like splits, not like {plural}",
                f"raysim draws each client's test samples itself; join the splits, or take one: data.root={of}"
                f"{' data.layout=class' if what == 'domain' else ''}",
            )
        return folders

    def images(self, folder: Path) -> list[Path]:
        """The images of a class, by name."""
        folders, images = self._divided(folder)
        where = self._shown(folder)
        if folders:
            first = folder.relative_to(self._root).parts[0]
            alone = sum(1 for path in self._root.iterdir() if path.is_dir() and not _is_hidden(path.name)) == 1
            hint = f"is the root one level further down: data.root={self._root / first}?" if alone else ""
            if self._layout == "class" and not alone:
                hint = "with data.layout: domain/class, its folders are the domains"
            raise self._wrong(
                f"{where}, where images are expected, has folders ({_some([p.name for p in folders])})", hint
            )
        if not images:
            raise self._wrong(f"{where} has no images{self._without()}")
        return images

    def _divided(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """The folders and the images in a folder, without what is left out, each by name."""
        entries = list(self._entries(folder))
        folders = [Path(entry.path) for entry in entries if entry.is_dir()]
        return folders, [Path(entry.path) for entry in entries if not entry.is_dir()]

    def _entries(self, folder: Path) -> Iterator[os.DirEntry[str]]:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        for entry in entries:
            if _is_hidden(entry.name):
                continue
            try:
                entry.name.encode()
            except UnicodeEncodeError:
                shown = ascii(entry.path)
                raise ConfigError(
                    f"data.root: the name of {shown} is not UTF-8, and names are written to results; rename it"
                ) from None
            if (why := self._why_left_out(entry)) is None:
                yield entry
            else:
                self.left_out[why] += 1

    def _why_left_out(self, entry: os.DirEntry[str]) -> str | None:
        if entry.is_symlink():
            if not os.path.exists(entry.path):
                return "broken links"
            if entry.is_dir():
                return "links to folders"
            if not Path(os.path.realpath(entry.path)).is_relative_to(self._real):
                return "links to files elsewhere"
        if entry.is_dir():
            return None
        if not entry.is_file():  # a pipe or a socket: reading it would never end
            return "no files"
        suffix = Path(entry.name).suffix.lower()
        return None if suffix in SUFFIXES else f"{suffix or 'files without suffix'}"

    def _wrong(self, found: str, hint: str = "") -> ConfigError:
        levels = "<class>/<image>" if self._layout == "class" else "<domain>/<class>/<image>"
        return ConfigError(f"data.root: expected {self._root / levels}, but {found}{f'; {hint}' if hint else ''}")

    def _shown(self, folder: Path) -> str:
        return str(folder) if folder == self._root else f"{folder.relative_to(self._root)}/"

    def _without(self) -> str:
        return f" (left out in all: {described(self.left_out)})" if self.left_out else ""


def described(left_out: dict[str, int]) -> str:
    """Such as ``12 .txt, 3 links to folders``, the most first."""
    return ", ".join(f"{n:,} {what}" for what, n in sorted(left_out.items(), key=lambda item: (-item[1], item[0])))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in SYSTEM


def _some(names: Sequence[str]) -> str:
    """A few names; those that may look like others, by accents or spaces, as Python writes them."""
    clear = [name if name.isascii() and name.isprintable() and name == name.strip() else ascii(name) for name in names]
    return ", ".join(clear[:4]) + (f", … ({len(names)})" if len(names) > 4 else "")
