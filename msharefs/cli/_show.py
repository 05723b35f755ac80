"""Printing, in the same way for every verb: JSON for programs, tables for people."""

from __future__ import annotations

import json
import shutil
import sys
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import click
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from msharefs import units

from . import _types

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Command = TypeVar("Command", bound="Callable[..., Any]")

# Both are the same in every verb that has them.
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
output_option = click.option(
    "-o", "--output", type=_types.Output(), help="Also write the figures as JSON to this file."
)


def sort_option(sorts: Iterable[str]) -> Callable[[Command], Command]:
    """``--sort KEY``: the same in every verb that lists. The first key is the order without it."""
    keys = list(sorts)
    return click.option(
        "--sort", type=click.Choice(keys), default=keys[0], show_default=True,
        help="What to list by: names and pids from the least, all else from the most.",
    )  # fmt: skip


def sorted_by(found: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """What was found, by one of its values: names and pids upwards, other numbers downwards."""
    known = [each for each in found if each.get(key) is not None]
    downwards = key not in ("name", "pid", "comm", "region")
    known.sort(key=lambda each: each[key], reverse=downwards)
    return known + [each for each in found if each.get(key) is None]


# rich folds a table into 80 columns where there is no terminal; a pipe or a file gets whole lines.
WIDE = 100_000
_LINES = 25


def print_json(value: Any) -> None:
    """Print a JSON document, indented."""
    click.echo(json.dumps(value, indent=2))


def print_look(value: Any, *, watched: bool) -> None:
    """Print a JSON document; of many looks each has a line."""
    if watched:
        click.echo(json.dumps(value))
    else:
        print_json(value)


def give_json(value: Any, output: TextIO | None, *, as_json: bool) -> bool:
    """Do what ``--output`` and ``--json`` ask for; True if the table for people is still wanted."""
    if output is not None:
        json.dump(value, output, indent=2)
        output.write("\n")
        output.flush()
    if as_json:
        print_json(value)
    return not as_json


def printable(name: str) -> str:
    """A file name as one harmless line: unprintable characters become backslash escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def region_size(count: int) -> str:
    """A region's size for people; an unsized region has none."""
    return units.size(count) if count else "unsized"


def table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """A plain table; the columns named in right hold numbers."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", no_wrap=True)
    return made


def has_colour() -> bool:
    """Whether standard output is a terminal that shows colours, and is to (NO_COLOR)."""
    console = Console()
    return sys.stdout.isatty() and console.color_system is not None and not console.no_color


def show(thing: Any, spare: tuple[str, ...] = ()) -> None:
    """Print a rich renderable as it is: no markup, no emoji and no colouring inside its strings.

    Nothing of a table is cut off. On a terminal too narrow for it the columns in `spare` are left
    out, as many as need be and the first first; if it is too wide then, its lines wrap.
    """
    if sys.stdout.isatty():
        room = shutil.get_terminal_size().columns
        left: list[str] = []
        while isinstance(thing, Table) and _width(thing) > room and len(left) < len(spare):
            left.append(spare[len(left)])
            thing = _without(thing, left[-1])
        if isinstance(thing, Table):
            room = max(room, _width(thing))
        # With its height too: otherwise a dumb terminal's width is 80, whatever is said.
        Console(width=room, height=_LINES, markup=False, emoji=False, highlight=False).print(thing)
        if left:
            names = ", ".join(left)
            click.echo(f"left out, for a wider terminal, a pipe or --json to show: {names}")
        return
    console = Console(width=WIDE, markup=False, emoji=False, highlight=False)
    with console.capture() as captured:
        console.print(thing)
    # Columns are padded on the right, which nobody wants in a file.
    for line in captured.get().splitlines():
        click.echo(line.rstrip())


def _width(table: Table) -> int:
    """The columns that a table takes where there is room for everything."""
    console = Console(width=WIDE, height=_LINES)
    return Measurement.get(console, console.options, table).maximum


def _without(table: Table, name: str) -> Table:
    """The table, but for a column that may not be there."""
    kept = [column for column in table.columns if column.header != name]
    made = Table(box=None, pad_edge=False, header_style="bold", show_header=table.show_header)
    for column in kept:
        made.add_column(column.header, justify=column.justify, no_wrap=True)
    for cells in zip(*(column.cells for column in kept), strict=True):
        made.add_row(*cells)
    return made
