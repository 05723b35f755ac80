"""``msharefs reclaim``: page out what of a region has not been used for longest."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from msharefs import units, verbs

from . import _complete, _json, _region, _show, _types, _watch

if TYPE_CHECKING:
    from collections.abc import Iterator


def lines(found: dict[str, Any]) -> Iterator[str]:
    """For people."""
    before, keep = units.size(found["before_bytes"]), units.size(found["keep_bytes"])
    yield f"{before} in memory, {keep} to be kept"
    if found["came_back_pages"]:
        yield f"{found['came_back_pages']:,} pages taken before have come back since the last look"
    if not found["looks"]:
        yield "it fits: nothing was taken"
        return
    seconds = sum(each["seconds"] for each in found["looks"])
    cost = 100 * max(each["cost"] for each in found["looks"])
    yield (
        f"{len(found['looks'])} looks in {seconds:.1f} s; taking the faults of a process took "
        f"{cost:.2g} % of the time at most"
    )
    taken, spent = found["taken_bytes"], found["taking_seconds"]
    rate = f", {units.size(taken / spent)}/s" if taken else ""
    yield f"{units.size(taken)} paged out, for all processes, in {spent:.2f} s{rate}"
    if found["tried_bytes"] > taken:
        yield f"{units.size(found['tried_bytes'] - taken)} were tried, and stayed"
    pages = taken // verbs.PAGE
    yield (
        f"{found['refaulted_pages']:,} of {pages:,} pages came back within "
        f"{found['refault_seconds']:.1f} s"
    )
    yield f"{units.size(found['left_bytes'])} were left in memory"


def reasons(found: dict[str, Any]) -> Iterator[str]:
    """Why it does not fit."""
    if not found["swap_free_bytes"]:
        yield "there is no swap, so anonymous memory cannot leave"
    if found["cold_seconds"] is not None:
        yield f"what was used within {found['cold_seconds']:g} s is left alone"
    if found["left_out_bytes"]:
        yield (
            f"{units.size(found['left_out_bytes'])} are locked, guarded, without access, or huge "
            "pages"
        )
    if found["tried_bytes"] > found["taken_bytes"]:
        yield "Linux has kept some: docs/lab.md says which"


@click.command()
@click.argument("region", shell_complete=_complete.regions)
@click.option(
    "--keep", metavar="SIZE", type=_types.Size(), required=True,
    help="What may stay in memory, as 512M.",
)  # fmt: skip
@click.option(
    "--cold", metavar="SECONDS", type=click.FloatRange(min=0, min_open=True),
    help="Look for so long, and take no page that was used meanwhile. Otherwise 4 s, and pages in "
    "use go last.",
)  # fmt: skip
@click.option(
    "--watch", metavar="SECONDS", type=click.FloatRange(min=0, min_open=True),
    help="Keep it so: look again so often, until interrupted, and take what is too much. With "
    "--json, a line for each look.",
)  # fmt: skip
@_watch.count_option
@_show.json_option
def command(
    region: str,
    keep: int,
    cold: float | None,
    watch: float | None,
    count: int | None,
    as_json: bool,
) -> None:
    """Page out what of a region has not been used for longest.

    It is taken out of the page tables of all attached processes, and goes to swap or to its file,
    until at most SIZE is in memory, and never more than that takes. Ages are looked at first, as
    idle does; afterwards it counts which pages come back.

    Exit status 1: more than SIZE is still in memory, with --watch at the last look.
    """
    from msharefs.lab import reclaim

    _region.check_region(region)
    out = reclaim.Out()
    fits = True
    for found, _ in _watch.looks(lambda: reclaim.run(region, keep, cold, out=out), watch, count):
        fits = found["fits"]
        if as_json:
            _show.print_look(_json.document("reclaim", found), watched=watch is not None)
        else:
            for line in lines(found):
                click.echo(line)
        if not fits:
            why = "; ".join(reasons(found))
            click.echo(
                f"msharefs: {region}: more than {units.size(keep)} is in memory: {why}", err=True
            )
    sys.exit(0 if fits else 1)
