"""``msharefs lab``: questions about shared page tables, put to the machine."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TextIO

import click

from . import _complete, _json, _region, _show, _types, idle
from .idle import interval_option

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table


SWITCHES = {
    "flush": "the TLB emptied at each turn",
    "pcid": "each with a PCID of its own",
    "one pcid": "one PCID for all",
}


def lines(found: dict[str, Any]) -> Iterator[str]:
    """What a walk has met, for people."""
    paging, links, wrong = found["paging"], found["link_faults"], found["wrong"]
    inside = ", itself in a virtual machine" if paging["in_virtual_machine"] else ""
    yield f"{paging['kind']} paging ({', '.join(paging['by']) or 'kvm'}{inside})"
    each = (
        links["least"]
        if links["least"] == links["most"]
        else f"{links['least']} to {links['most']}"
    )
    yield (
        f"{found['spaces']:,} address spaces of two pages, {found['pages']:,} pages with an entry: "
        f"{each} fault{'' if each == 1 else 's'} in each to link the PUD table"
    )
    if found["left_out_entries"]:
        yield f"{found['left_out_entries']:,} entries of files and of 2 MiB pages were left out"
    yield (
        f"{found['visited_pages']:,} loads and stores, {wrong['values']:,} values that the region "
        "does not hold"
    )
    yield (
        f"{found['refused']:,} accesses refused as their entries have it, {wrong['faults']:,} "
        f"other faults, {wrong['accesses']:,} accesses that should have faulted"
    )
    for mark in ("accessed", "dirty"):
        before, after = found[mark]["before"], found[mark]["after"]
        yield f"{mark} bits of the shared entries: {before:,}, then {after:,}"
    if found["changes"]:
        yield (
            f"the region was changed: {found['gone_pages']:,} pages are gone, and "
            f"{found['seen_by_spaces']:,} of {found['spaces']:,} address spaces saw it"
        )
    cycles = found["cycles_a_load"]
    if cycles:
        yield (
            f"cycles a load, when address spaces take turns with {cycles['pages']} pages, with "
            "shared tables and with tables of their own:"
        )
        for turn in cycles["turns"]:
            own = "" if turn["private"] is None else f", {turn['private']:.0f}"
            how = SWITCHES[turn["switch"]]
            yield f"  {turn['spaces']:3} spaces, {how}: {turn['shared']:.0f}{own}"
        if not cycles["has_pcid"]:
            yield "  (the hypervisor gives its machines no PCIDs)"
        if paging["kind"] == "shadow":
            yield "(of the hypervisor's shadow tables: this says nothing about hardware)"
    yield "all as the tables have it" if found["passed"] else "NOT as the tables have it"


@click.group()
def command() -> None:
    """Put questions about shared page tables to the machine.

    docs/lab.md has the questions, and the answers of one machine.
    """


@command.command()
@click.argument("region", shell_complete=_complete.regions)
@click.option(
    "--spaces", type=click.IntRange(1, 100_000), default=64, show_default=True,
    help="Address spaces that link the region's PUD table.",
)  # fmt: skip
@click.option("--check", is_flag=True, help="Every address space visits every page.")
@click.option(
    "--wait", metavar="SECONDS", type=click.FloatRange(min=0), default=0,
    help="Go on until the region is changed, for so long at most, and see whether all notice it.",
)  # fmt: skip
@_show.json_option
def walk(region: str, spaces: int, check: bool, wait: float, as_json: bool) -> None:
    """Let a processor walk the region's own page tables, in many address spaces at once.

    The processor is that of a virtual machine (KVM). The first address space visits every page
    that has an entry, the others 64 of them, by loads and by stores that change nothing. Accessed
    and dirty bits appear in the region's own entries (msharefs pagetable --marks).

    Exit status 1: something was not as the tables have it, or there is no KVM.
    """
    from msharefs.lab import walk as walking

    _region.describe(region, "pagetable")  # entries of memory that Linux fills are made by a look

    def running() -> None:
        click.echo("msharefs: the address spaces run: change the region now", err=True)

    found = walking.run(region, spaces, check=check, wait_seconds=wait, running=running)
    if as_json:
        _show.print_json(_json.document("lab-walk", found))
    else:
        for line in lines(found):
            click.echo(line)
    sys.exit(0 if found["passed"] else 1)


def looks(found: dict[str, Any]) -> Iterator[str]:
    """How a region was looked at."""
    looked = found["looks"]
    cost = max(each["cost"] for each in looked["intervals"])
    yield (
        f"{len(looked['intervals'])} looks in {found['seconds']:.1f} s; taking the faults of a "
        f"process took {100 * cost:.2g} % of the time at most"
    )
    around = looked["fault_around"]
    if around:
        yield (
            "what a process has mapped along counts as used by it: each count of processes is too "
            "high (-o fault_around=0: none is)"
        )
    yield from idle.notes({**looked, "error_pages": max(around - 1, 0)})


def outcomes(found: dict[str, Any]) -> Table:
    """A line for each policy and size of memory."""
    lines = _show.table(
        "", "memory", "refaults/s: one bit", "one each", "wrongly out: one bit", "one each",
        right=("memory", "refaults/s: one bit", "one each", "wrongly out: one bit"),
    )  # fmt: skip
    for row in found["rows"]:
        shared, each = row["shared"], row["each"]
        lines.add_row(
            row["policy"],
            f"{row['memory_percent']} %",
            *(f"{view['refaults_per_second']:,.1f}" for view in (shared, each)),
            *(f"{view['wrongly_thrown_out']:,}" for view in (shared, each)),
        )
    return lines


def seen(found: dict[str, Any]) -> str:
    """What the bits have said."""
    counts = found["seen"]
    several = 100 * counts["of_several"] / max(counts["pages"], 1)
    return (
        f"{found['references']:,} references of {found['processes']:,} processes to "
        f"{found['pages']:,} pages in {found['seconds']:.1f} s; of the pages used in an interval "
        f"{several:.0f} % were used by more than one process"
    )


@command.command()
@click.argument("region", required=False, shell_complete=_complete.regions)
@click.option(
    "--trace", metavar="FILE", type=_types.Input(),
    help="Instead of a region: a CSV of `seconds,process,page`, in order of time.",
)  # fmt: skip
@click.option(
    "--record", metavar="FILE", type=_types.Output(), help="Write the looks as such a file."
)
@interval_option
@click.option(
    "--rounds", type=click.IntRange(2, 10_000), default=12, show_default=True, help="Intervals."
)
@_show.json_option
def bits(
    region: str | None,
    trace: TextIO | None,
    record: TextIO | None,
    interval: float | None,
    rounds: int,
    as_json: bool,
) -> None:
    """Ask whether one accessed bit for all processes is enough.

    From looks as those of `idle`, page by page and process by process: a simulated CLOCK,
    Linux's active and inactive lists, and two generations (MGLRU), with memory for 50, 75 and 90 %
    of the pages in use, throw pages out by one bit a page, and by one for each process. How many
    come back a second, and how many of these were wrongly thrown out: a page that stayed was not
    used meanwhile.
    """
    from msharefs.lab import bits as looking

    if (region is None) == (trace is None):
        raise click.UsageError("give either a REGION or --trace FILE")
    if trace is not None:
        if record is not None:
            raise click.UsageError("--record is for looks at a REGION")
        found = looking.of_trace(trace, trace.name)
    else:
        assert region is not None
        _region.check_region(region)
        traced, found = looking.of_region(region, rounds, interval)
        if record is not None:
            looking.write(traced, record)
    if as_json:
        _show.print_json(_json.document("lab-bits", found))
        return
    if found["looks"]:
        for line in looks(found):
            click.echo(line)
    click.echo(seen(found))
    _show.show(outcomes(found))
