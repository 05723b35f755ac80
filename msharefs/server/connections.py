"""Who may have how many connections, and how long without a word.

A connection costs the server a descriptor, an attachment another, and without descriptors it can do
nothing for anybody. So each user has a share of them. A connection that has no attachment, and on
which nothing is said, is closed after a while: the library's are used at once.
"""

from __future__ import annotations

import errno
import logging
import os
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from . import quotas
from .peers import peer_of

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from .quotas import Quotas

log = logging.getLogger(__name__)

# A client says what it wants at once, unless it is stopped, or the machine is very busy.
SILENT_SECONDS = 10.0
# With more connections than these it is worth asking who has the other ends.
_FEW = 8
# The last of the server's descriptors are for other work than connections, and the last ones of
# connections for root and for the server's own user.
_FOR_ALL, _FOR_OTHERS = 1 / 2, 3 / 8
_WARN_SECONDS = 60.0


@dataclass(eq=False)
class Member:
    """A connection, as it counts here."""

    user: int
    inode: int
    """Of our end."""
    end: Callable[[], None]
    """Ends it."""
    attached: bool = False


def _ended() -> None:
    """Ends a connection that has ended."""


class Connections:
    """All connections of a mount."""

    def __init__(self, limits: Quotas) -> None:
        self.limits = limits
        self.attached = 0
        self._of: Counter[int] = Counter()
        self._members: dict[int, Member] = {}
        self._warned = -float("inf")

    def __len__(self) -> int:
        return len(self._members)

    def most(self) -> int:
        """How many the user has who has the most."""
        return max(self._of.values(), default=0)

    def check_share(self, user: int) -> None:
        """EMFILE: user `user` has a full share of connections, or all are taken."""
        privileged = quotas.is_privileged(user)
        most = self.limits.connections
        if not privileged and self._of[user] >= most:
            self._warn(f"user {user} has {most} connections, and no more (-o connections=)")
            raise quotas.exceeded(errno.EMFILE, f"connections of user {user}", "connections", most)
        room = int(self.limits.descriptors * (_FOR_ALL if privileged else _FOR_OTHERS))
        if len(self._members) + self.attached >= room:
            self._warn(f"there are {len(self._members)} connections: RLIMIT_NOFILE is too low")
            raise OSError(
                errno.EMFILE,
                f"{len(self._members)} connections: the server's RLIMIT_NOFILE is "
                f"{self.limits.descriptors}; raise it, and mount again",
            )

    def admit(self, sock: socket.socket, user: int, end: Callable[[], None]) -> Member:
        """Counts a connection, which `end` ends. EMFILE: see `check_share`.

        EINVAL: the other end is ours, too; that is ended.
        """
        self.check_share(user)
        inode = os.fstat(sock.fileno()).st_ino
        if self._of[user] >= _FEW:
            other = self._members.get(peer_of(inode))
            if other is not None:
                other.end()
                raise OSError(errno.EINVAL, f"user {user} shows both ends of a pair of sockets")
        member = self._members[inode] = Member(user, inode, end)
        self._of[user] += 1
        return member

    def dismiss(self, member: Member) -> None:
        """The connection has ended."""
        self.let_go(member)
        if self._members.get(member.inode) is member:
            del self._members[member.inode]
            self._of[member.user] -= 1
            if not self._of[member.user]:
                del self._of[member.user]
        # Or it is freed by the collector only, and thousands of others may have ended by then.
        member.end = _ended

    def check_clients(self) -> None:
        """EUSERS: no more processes can attach."""
        if self.attached >= self.limits.clients:
            raise quotas.exceeded(
                errno.EUSERS, f"{self.attached} attachments", "clients", self.limits.clients
            )

    def attach(self, member: Member) -> None:
        """The connection has an attachment. EUSERS: see `check_clients`."""
        self.check_clients()
        member.attached = True
        self.attached += 1

    def let_go(self, member: Member) -> None:
        """It has none any more."""
        self.attached -= member.attached
        member.attached = False

    def _warn(self, text: str) -> None:
        """A line in the log, but not for each of many."""
        if trio.current_time() > self._warned + _WARN_SECONDS:
            self._warned = trio.current_time()
            log.warning("%s", text)
