"""Finding the region that a verb was given, or saying in one sentence why it is no region."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msharefs import mountpoint

from . import _patience

if TYPE_CHECKING:
    from msharefs.client import Region

INFO_NAME = "mshare_info"  # the one regular file of a mount that is no region


def look(path: str) -> os.stat_result:
    """`os.stat` of a file or directory that must be on an msharefs mount."""
    _patience.watch(Path(path))
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise FileNotFoundError(
            errno.ENOENT,
            f"{path}: there is no such file; `msharefs ls DIR` lists the regions of a mount",
        ) from None
    except PermissionError:
        raise PermissionError(
            errno.EACCES,
            f"{path}: may not be looked at by you: a directory above it, or a mount that is for "
            "the user alone who made it (FUSE without allow_other), is not open to you",
        ) from None
    except OSError as error:
        if error.errno == errno.ESTALE:
            raise gone(path) from None
        if error.errno not in (errno.ENOTCONN, errno.ECONNABORTED):
            raise
        raise OSError(
            error.errno,
            f"{path}: the server of this mount is gone; "
            "`msharefs mount` on the same directory brings it back",
        ) from None
    kind = mountpoint.fstype(status.st_dev)
    if kind != mountpoint.FSTYPE:
        raise OSError(
            errno.EINVAL,
            f"{path} is not on an msharefs mount (its file system is {kind or 'unknown'}); "
            "mount one with `msharefs mount DIR` and name a file in it",
        )
    return status


def gone(path: str) -> OSError:
    """What is to be said where names are ESTALE."""
    return OSError(
        errno.ESTALE,
        f"{path}: its state directory is gone: somebody has removed it. Attached processes go on; "
        "no name can be found or made until you unmount, and mount again",
    )


def check_region(path: str) -> os.stat_result:
    """`os.stat` of a region; raises `OSError` with a sentence for anything else."""
    status = look(path)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(
            errno.EISDIR,
            f"{path} is a directory, not a region; `msharefs ls {path}` lists the regions in it",
        )
    if not stat.S_ISREG(status.st_mode) or Path(path).name == INFO_NAME:
        raise OSError(
            errno.EINVAL, f"{path} is not a region; `msharefs ls DIR` lists the regions of a mount"
        )
    return status


def describe(path: str, kind: str) -> Any:
    """The region's description of itself: kind is stat, maps, pagetable or clients.

    An unsized region has a stat, but nothing else.
    """
    if kind == "stat":
        check_region(path)
        return ask(path, kind)
    with opened(path) as region:
        return region.describe(kind)


def opened(path: str) -> Region:
    """A region that has a host mm, open to be looked at."""
    if check_region(path).st_size == 0:
        raise OSError(
            errno.EINVAL,
            f"{path} has no size yet, so it has no host mm; give it one with "
            f"`truncate -s SIZE {path}` (SIZE a multiple of the quantum in mshare_info)",
        )
    return _open(path)


def ask(path: str, kind: str) -> Any:
    """`describe`, without the checks: the caller knows that this is a region."""
    with _open(path) as region:
        return region.stat() if kind == "stat" else region.describe(kind)


def _open(path: str) -> Region:
    """The region, to look at; that needs no right to write."""
    import msharefs

    try:
        return msharefs.open(path, os.O_RDONLY)
    except PermissionError as error:
        status = os.stat(path)
        raise PermissionError(
            error.errno,
            f"{path}: may not be read by you (mode {stat.S_IMODE(status.st_mode):04o}, of user "
            f"{status.st_uid}): let that user give you the right (chmod), or look as root",
        ) from None
