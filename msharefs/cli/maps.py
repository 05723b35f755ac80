"""``msharefs maps R``."""

from __future__ import annotations

from typing import Any

import click

from . import _complete, _json, _region, _show

# Where a 64-bit kernel puts the name in /proc/PID/maps: after 25 + 6 * sizeof(void *) - 1
# characters and a space.
NAME_COLUMN = 73


def line(vma: dict[str, Any]) -> str:
    """One mapping as a line of /proc/PID/maps; the addresses are offsets in the region."""
    name = "[anon]" if vma["object"] == "anon" else _show.printable(vma["object"])
    span = f"{vma['start']:012x}-{vma['end']:012x} {vma['prot']} {vma['offset']:08x} 00:00 0"
    return f"{span.ljust(NAME_COLUMN)}{name}"


@click.command()
@click.argument("region", shell_complete=_complete.regions)
@_show.json_option
def command(region: str, as_json: bool) -> None:
    """Show a region's mappings, in the shape of /proc/PID/maps."""
    maps = _region.describe(region, "maps")
    if as_json:
        found = {"region": region, "mappings": [_json.mapping(vma) for vma in maps]}
        _show.print_json(_json.document("maps", found))
        return
    for vma in maps:
        click.echo(line(vma))
