"""``raysim cache``"""

from __future__ import annotations

import time

import click

from raysim.cli.base import console, main


@main.command()
@click.argument("keys", nargs=-1)
@click.option("--clear", is_flag=True, help="Remove these, or all if none is named.")
def cache(keys: tuple[str, ...], clear: bool) -> None:
    """List the decoded images on disk (KEYS: some of them), or clear them."""
    from rich.table import Table

    from raysim.data.image_cache import cache_folder, entries
    from raysim.data.image_cache import clear as remove

    found = entries()
    if unknown := set(keys) - {entry.key for entry in found}:
        raise click.UsageError(f"there is no {sorted(unknown)[0]}; `raysim cache` lists what there is")
    if clear:
        console.print(f"{remove(list(keys) or None) / 1e9:,.2f} GB freed in {cache_folder()}", highlight=False)
        return
    table = Table("key", "images of", "images", "size", "last used", title=str(cache_folder()))
    for entry in found:
        if not keys or entry.key in keys:
            root, images = "", "not whole: being decoded, or left behind"
            if entry.about is not None:
                n, height, width, _ = entry.about.shape
                root, images = entry.about.root, f"{n:,} of {width} x {height}"
            used = time.strftime("%Y-%m-%d", time.localtime(entry.used))
            table.add_row(entry.key, root, images, f"{entry.size / 1e9:,.2f} GB", used)
    console.print(table)
