"""``msharefs export``: a region's page tables for other programs."""

from __future__ import annotations

import errno
import sys
from typing import TextIO

import click

from . import _complete, _region, _types


@click.command()
@click.argument("region", shell_complete=_complete.regions)
@click.option(
    "--format", "form", type=click.Choice(["csv", "champsim", "virtuoso"]), default="csv",
    show_default=True,
    help="csv: every entry. champsim: a trace that touches once what was used; its order is that "
    "of addresses, its instructions are made up. virtuoso: the mappings, as t.vma beside a trace "
    "t.",
)  # fmt: skip
@click.option("-o", "--output", type=_types.Output(), help="Write to this file.")
def command(region: str, form: str, output: TextIO | None) -> None:
    """Write a region's page tables for other programs.

    Addresses are those of the host mm. docs/lab.md says what simulators can make of it.
    """
    from msharefs.lab import export

    if output is None and form == "champsim" and sys.stdout.isatty():
        raise OSError(
            errno.ENOTTY, "a trace is no text for a terminal: name a file (-o), or a pipe to xz"
        )
    with _region.opened(region) as opened:
        mappings = export.look(opened)
    to = (sys.stdout if output is None else output).buffer
    for piece in export.FORMATS[form](mappings):
        to.write(piece)
    to.flush()
