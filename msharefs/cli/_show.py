"""Printing, in the same way for every verb: JSON for programs, tables for people."""

from __future__ import annotations

import json
import sys
from typing import Any, TextIO

import click
from rich.console import Console
from rich.table import Table

from msharefs import units

from . import _types

# Both are the same in every verb that has them.
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
output_option = click.option(
    "-o", "--output", type=_types.Output(), help="Also write the figures as JSON to this file."
)

# rich folds a table into 80 columns where there is no terminal; a pipe or a file gets whole lines.
WIDE = 100_000


def print_json(value: Any) -> None:
    """Print a JSON document, indented."""
    click.echo(json.dumps(value, indent=2))


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


def show(thing: Any) -> None:
    """Print a rich renderable as it is: no markup, no emoji and no colouring inside its strings."""
    if sys.stdout.isatty():
        Console(markup=False, emoji=False, highlight=False).print(thing)
        return
    console = Console(width=WIDE, markup=False, emoji=False, highlight=False)
    with console.capture() as captured:
        console.print(thing)
    # Columns are padded on the right, which nobody wants in a file.
    for line in captured.get().splitlines():
        click.echo(line.rstrip())
