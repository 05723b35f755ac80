"""A server that has too little of something to start: which limit it is, and what would be enough.

What an earlier server has left is then as whole as before, so nothing of it may be given up.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from typing import TYPE_CHECKING

from msharefs import proc

if TYPE_CHECKING:
    from collections.abc import Iterator

ERRORS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

# What the server has open besides its regions and clients, with room to work.
_OTHER_DESCRIPTORS = 64


@contextlib.contextmanager
def named(regions: int) -> Iterator[None]:
    """Names the limit in the error of a start with so many regions, if it is a shortage."""
    try:
        yield
    except OSError as error:
        if error.errno not in ERRORS:
            raise
        where = f" ({error.filename})" if error.filename is not None else ""
        remedy = _remedy(error.errno, regions)
        raise OSError(
            error.errno,
            f"{os.strerror(error.errno)}{where}: the server does not start, and its "
            f"{regions} regions stay as they are: {remedy}; then mount again",
        ) from None


def _remedy(code: int, regions: int) -> str:
    if code == errno.EMFILE:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        enough = 2 * regions + _OTHER_DESCRIPTORS
        if soft >= enough:  # then it is the clients
            enough = 2 * soft
        return (
            f"RLIMIT_NOFILE is {soft}, {enough} is enough without clients, which need two more "
            f"each: raise it (prlimit --nofile={enough}:{enough}, or LimitNOFILE={enough} "
            "in a systemd unit)"
        )
    if code == errno.ENFILE:
        return f"fs.file-max is {proc.sysctl('fs/file-max')}: raise it with sysctl"
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    space = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft} bytes"
    return (
        f"RLIMIT_AS is {space}, and vm.max_map_count is {proc.sysctl('vm/max_map_count')}, of "
        "which each region takes one, and each of its objects: raise them, or free memory"
    )
