"""What the server keeps of a region for verbs on it: memory that is locked, and memory policies.

VMAs say what was asked for, so a later server finds it there. The lock is a mapping of the server's
own, in which the pages are locked (mlock(2)); a policy is one of the region's memory, which Linux
keeps with the file (mbind(2) of shared memory).
"""

from __future__ import annotations

import errno
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msharefs.native import check, ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

log = logging.getLogger(__name__)

MPOL_DEFAULT = 0
MAX_NODES = lib.MSHARE_NODES
_POLICIES = lib.VMA_POLICY >> lib.VMA_POLICY_SHIFT
_MODES = (
    "default", "prefer", "bind", "interleave", "local", "prefer (many)", "weighted interleave",
)  # fmt: skip


@dataclass(frozen=True)
class _Locked:
    """Memory of a region that is locked, at region offsets [start, end)."""

    start: int
    end: int
    address: int


class Locks:
    """The locked memory of a region."""

    def __init__(self) -> None:
        self._locked: list[_Locked] = []

    @property
    def size(self) -> int:
        """Bytes that are locked."""
        return sum(each.end - each.start for each in self._locked)

    def covers(self, start: int, end: int) -> int:
        """How many bytes of [start, end) are locked."""
        return sum(max(0, min(end, each.end) - max(start, each.start)) for each in self._locked)

    def gaps(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The parts of [start, end) that are not locked."""
        for each in sorted(self._locked, key=lambda one: one.start):
            if each.end > start and each.start < end:
                if each.start > start:
                    yield start, each.start
                start = each.end
        if start < end:
            yield start, end

    @staticmethod
    def lock(fd: int, offset: int, size: int, *, write: bool) -> int:
        """Brings a part of a file into memory and locks it: the address. For a thread.

        OSError as of mlock(2).
        """
        address = ffi.new("uint64_t *")
        how = 0 if write else lib.PAGES_READ
        check(lib.pages_lock(fd, offset, size, how, address), f"locking {size} bytes")
        return int(address[0])

    @staticmethod
    def unlock(address: int, size: int) -> None:
        """Lets go of what `lock` has locked."""
        lib.pages_unlock(address, size)

    def add(self, start: int, end: int, address: int) -> None:
        """[start, end) is locked by the mapping at `address`."""
        self._locked.append(_Locked(start, end, address))

    def release(self, start: int, end: int) -> None:
        """Unlocks [start, end)."""
        kept: list[_Locked] = []
        for each in self._locked:
            low, high = max(start, each.start), min(end, each.end)
            if low >= high:
                kept.append(each)
                continue
            lib.pages_unlock(each.address + low - each.start, high - low)
            if each.start < low:
                kept.append(_Locked(each.start, low, each.address))
            if high < each.end:
                kept.append(_Locked(high, each.end, each.address + high - each.start))
        self._locked = kept

    def close(self) -> None:
        """Unlocks all."""
        self.release(0, 1 << 64)


@dataclass(frozen=True)
class Policy:
    """A memory policy."""

    mode: int
    nodes: tuple[int, ...]

    def __str__(self) -> str:
        mode = self.mode & 0xFF
        name = _MODES[mode] if mode < len(_MODES) else str(mode)
        return f"{name}:{','.join(map(str, self.nodes))}" if self.nodes else name

    @classmethod
    def at(cls, fd: int, offset: int) -> Policy:
        """The policy of a page of a file: get_mempolicy(2)."""
        nodes = ffi.new(f"uint64_t[{MAX_NODES // 64}]")
        mode = check(lib.pages_policy(fd, offset, nodes, MAX_NODES), f"the policy at {offset:#x}")
        found = tuple(node for node in range(MAX_NODES) if nodes[node // 64] >> node % 64 & 1)
        return cls(mode, found)


class Policies:
    """The memory policies of a region: numbers in its VMAs tell where they differ."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._numbers: dict[Policy, int] = {}

    def number(self, policy: Policy, used: Iterable[int]) -> int:
        """The flags of a VMA with that policy. ENOMEM: there are too many in the region.

        `used` are the flags of all its VMAs.
        """
        if policy.mode == MPOL_DEFAULT:
            return 0
        living = {(flags & lib.VMA_POLICY) >> lib.VMA_POLICY_SHIFT for flags in used}
        self._numbers = {
            known: number for known, number in self._numbers.items() if number in living
        }
        if policy not in self._numbers:
            free = set(range(1, _POLICIES + 1)) - living
            if not free:
                raise OSError(errno.ENOMEM, f"{self._name}: {_POLICIES} memory policies are used")
            self._numbers[policy] = min(free)
        return self._numbers[policy] << int(lib.VMA_POLICY_SHIFT)


def reset(fd: int, start: int, end: int) -> None:
    """What is mapped next there has no memory policy."""
    check(
        lib.pages_bind(fd, start, end - start, MPOL_DEFAULT, ffi.NULL, 0, 0, 0),
        "taking a memory policy away",
    )
