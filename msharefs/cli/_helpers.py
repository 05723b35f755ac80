"""``mount.msharefs`` and ``umount.msharefs``: what mount(8), umount(8) and fstab(5) start.

Their arguments are those of every such helper, and so is their exit status: 1 for wrong usage, 32
if it could not be done.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from msharefs import mountpoint
from msharefs.server import options as mount_options
from msharefs.server import server
from msharefs.server.options import BadOptionError

from . import _examples, sentence, tell
from .umount import unmount

if TYPE_CHECKING:
    from collections.abc import Callable

# mount(8), section EXIT STATUS.
USAGE, FAILED = 1, 32

_SETTINGS = {"help_option_names": ["-h", "--help"]}
_ignored = click.option("-n", "no_mtab", is_flag=True, help="Nothing: there is no mtab.")
_verbose = click.option("-v", "verbose", is_flag=True, help="Say what has been done.")
_type = click.option("-t", "kind", metavar="TYPE", help="Nothing: the type is always msharefs.")


@click.command(context_settings=_SETTINGS, epilog=_examples.epilog("mount.msharefs"))
@click.argument("source", metavar="NAME")
@click.argument("directory", type=Path)
@click.option("-o", "given", metavar="OPTS", multiple=True, help="As for `msharefs mount`.")
@click.option("-r", "read_only", is_flag=True, help="As -o ro.")
@click.option("-w", "writable", is_flag=True, help="As -o rw.")
@click.option("-s", "sloppy", is_flag=True, help="Leave out options that there are not.")
@click.option("-f", "fake", is_flag=True, help="Check the options, and mount nothing.")
@_ignored
@_verbose
@_type
def mount(
    source: str,
    directory: Path,
    given: tuple[str, ...],
    read_only: bool,
    writable: bool,
    sloppy: bool,
    fake: bool,
    no_mtab: bool,
    verbose: bool,
    kind: str | None,
) -> None:
    """Mount msharefs on DIRECTORY, for `mount -t msharefs NAME DIRECTORY -o OPTS` and fstab(5).

    NAME is what /proc/mounts shows, as `none`; there is no device. `-o remount` changes the
    limits, size= and the flags of any mount; all else is as it was mounted.
    """
    del no_mtab, kind
    items = mount_options.words([*given, *(["ro"] if read_only else ["rw"] if writable else [])])
    if sloppy:
        for item in [each for each in items if not mount_options.is_known(each)]:
            if item != "remount":
                tell(f"-o {item} is left out: there is no such option")
                items.remove(item)
    resolved = mountpoint.resolve(directory)
    again = "remount" in items
    if again:
        items.remove("remount")
        _remount(resolved, items, fake=fake)
    else:
        chosen = mount_options.parse(items, resolved, source=source)
        if not fake:
            mountpoint.make_free(resolved, tell)
            server.start(chosen)
    if verbose:
        tell(f"{source} {'re' if again else ''}mounted on {resolved}" + (" (not)" * fake))


def _remount(directory: Path, items: list[str], *, fake: bool) -> None:
    """What Linux decides is changed by mount(8), what the server decides by the server."""
    found = mountpoint.covering(directory)
    if found is None or found.fstype != mountpoint.FSTYPE:
        raise OSError(errno.EINVAL, "no msharefs is mounted here to be changed", str(directory))
    # mount(8) gives back what /proc/mounts shows, where fstab(5) does not have the mount.
    items = [each for each in items if each.partition("=")[0] not in mount_options.SHOWN]
    mount_options.parse(items, directory)  # the names, before anything changes
    flags = [each for each in items if mount_options.is_flag(each)]
    ours = [each for each in items if each.partition("=")[0] in mount_options.KEYS and "=" in each]
    if fake:
        return
    if ours:
        mountpoint.remount(directory, ",".join(ours))
    if flags:
        # -i: without a helper, or it would come back here.
        command = ["mount", "-i", "-o", ",".join(["remount", *flags]), "none", str(directory)]
        done = subprocess.run(
            command, env={**os.environ, "LC_ALL": "C"}, capture_output=True, text=True, check=False
        )
        if done.returncode:
            said = done.stderr.strip().rpartition("mount: ")[2] or f"exit status {done.returncode}"
            raise OSError(errno.EPERM, f"mount(8) cannot change its flags: {said}")


@click.command(context_settings=_SETTINGS, epilog=_examples.epilog("umount.msharefs"))
@click.argument("directory", type=Path)
@click.option("-l", "lazy", is_flag=True, help="As `msharefs umount --lazy`.")
@click.option("-f", "force", is_flag=True, help="Nothing: a dead mount is taken away in any case.")
@click.option("-r", "read_only", is_flag=True, help="Nothing: a busy mount stays as it is.")
@_ignored
@_verbose
@_type
def umount(
    directory: Path,
    lazy: bool,
    force: bool,
    read_only: bool,
    no_mtab: bool,
    verbose: bool,
    kind: str | None,
) -> None:
    """Unmount the msharefs on DIRECTORY, and wait until its server has ended."""
    del force, read_only, no_mtab, kind
    unmount(directory, lazy=lazy)
    if verbose:
        tell(f"{directory} unmounted")


def _run(command: Callable[..., object], name: str) -> NoReturn:
    """As `execute`, with the exit status that mount(8) expects."""
    try:
        command(prog_name=name, standalone_mode=False)
    except BadOptionError as error:
        tell(str(error))
        sys.exit(USAGE)
    except click.ClickException as error:
        error.show()
        sys.exit(USAGE)
    except OSError as error:
        tell(sentence(error))
        sys.exit(FAILED)
    sys.exit(0)


def mount_main() -> NoReturn:
    """Entry point of ``mount.msharefs``."""
    _run(mount, "mount.msharefs")


def umount_main() -> NoReturn:
    """Entry point of ``umount.msharefs``."""
    _run(umount, "umount.msharefs")
