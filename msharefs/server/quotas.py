"""The limits of a mount, each an option of it: what one user, or one region, can take from others.

Here are the numbers and the words; each is enforced where the thing is made: regions, mappings and
memory in regions.py and region.py, clients and connections in connections.py. What Linux itself
limits is in limits.py.
"""

from __future__ import annotations

import errno
import os
import resource
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msharefs.native import lib

if TYPE_CHECKING:
    from .options import MountOptions

REGIONS = 65536
# However few descriptors there are.
_FEW = 16
# The part of the descriptors that files and directories known to the kernel may take, one each.
_FOR_NAMES = 3 / 8
# The part of regions, and of names, that one user may have.
_SHARE = 4


@dataclass
class Quotas:
    """How many there may be at once. `memory`: bytes that may be mapped; 0: any number.

    One object for the whole mount: a remount changes what it holds.
    """

    regions: int
    user_regions: int
    """Those of one user, who is neither root nor the server's own."""
    vmas: int
    """Of one region."""
    clients: int
    """Attachments of all regions."""
    memory: int
    connections: int
    """Of one user, who is neither root nor the server's own."""
    descriptors: int
    """The server's own limit, RLIMIT_NOFILE."""

    @classmethod
    def of(cls, options: MountOptions) -> Quotas:
        """Those of a mount; without an option it is what the server's descriptors are enough for.

        A connection takes one, an attachment another.
        """
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        regions = options.regions or REGIONS
        return cls(
            regions=regions,
            user_regions=options.user_regions or max(min(_FEW, regions), regions // _SHARE),
            vmas=options.vmas or lib.MM_VMAS,
            clients=options.clients or max(_FEW, descriptors // 4),
            memory=options.memory,
            connections=options.connections or max(_FEW, min(descriptors // 8, int(lib.MM_SLOTS))),
            descriptors=descriptors,
        )

    def change(self, options: MountOptions) -> None:
        """The limits of `options` are in force from now on."""
        vars(self).update(vars(Quotas.of(options)))

    def check_names(self, known: int, user: int = 0, of_user: int = 0) -> None:
        """ENOSPC: with `known` files and directories in use, no more can be made.

        Nor by `user`, who has `of_user` of them.
        """
        most = max(_FEW, int(self.descriptors * _FOR_NAMES))
        share = max(_FEW, most // _SHARE)
        if of_user >= share and not is_privileged(user):
            raise OSError(
                errno.ENOSPC,
                f"{of_user} files and directories of user {user} are in use, each with a "
                f"descriptor of the server's: {share} are a user's share; remove some, or raise "
                "the server's RLIMIT_NOFILE and mount again",
            )
        if known >= most:
            raise OSError(
                errno.ENOSPC,
                f"{known} files and directories are in use, each with a descriptor: the server's "
                f"RLIMIT_NOFILE is {self.descriptors}; raise it and mount again, or remove some",
            )


def is_privileged(user: int) -> bool:
    """Root and the server's own user have no share: they have all."""
    return user in (0, os.geteuid())


def exceeded(code: int, what: str, option: str, most: int) -> OSError:
    """The error of a request for one more than there may be."""
    return OSError(
        code, f"{what}: -o {option}={most} is the limit; mount with a larger one, or end some"
    )
