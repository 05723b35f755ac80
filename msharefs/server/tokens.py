"""Tokens: what a client shows on a connection of its own, if we may not fetch its socket (Yama)."""

from __future__ import annotations

import errno
import secrets
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import trio

from . import quotas

if TYPE_CHECKING:
    from .region import Region

# A client shows it at once.
TOKEN_SECONDS = 10.0
_BYTES = 16


class _Token(NamedTuple):
    region: Region
    flags: int
    user: int
    deadline: float


class Tokens:
    """Those that nobody has shown yet: at most `most` of one user, and not for long."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._tokens: dict[bytes, _Token] = {}  # the oldest first
        self._of: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._tokens)

    def issue(self, region: Region, flags: int, user: int) -> bytes:
        """A token for a region and the flags of a descriptor. EMFILE: `user` has too many."""
        self.expire()
        if self._of[user] >= self._most:
            raise quotas.exceeded(errno.EMFILE, f"tokens of user {user}", "connections", self._most)
        token = secrets.token_bytes(_BYTES)
        self._tokens[token] = _Token(region, flags, user, trio.current_time() + TOKEN_SECONDS)
        self._of[user] += 1
        return token

    def redeem(self, token: bytes) -> tuple[Region, int]:
        """The region and flags that a token stands for, once. EACCES: it stands for none."""
        self.expire()
        if token not in self._tokens:
            raise OSError(errno.EACCES, "that token is not, or no longer, valid")
        found = self._forget(token)
        return found.region, found.flags

    def expire(self) -> None:
        """Forgets those that are too old."""
        now = trio.current_time()
        while self._tokens:
            oldest = next(iter(self._tokens))
            if self._tokens[oldest].deadline > now:
                return
            self._forget(oldest)

    def _forget(self, token: bytes) -> _Token:
        found = self._tokens.pop(token)
        self._of[found.user] -= 1
        if not self._of[found.user]:
            del self._of[found.user]
        return found
