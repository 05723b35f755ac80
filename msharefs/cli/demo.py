"""``msharefs demo``: page tables with and without sharing, measured."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TextIO

import click
import psutil

from msharefs import home, units, verbs

from . import _json, _progress, _show, _types

if TYPE_CHECKING:
    from rich.table import Table

# Less than a worker really takes (stack, libraries, the kernel's part): only refuses the hopeless.
PROCESS_BYTES = 256 * 1024


def check_memory(processes: int, size: int) -> None:
    """Usage error if memory is too small: figures of a machine that swaps are worthless."""
    # The plain half is the larger: each process has its own page tables, 8 bytes per page.
    need = size + processes * (size // verbs.PAGE * 8 + PROCESS_BYTES)
    available = psutil.virtual_memory().available
    if need > available:
        raise click.UsageError(
            f"{processes} processes over {units.size(size)} need {units.size(need)} of memory "
            f"and {units.size(available)} is available: give a smaller --size or fewer --processes"
        )
    if home.may_mount():
        return
    place = home.shared_place()
    free = home.room(place)
    if free is not None and size > free:
        raise click.UsageError(
            f"--size {units.size(size)} is more than the {units.size(free)} free in {place}: "
            f"give a smaller --size or a larger {place} (mount -o remount,size=)"
        )


def ratio(plain: float, shared: float) -> str:
    """How many times less, for people."""
    if shared == 0:
        return "all" if plain else "-"
    return f"{plain / shared:.3g}x" if plain / shared < 100 else f"{plain / shared:,.0f}x"


def savings(found: dict[str, Any]) -> Table:
    """The price in page tables and in faults."""
    plain, shared, others = found["plain"], found["mshare"], found["processes"] - 1
    lines = _show.table(
        "", "plain memfd", "msharefs", "saved", right=("plain memfd", "msharefs", "saved")
    )
    for title, key, shared_key in (
        ("page tables", "vmpte_growth_bytes", "page_table_bytes"),
        (
            f"  of that for the {others} that verify",
            "vmpte_growth_bytes_verifiers",
            "page_table_bytes_verifiers",
        ),
    ):
        mine, theirs = shared[shared_key], plain[key]
        lines.add_row(title, units.size(theirs), units.size(mine), ratio(theirs, mine))
    for title, key in (
        ("faults", "faults"),
        (f"  of that for the {others} that verify", "faults_verifiers"),
    ):
        mine, theirs = shared[key], plain[key]
        lines.add_row(title, f"{theirs:,}", f"{mine:,}", ratio(theirs, mine))
    return lines


def emulation(found: dict[str, Any]) -> Table:
    """The cost of the emulator itself, on a kernel without shared page tables."""
    plain, emulator = found["plain"], found["mshare"]["emulator"]
    others = found["processes"] - 1
    lines = _show.table(
        "", "plain memfd", "emulator", "cost", right=("plain memfd", "emulator", "cost")
    )

    def seconds(title: str, key: str) -> None:
        lines.add_row(
            title, f"{plain[key]:.3f} s", f"{emulator[key]:.3f} s", ratio(emulator[key], plain[key])
        )

    lines.add_row(
        "processes' own page tables (VmPTE)",
        units.size(plain["vmpte_growth_bytes"]),
        units.size(emulator["vmpte_growth_bytes"]),
        ratio(emulator["vmpte_growth_bytes"], plain["vmpte_growth_bytes"]),
    )
    lines.add_row(
        "processes' own faults (getrusage)",
        f"{plain['faults']:,}",
        f"{emulator['faults']:,}",
        ratio(emulator["faults"], plain["faults"]),
    )
    seconds(f"attach or map, {found['processes']} at once", "attach_seconds")
    seconds("fill, one process", "fill_seconds")
    seconds(f"verify, {others} at once", "verify_seconds")
    seconds(f"detach, {found['processes']} at once", "detach_seconds")
    seconds("CPU time of all, until they detach", "cpu_seconds")
    lines.add_row(
        "host mm: tables, slots, mappings", "", units.size(found["mshare"]["host_mm_bytes"]), ""
    )
    return lines


def show(found: dict[str, Any]) -> None:
    """Print the result for people."""
    processes, size, machine = found["processes"], found["size_bytes"], found["machine"]
    emulator, counters = found["mshare"]["emulator"], found["mshare"]["counters"]
    print(
        f"{processes} processes, {units.size(size)} in {size // verbs.PAGE:,} pages; "
        f"Linux {machine['kernel']}, {machine['cpus']} CPUs\n"
    )
    _show.show(savings(found))
    print(
        "\nplain memfd: growth of all processes' VmPTE, and the faults they took (getrusage).\n"
        f"msharefs:    table frames of the region; {counters['faults']:,} first touches "
        f"and {counters['links']:,} links.\n"
        f"Verified:    {emulator['verified_pages']:,} pages of the region and "
        f"{found['plain']['verified_pages']:,} of the memfd, "
        f"{emulator['wrong_pages'] + found['plain']['wrong_pages']:,} wrong.\n\n"
        "What the emulator itself costs today, on a kernel without shared page tables:\n"
    )
    _show.show(emulation(found))


@click.command()
@click.option(
    "--processes",
    type=click.IntRange(min=2),
    default=32,
    show_default=True,
    help="How many processes; the first fills, the others verify.",
)
@click.option(
    "--size",
    type=_types.Size(of=verbs.PAGE),
    default="256M",
    show_default=True,
    help="Memory they share, a multiple of 4096 bytes; K, M, G are understood.",
)
@_show.json_option
@_show.output_option
def command(processes: int, size: int, as_json: bool, output: TextIO | None) -> None:
    """Measure page tables with and without sharing, with real processes.

    Mounts msharefs on a directory of its own, and takes everything away at the end. Exit status 1
    if a page was wrong or a process did not share.
    """
    check_memory(processes, size)
    from msharefs.lab import demo

    _progress.end_on_signals()
    with _progress.Bars() as bars:
        found = demo.run(processes, size, bars)
    if _show.give_json(_json.document("demo", found), output, as_json=as_json):
        show(found)
    for problem in found["problems"]:
        click.echo(f"msharefs: {problem}", err=True)
    sys.exit(1 if found["problems"] else 0)
