"""``msharefs top``: regions and clients, live."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click

from . import _complete, _json, _live, _show, tell
from ._top_table import CLIENTS, REGIONS, SPARE, TEXTS, cell


def table(rows: list[dict[str, Any]], columns: dict[str, str]) -> Any:
    """For people."""
    lines = _show.table(*columns, right=tuple(set(columns) - TEXTS))
    for row in rows:
        lines.add_row(*(cell(column, row[key]) for column, key in columns.items()))
    return lines


def document(now: _live.Look, before: _live.Look | None) -> dict[str, Any]:
    """One look as JSON."""
    found = {
        "seconds": now.seconds - before.seconds if before else None,
        "regions": _live.rows_of_regions(now, before),
        "clients": _live.rows_of_clients(now, before),
        "silent_mounts": now.silent,
    }
    return _json.document("top", found)


@click.command()
@click.argument(
    "directory", metavar="[MOUNT]", type=Path, required=False, shell_complete=_complete.regions
)
@click.option(
    "-d",
    "--delay",
    "seconds",
    metavar="SECONDS",
    type=click.FloatRange(min=0.1),
    default=2.0,
    show_default=True,
    help="The time between two looks, over which rates are taken.",
)
@click.option("--once", is_flag=True, help="Look twice, print a table, and end.")
@_show.json_option
def command(directory: Path | None, seconds: float, once: bool, as_json: bool) -> None:
    """Show regions and clients live, with their rates.

    Of one mount, or of all. Keys: q ends it, s sorts by the next column, r the other way round, p
    pauses, / filters by a part of a name, Tab goes from regions to clients. --json looks twice, as
    --once does.
    """
    directories = _live.mounts(directory)
    if not (once or as_json):
        if not sys.stdout.isatty():
            raise click.UsageError("standard output is no terminal: give --once or --json")
        try:
            from ._top_app import Top
        except ImportError:
            raise click.UsageError(
                "needs textual: pip install 'msharefs[tui]'; --once and --json do without"
            ) from None
        Top(lambda: _live.look(_live.mounts(directory)), seconds).run()
        return
    before = _live.look(directories)
    time.sleep(seconds)
    now = _live.look(directories)
    if as_json:
        _show.print_json(document(now, before))
        return
    for mount in now.silent:
        tell(f"{mount}: its server does not answer")
    _show.show(
        table(_show.sorted_by(_live.rows_of_regions(now, before), "page_table_bytes"), REGIONS),
        SPARE,
    )
    click.echo()
    _show.show(
        table(_show.sorted_by(_live.rows_of_clients(now, before), "own_tables_bytes"), CLIENTS),
        SPARE,
    )
