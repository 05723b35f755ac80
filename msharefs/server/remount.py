"""``mount -o remount``: the options of a mount that can change while it is mounted."""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING

from msharefs import home
from msharefs.mountpoint import REMOUNT_STRUCT

from .options import BadOptionError, remounted
from .quotas import is_privileged

if TYPE_CHECKING:
    from .regions import Regions

log = logging.getLogger(__name__)


def answer(regions: Regions, data: bytes, user: int) -> bytes:
    """Answers REMOUNT_COMMAND of `user`: an errno, or 0, and a sentence about it."""
    _, text = REMOUNT_STRUCT.unpack(data)
    given = text.rstrip(b"\0").decode(errors="replace")
    try:
        if not is_privileged(user):
            raise PermissionError(errno.EPERM, "only root and the server's user may remount")
        _change(regions, given)
    except BadOptionError as error:
        return REMOUNT_STRUCT.pack(errno.EINVAL, str(error).encode())
    except OSError as error:
        return REMOUNT_STRUCT.pack(error.errno or errno.EIO, str(error.strerror).encode())
    return REMOUNT_STRUCT.pack(0, b"")


def _change(regions: Regions, given: str) -> None:
    options = remounted(regions.options, [given])
    if options.size != regions.options.size:
        home.mount_memory(options.state, options.size, "")
    regions.change(options)
    log.info("remounted with %s", given)
