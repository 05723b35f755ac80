"""The columns of ``msharefs top``: what they show of a row."""

from __future__ import annotations

from typing import Any

from msharefs import units

from . import _show

REGIONS = {
    "mount": "mount",
    "region": "name",
    "size": "size_bytes",
    "resident": "rss_bytes",
    "page tables": "page_table_bytes",
    "clients": "clients",
    "faults/s": "faults_per_second",
    "links/s": "links_per_second",
    "shootdowns/s": "shootdowns_per_second",
    "evictions/s": "evictions_per_second",
    "budget": "budget_bytes",
}
CLIENTS = {
    "pid": "pid",
    "command": "comm",
    "region": "region",
    "kind": "client_kind",
    "own tables": "own_tables_bytes",
    "faults/s": "faults_per_second",
    "links/s": "links_per_second",
    "evictions/s": "evictions_per_second",
    "budget": "budget_bytes",
}
TEXTS = {"mount", "region", "command", "kind"}
SPARE = ("evictions/s", "budget", "size", "mount", "links/s")


def cell(column: str, value: Any) -> str:
    """A value for people."""
    if value is None:
        return "-"
    if column in TEXTS:
        return _show.printable(str(value))
    if column.endswith("/s"):
        return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
    if column == "budget":
        return units.size(value) if value else "none"
    return (
        units.size(value)
        if column in ("size", "resident", "page tables", "own tables")
        else str(value)
    )
