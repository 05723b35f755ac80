"""``msharefs clients R``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from msharefs import units

from . import _region, _show

if TYPE_CHECKING:
    from collections.abc import Iterator

COLUMNS = (
    "pid", "command", "kind", "base", "offset", "size", "prot", "links", "faults", "materialised",
    "segv",
)  # fmt: skip
BUDGET = ("budget", "evicted", "refaulted")
NUMBERS = (
    "pid", "offset", "size", "links", "faults", "materialised", "segv", "evicted", "refaulted",
)  # fmt: skip
# Left out where there is no room for them, the first first.
SPARE = ("refaulted", "evicted", "offset", "materialised", "base", "segv", "links", "prot", "size")
NATIVE = (
    "native: mapped without the library, at Linux's own speed; the region's holes and protections "
    "are not enforced there"
)


def row(client: dict[str, Any], *, budget: bool = False) -> list[str]:
    """One client as the cells of the table for people; less is known of a native one."""
    given_back = [_budget(client), *_counts(client, "evicted_spans", "refaulted_spans")]
    return [
        str(client["pid"]),
        _show.printable(client["comm"]),
        client["kind"],
        f"{client['base']:#x}",
        units.size(client["offset"]),
        units.size(client["size"]),
        str(client["prot"]),
        *_counts(client, "links", "faults", "materialised_pages", "segv"),
        *(given_back if budget else ()),
    ]


def _counts(client: dict[str, Any], *names: str) -> Iterator[str]:
    return ("-" if client[name] is None else str(client[name]) for name in names)


def _budget(client: dict[str, Any]) -> str:
    """How much it keeps of its own page tables."""
    now, asked = client["budget_bytes"], client["budget_asked_bytes"]
    if not now:
        return "-" if client["kind"] == "native" else "none"
    return units.size(now) if now == asked else f"{units.size(now)}, asked {units.size(asked)}"


@click.command()
@click.argument("region")
@_show.json_option
def command(region: str, as_json: bool) -> None:
    """Show the processes that are attached to a region.

    KIND is how: attached by the library's calls, preload by mmap(2) under `msharefs run`, adopted:
    shared memory of its own that became the region, native by mmap(2) without any library.
    """
    clients = _region.describe(region, "clients")
    if as_json:
        _show.print_json(clients)
        return
    if not clients:
        click.echo("no process is attached")
        return
    budget = any(client["budget_bytes"] for client in clients)
    lines = _show.table(*COLUMNS, *(BUDGET if budget else ()), right=NUMBERS)
    for client in clients:
        lines.add_row(*row(client, budget=budget))
    _show.show(lines, SPARE)
    if any(client["kind"] == "native" for client in clients):
        click.echo(NATIVE)
