"""``msharefs idle``: how long pages have not been used."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from msharefs import units, verbs

from . import _complete, _json, _region, _show

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table


def regions_of(target: str) -> list[str]:
    """The region, or those of a directory and below."""
    if not stat.S_ISDIR(_region.look(target).st_mode):
        _region.check_region(target)
        return [target]
    found = [
        os.path.join(directory, name)
        for directory, _, names in os.walk(target)
        for name in sorted(names)
        if name != _region.INFO_NAME and os.stat(os.path.join(directory, name)).st_size
    ]
    if not found:
        raise OSError(errno.ENOENT, f"{target}: there is no region in it that has a size")
    return found


def bounds(age: dict[str, Any]) -> str:
    """A class of ages, for people."""
    least, most = age["at_least_seconds"], age["at_most_seconds"]
    return f"{least:,.1f} s or longer" if most is None else f"{least:,.1f} to {most:,.1f} s"


def ages(found: dict[str, Any]) -> Table:
    """The histogram of a region."""
    lines = _show.table("not used for", "pages", "size", "", right=("pages", "size"))
    for age in found["ages"]:
        bar = "#" * round(40 * age["pages"] / max(found["pages"], 1))
        size = units.size(age["pages"] * verbs.PAGE)
        lines.add_row(bounds(age), f"{age['pages']:,}", size, bar)
    return lines


def clients(found: dict[str, Any]) -> Table:
    """Spans, or bytes, of each process."""
    columns = ("used last", "used before")
    lines = _show.table("pid", "program", *columns, right=("pid", *columns))
    for client in found["clients"]:
        if "bytes" in client:
            last, *before = client["bytes"]
            cells = units.size(last), units.size(max(before, default=0))
        else:
            last, *before = client["spans"]
            cells = f"{last:,}", f"{sum(before):,}"
        lines.add_row(str(client["pid"]), _show.printable(client["comm"]), *cells)
    return lines


def show(found: dict[str, Any]) -> None:
    """For people."""
    for line in intro(found):
        click.echo(line)
    for region in found["regions"]:
        click.echo(f"\n{_show.printable(region['region'])}: {region['pages']:,} pages")
        _show.show(ages(region))
        for note in notes(region):
            click.echo(note)
        if region["clients"]:
            click.echo(
                "\nwhat each process has used; before: in the interval with the most"
                if "bytes" in region["clients"][0]
                else "\nspans of 2 MiB in which a process had pages"
            )
            _show.show(clients(region))


def intro(found: dict[str, Any]) -> Iterator[str]:
    """The method, its error, and its cost."""
    seconds = sum(each["seconds"] for each in found["intervals"])
    cost = max(each["cost"] for each in found["intervals"])
    yield (
        f"method: {found['method']}; exact to a {found['exact_to']['all']} for all processes "
        f"together, to a {found['exact_to']['each']} for each"
    )
    others = (
        f"{other['name']} ({other['why_not'] if other['here'] else 'not on this machine'})"
        for other in found["methods"]
        if other["why_not"]
    )
    (error,) = (each["error"] for each in found["methods"] if not each["why_not"])
    yield f"its error: {error}"
    yield f"not used: {'; '.join(others)}"
    yield (
        f"{len(found['intervals'])} intervals in {seconds:.1f} s; their cost to a process: "
        f"{100 * cost:.2g} % of the time at most, for its faults and with its memory locked"
    )


def notes(region: dict[str, Any]) -> Iterator[str]:
    """What may be wrong with the figures."""
    if region.get("bounds"):
        last = region["bounds"][0]
        yield (
            f"used in the last interval: {units.size(last['at_least_bytes'])} at least, "
            f"{units.size(last['at_most_bytes'])} at most; the ages are those of whole mappings"
        )
    if region["error_pages"]:
        yield (
            f"up to {region['error_pages']} pages behind a sequential access count as used "
            "(-o fault_around=1: none)"
        )
    if region["left_out_bytes"]:
        yield (
            f"{units.size(region['left_out_bytes'])} left out: locked, guarded, without access, or "
            "huge pages"
        )
    if region["native_attachments"]:
        yield (
            f"the accesses of {region['native_attachments']} native attachments are not seen "
            "(idle --method clear_refs: they are)"
        )


interval_option = click.option(
    "--interval", metavar="SECONDS", type=click.FloatRange(min=0, min_open=True),
    help="Between two looks. 10, and longer where that costs a process more than 3 % of its time.",
)  # fmt: skip


@click.command()
@click.argument("target", metavar="REGION|MOUNT", shell_complete=_complete.regions)
@interval_option
@click.option(
    "--rounds", type=click.IntRange(1, 10_000), default=6, show_default=True, help="Intervals."
)
@click.option(
    "--method", type=click.Choice(["entries", "clear_refs", "stores"]), default="entries",
    show_default=True,
    help="entries: they are given back, and found again. clear_refs: accessed bits, by the "
    "mapping. stores: what is written, by the page.",
)  # fmt: skip
@click.option(
    "--html", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False),
    help="Also write it as a page, with pictures (those need the extra `plot`).",
)  # fmt: skip
@_show.json_option
def command(
    target: str,
    interval: float | None,
    rounds: int,
    method: str,
    html: Path | None,
    as_json: bool,
) -> None:
    """Show how long pages of a region have not been used.

    Again and again the region's entries are given back, as MADV_DONTNEED of the region does (its
    data stay), and those that come back within the interval were used: by the page for all
    processes together, by 2 MiB spans for each. Every page in use costs a fault in each interval.

    The output names the way that was used, its error and what it has cost, and the other ways.
    """
    from msharefs.lab import idle, idle_ways

    found = idle.run(regions_of(target), rounds, interval, kind=idle_ways.WAYS[method])
    document = _json.document("idle", {"target": target, **found})
    if html is not None:
        from msharefs.lab import idle_page

        html.write_text(idle_page.page(document), encoding="utf-8")
    if as_json:
        _show.print_json(document)
    else:
        show(found)
