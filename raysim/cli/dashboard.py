"""``raysim dashboard``"""

from __future__ import annotations

import signal

import click

from raysim.cli.base import console, main


@main.command()
@click.option("--experiment", help="Open the comparison of its latest study, or the list of its runs.")
@click.option("--uri", help="MLflow tracking URI; default as in `raysim run`.")
@click.option("--port", type=click.IntRange(1, 65535), help="Default: one that is free.")
@click.option("--host", default="127.0.0.1", help="Default: 127.0.0.1, which only this machine can reach.")
@click.option("--no-browser", is_flag=True, help="Only print the address.")
def dashboard(experiment: str | None, uri: str | None, port: int | None, host: str, no_browser: bool) -> None:
    """Serve MLflow's own pages on this machine until Ctrl-C, and open them in the browser."""
    from raysim.config.locations import resolve_uri
    from raysim.config.sections.running import TrackingConfig
    from raysim.tracking.dashboard import open_dashboard, page_of
    from raysim.tracking.mlflow_store import MLflowStore, check_store

    store, page = resolve_uri(TrackingConfig(uri=uri)), ""
    check_store(store)
    if experiment is not None:
        found = MLflowStore(store, experiment, create=False)
        page = page_of(found.experiment_id, found.has_view())
    for way_to_end in (signal.SIGINT, signal.SIGTERM):  # the first may be ignored by a script that started us
        signal.signal(way_to_end, signal.default_int_handler)
    open_dashboard(
        store, page, port, host, not no_browser, lambda text: console.print(text, highlight=False, soft_wrap=True)
    )
