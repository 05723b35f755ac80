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
from ._types import Classes, Flag, Size

# A process has a table for so much.
_LEAST = 2 << 20


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
    "--adopt",
    metavar="CLASSES",
    type=Classes(*running.CLASSES, least=_LEAST),
    help="Make regions of shared memory of these classes: anon, zero (/dev/zero), sysv (shmget), "
    "memfd, shm (shm_open, tmpfs), file; or all. Each from 2 MiB on, or from a size that is named, "
    "as anon,sysv:64M. What stays as it is is told on standard error.",
)
@click.option(
    "--adopt-anon",
    metavar="SIZE",
    type=Size(),
    help="Short for --adopt anon:SIZE.",
)
@click.option(
    "--shared-pt",
    "shared_pt_mode",
    type=click.Choice(running.SHARED_PT_MODES),
    help="mmap(2) has a flag MAP_SHARED_PT. region: such a mapping is a region, shared with the "
    "children that fork(2) gives it to; android: its rules are those of Android's kernel, and "
    "--report says which tables that would share.",
)
@click.option(
    "--shared-pt-flag",
    metavar="VALUE",
    type=Flag(),
    help="The flag's value, which no kernel has settled  [region: {region:#x}; android: "
    "{android:#x}, MAP_HUGETLB].".format(**running.SHARED_PT_FLAGS),
)
@click.option(
    "--report",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False, readable=False),
    help="Watch the page tables of the program and all it starts, and write what sharing saves as "
    "HTML, with the figures as JSON beside it; *.json: those alone.",
)
@click.option(
    "--verbose",
    is_flag=True,
    help="Say at the end which shared memory was not adopted, and why, as the report does, and "
    "where no shadow can be made for a program, and what takes its faults instead.",
)
@click.argument("program", nargs=-1, required=True, type=click.UNPROCESSED)
def command(
    directory: Path | None,
    adopt: dict[str, int] | None,
    adopt_anon: int | None,
    shared_pt_mode: str | None,
    shared_pt_flag: int | None,
    report: Path | None,
    verbose: bool,
    program: tuple[str, ...],
) -> None:
    """Run PROGRAM so that its mmap(2) of a region file attaches the region.

    Programs that it starts do so too. $MSHAREFS_MOUNT tells it where the mount is. The exit status
    is the program's, 128+N if signal N ended it; 126 or 127 if it cannot be started.
    """
    classes = {**(adopt or {}), **({"anon": adopt_anon} if adopt_anon else {})} or None
    if shared_pt_flag is not None and shared_pt_mode is None:
        shared_pt_mode = running.REGION
    if shared_pt_mode is not None:
        value = shared_pt_flag or running.SHARED_PT_FLAGS[shared_pt_mode]
        if value == running.SHARED_PT_FLAGS[running.ANDROID] and shared_pt_mode != running.ANDROID:
            raise click.UsageError(f"{value:#x} is MAP_HUGETLB: only with --shared-pt android")
        # Inherited as MSHAREFS_PT_BUDGET is.
        os.environ[running.SHARED_PT] = f"{shared_pt_mode}:{value:#x}"
    if shared_pt_mode == running.REGION:
        classes = classes or {}  # as if some were adopted, though only what has the flag is
    named = directory or os.environ.get(running.MOUNT)
    try:
        with _patience.watching(Path(named)) if named else contextlib.nullcontext():
            chosen = running.choose_mount(directory, adopts=classes is not None, tell=tell)
    except running.SeveralMountsError as error:
        raise click.UsageError(str(error)) from None
    if verbose:
        os.environ[running.VERBOSE] = "1"
    watcher = None
    if report is not None or verbose:
        from msharefs.lab.watching import reporting

        watcher = partial(reporting, report, program, classes or {})
    try:
        status = running.run(program, chosen, classes, watcher)
    except OSError as error:
        if error.filename != program[0]:
            raise
        click.echo(f"msharefs: {program[0]}: {error.strerror}", err=True)
        status = running.NOT_FOUND if error.errno == errno.ENOENT else running.NOT_EXECUTABLE
    sys.exit(status)
