"""``msharefs stat R``."""

from __future__ import annotations

from typing import Any

import click

from msharefs import units

from . import _region, _show


def rows(stat: dict[str, Any]) -> list[tuple[str, str]]:
    """The lines for people, from the document of ``--json``."""
    owner, counters = stat["owner"], stat["counters"]
    frames = ", ".join(f"{level} {count}" for level, count in stat["table_frames"].items())
    return [
        ("name", _show.printable(stat["name"])),
        ("size", f"{_show.region_size(stat['size_bytes'])} ({stat['size_bytes']} bytes)"),
        ("quantum", units.size(stat["quantum_bytes"])),
        ("mappings", str(stat["vmas"])),
        ("resident", units.size(stat["rss_bytes"])),
        ("page tables", f"{units.size(stat['page_table_bytes'])} ({frames})"),
        ("clients", str(stat["clients"])),
        ("budget", _budget(stat)),
        ("owner", _owner(owner)),
        ("charged to it", _charges(owner)),
        *((name.replace("_", " "), str(count)) for name, count in counters.items()),
    ]


def _budget(stat: dict[str, Any]) -> str:
    """How much clients keep of their own page tables."""
    asked, grown = stat["budget"]["bytes"], stat["budget"]["clients_grown"]
    text = f"{units.size(asked)} of its own page tables for each client" if asked else "none"
    return f"{text}; {grown} of {stat['clients']} need more" if grown else text


def _owner(owner: dict[str, Any]) -> str:
    maker = "thread" if owner["kind"] == "thread" else "pid"
    fate = {
        "file": "",
        "process": "; the region ends with it",
        "thread": "; the region ends with it",
        "gone": "; gone, and the region has ended",
    }[owner["kind"]]
    return f"{maker} {owner['pid']}, cgroup {owner['cgroup']}{fate}"


def _charges(owner: dict[str, Any]) -> str:
    data, tables = owner["charged_data_bytes"], owner["charged_table_bytes"]
    return f"{units.size(data)} of data, {units.size(tables)} of page tables"


@click.command()
@click.argument("region")
@_show.json_option
def command(region: str, as_json: bool) -> None:
    """Show a region's size, page tables, owner and counters."""
    stat = _region.describe(region, "stat")
    if as_json:
        _show.print_json(stat)
        return
    lines = _show.table("", "")
    lines.show_header = False
    for row in rows(stat):
        lines.add_row(*row)
    _show.show(lines)
