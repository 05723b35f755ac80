"""``msharefs run``: unmodified programs."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from functools import partial
from pathlib import Path

import click

from msharefs.launch import running

from . import _patience, tell
from ._types import Size


@click.command(context_settings={"allow_interspersed_args": False})
@click.option(
    "--mount",
    "directory",
    metavar="DIR",
    type=Path,  # not click.Path, whose stat(2) a dead server can hang
    help="The mount to use. By default $MSHAREFS_MOUNT, or the only one of root or of this user; "
    "if there is none, a private one that lives as long as the program and its descendants.",
)
@click.option(
    "--adopt-anon",
    "adopt",
    metavar="SIZE",
    type=Size(),
    help="Make a region of every anonymous shared mapping of at least SIZE, as 64M.",
)
@click.option(
    "--report",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False, readable=False),
    help="Watch the page tables of the program and all it starts, and write what sharing saves as "
    "HTML, with the figures as JSON beside it; *.json: those alone.",
)
@click.argument("program", nargs=-1, required=True, type=click.UNPROCESSED)
def command(
    directory: Path | None, adopt: int | None, report: Path | None, program: tuple[str, ...]
) -> None:
    """Run PROGRAM so that its mmap(2) of a region file attaches the region.

    Programs that it starts do so too. $MSHAREFS_MOUNT tells it where the mount is. The exit status
    is the program's, 128+N if signal N ended it; 126 or 127 if it cannot be started.
    """
    named = directory or os.environ.get(running.MOUNT)
    try:
        with _patience.watching(Path(named)) if named else contextlib.nullcontext():
            chosen = running.choose_mount(directory, adopts=adopt is not None, tell=tell)
    except running.SeveralMountsError as error:
        raise click.UsageError(str(error)) from None
    watcher = None
    if report is not None:
        from msharefs.lab.watching import reporting

        watcher = partial(reporting, report, program)
    try:
        status = running.run(program, chosen, adopt, watcher)
    except OSError as error:
        if error.filename != program[0]:
            raise
        click.echo(f"msharefs: {program[0]}: {error.strerror}", err=True)
        status = running.NOT_FOUND if error.errno == errno.ENOENT else running.NOT_EXECUTABLE
    sys.exit(status)
