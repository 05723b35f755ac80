"""``msharefs clients R``."""

from __future__ import annotations

from typing import Any

import click

from msharefs import units

from . import _region, _show

NUMBERS = ("pid", "offset", "size", "links", "faults", "materialised", "segv")
NATIVE = (
    "native: mapped without the library, at Linux's own speed; the region's holes and protections "
    "are not enforced there"
)


def row(client: dict[str, Any]) -> list[str]:
    """One client as the cells of the table for people; of a native one less is known."""
    counts = (client[name] for name in ("links", "faults", "materialised_pages", "segv"))
    return [
        str(client["pid"]),
        _show.printable(client["comm"]),
        client["kind"],
        f"{client['base']:#x}",
        units.size(client["offset"]),
        units.size(client["size"]),
        str(client["prot"]),
        *("-" if count is None else str(count) for count in counts),
    ]


@click.command()
@click.argument("region", type=click.Path())
@_show.json_option
def command(region: str, as_json: bool) -> None:
    """Show the processes that are attached to a region."""
    clients = _region.describe(region, "clients")
    if as_json:
        _show.print_json(clients)
        return
    if not clients:
        click.echo("no process is attached")
        return
    lines = _show.table(
        "pid", "command", "kind", "base", "offset", "size", "prot", "links", "faults",
        "materialised", "segv", right=NUMBERS,
    )  # fmt: skip
    for client in clients:
        lines.add_row(*row(client))
    _show.show(lines)
    if any(client["kind"] == "native" for client in clients):
        click.echo(NATIVE)
