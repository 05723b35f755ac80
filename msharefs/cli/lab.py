"""``msharefs lab``: questions about shared page tables, put to the machine."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from . import _complete, _json, _region, _show

if TYPE_CHECKING:
    from collections.abc import Iterator


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
            f"cycles a load, {cycles['spaces']} address spaces in turns with {cycles['pages']} "
            f"pages, the TLB cold: {cycles['shared']:.0f} with shared tables, "
            f"{cycles['private']:.0f} with tables of their own"
        )
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
