"""``msharefs plan``: the cost of page tables, step by step."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TextIO

import click

from msharefs import units
from msharefs.lab import plan

from . import _json, _show, _types

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table

SPANS = {"pte": "4 KiB", "pmd": "2 MiB", "pud": "1 GiB", "pgd": "512 GiB"}


class Share(click.ParamType):
    """A share written as 100% or 0.25; more than nothing, at most all."""

    name = "percent"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """As a number from 0 to 1."""
        text = str(value)
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = -1.0
        if not 0 < share <= 1:
            self.fail(f"{text} is not a share: write 25% or 0.25, at most 100%", param, ctx)
        return share


def levels(found: dict[str, Any]) -> Table:
    """Both sides, one line for each level."""
    own, host = found["unshared"]["tables_each"], found["shared"]["tables"]
    clients = found["clients"]
    everybody = f"{clients:,} clients"
    columns = ("one client", "bytes", everybody, "host mm", "bytes, once")
    lines = _show.table("level", "entry spans", *columns, right=columns)
    for level, span in SPANS.items():
        each = own.get(level, 0)
        lines.add_row(
            level.upper(),
            span,
            f"{each:,}" if level in own else "has one",
            units.size(each * plan.TABLE_BYTES),
            units.size(each * plan.TABLE_BYTES * clients),
            f"{host[level]:,}",
            units.size(host[level] * plan.TABLE_BYTES),
        )
    lines.add_row(
        "sum",
        "",
        f"{sum(own.values()):,}",
        units.size(found["unshared"]["bytes_each"]),
        units.size(found["unshared"]["bytes"]),
        f"{sum(host.values()):,}",
        units.size(found["shared"]["bytes"]),
    )
    return lines


def beside(found: dict[str, Any]) -> Table:
    """Every way to map the same memory."""
    columns = ("all clients", "times less")
    lines = _show.table("the same window as", *columns, right=columns)
    most = found["ways"]["unshared 4 KiB pages"]
    for way, count in found["ways"].items():
        lines.add_row(way, units.size(count), f"{most / count:,.4g}")
    return lines


def by_class(found: list[dict[str, Any]]) -> Table:
    """What was measured, by the classes of memory that a survey has."""
    columns = ("own tables", "shared", "would go")
    lines = _show.table("of all that was measured", *columns, right=columns)
    for one in found:
        sizes = (one["own_tables_bytes"], one["page_table_bytes"], one["saved_bytes"])
        lines.add_row(one["what"], *map(units.size, sizes))
    return lines


def notes(found: dict[str, Any]) -> Iterator[str]:
    """Remarks that do not fit in a table."""
    still, touched = found["each_client_still"], found["touched"]
    saved = found["unshared"]["bytes"] - found["shared"]["bytes"]
    yield f"Sharing saves {units.size(saved)}: {found['ratio']:,.1f} times less."
    if touched["by_each_client"] < 1:
        most = units.size(found["unshared"]["bytes_if_scattered"])
        yield ""
        yield f"Unshared is for pages that lie in one piece; as scattered as can be it is {most}."
        yield f"Shared has what anybody touches: {touched['by_anybody']:.1%} of the window."
    yield ""
    yield "What each client still pays with sharing:"
    slot, own = still["emulator_slot_bytes"], units.size(still["emulator_own_tables_bytes"])
    yield f"  {still['kernel_bytes']} bytes on a kernel with mshare: its own PGD's entries"
    yield f"  {slot} bytes with this emulator, and on today's kernel its own tables, up to {own}"


def show(found: dict[str, Any]) -> None:
    """Print the plan for people."""
    touched, window = found["touched"], units.size(found["size_bytes"])
    page = next(name for name, size in plan.PAGE_SIZES.items() if size == found["page_bytes"])
    print(
        f"{window} mapped by {found['clients']:,} clients in {page} pages; "
        f"each touches {touched['by_each_client']:.1%} ({touched['source']})\n"
    )
    _show.show(levels(found))
    print()
    for line in notes(found):
        print(line)
    print()
    _show.show(beside(found))
    if "classes" in found:
        print()
        _show.show(by_class(found["classes"]))


def show_grown(found: dict[str, Any]) -> None:
    """Print the plan of processes that have private memory in common."""
    many, before = f"{found['processes']:,}", f"{found['surveyed_processes']:,}"
    print(
        f"{many} processes like the {before} that were surveyed: page tables "
        f"{units.size(found['vmpte_bytes'])}; sharing would take away "
        f"{units.size(found['saved_bytes'])}\n"
    )
    columns = (f"would go of {before}", f"of {many}", "share")
    lines = _show.table("class", *columns, "", right=columns)
    for one in sorted(found["classes"], key=lambda one: -int(one["saved_bytes"])):
        lines.add_row(
            one["class"],
            units.size(one["surveyed_bytes"]),
            units.size(one["saved_bytes"]),
            f"{one['saved_bytes'] / found['saved_bytes']:.0%}",
            one["what"],
        )
    _show.show(lines)


@click.command()
@click.option("--size", type=_types.Size(of=4096), help="The window that all map, as 300G.")
@click.option("--clients", type=click.IntRange(min=1), help="How many processes map it.")
@click.option(
    "--page",
    type=click.Choice(list(plan.PAGE_SIZES)),
    default="4K",
    show_default=True,
    help="Size of its pages.",
)
@click.option("--touched", type=Share(), help="Share of it that each client touches  [100%].")
@click.option(
    "--from-run",
    "run",
    type=_types.Input(),
    help="Take what is touched from a measured run instead (bench -o, run --report, "
    "survey --json); also size and clients where they are not given.",
)
@_show.json_option
@_show.output_option
def command(
    size: int | None,
    clients: int | None,
    page: str,
    touched: float | None,
    run: TextIO | None,
    as_json: bool,
    output: TextIO | None,
) -> None:
    """Compute what page tables cost, shared and unshared."""
    classes: list[dict[str, Any]] = []
    if run is None:
        if size is None or clients is None:
            raise click.UsageError("give --size and --clients, or a measured run with --from-run")
        basis = plan.Touched.assume(touched or 1.0, clients)
    else:
        if touched is not None or page != "4K":
            raise click.UsageError("--from-run has what is touched, in 4K pages: leave that away")
        try:
            document = json.load(run)
            if size is None and not plan.has_window(document):
                grown = plan.grown(document, clients or document["processes"])
                if _show.give_json(_json.document("plan-survey", grown), output, as_json=as_json):
                    show_grown(grown)
                return
            measured = plan.measured(document)
        except ValueError as error:  # JSONDecodeError is one
            raise click.UsageError(f"{run.name}: {error}") from None
        classes = measured.classes
        basis, size, clients = measured.touched, size or measured.size, clients or measured.clients
    found = plan.plan(size, clients, plan.PAGE_SIZES[page], basis)
    if classes:
        found["classes"] = classes
    if _show.give_json(_json.document("plan", found), output, as_json=as_json):
        show(found)
