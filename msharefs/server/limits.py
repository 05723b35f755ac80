"""The limits of Linux that hold for a new mapping of a region, as mmap(2) has them.

The series maps into the region's address space with the caller's own limits: RLIMIT_AS is compared
with the region's mappings, RLIMIT_MEMLOCK with the memory to be locked, and memory is promised as
vm.overcommit_memory says. Sources: observed.md C "core rules", getrlimit(2), proc(5).
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from typing import TYPE_CHECKING

from msharefs import proc, verbs

if TYPE_CHECKING:
    from collections.abc import Callable

    from msharefs.verbs import Create

_OVERCOMMIT_ALWAYS, _OVERCOMMIT_NEVER = "1", "2"
_LIMITS = {
    resource.RLIMIT_AS: "Max address space",
    resource.RLIMIT_MEMLOCK: "Max locked memory",
}
"""The names of /proc/PID/limits."""


def check_count(mapped: int) -> None:
    """ENOMEM: a region with `mapped` mappings gets no more (vm.max_map_count)."""
    limit = int(proc.sysctl("vm/max_map_count"))
    if mapped > limit:
        raise OSError(
            errno.ENOMEM, f"the region has {mapped} mappings: vm.max_map_count is {limit}"
        )


def check_locked(create: Create, caller: int) -> None:
    """EPERM: process `caller` may lock nothing. EAGAIN: not that much."""
    if not create.flags & verbs.MAP_LOCKED or proc.has_capability(caller, proc.CAP_IPC_LOCK):
        return
    limit = _rlimit(caller, resource.RLIMIT_MEMLOCK)
    if limit == 0:
        raise OSError(errno.EPERM, f"process {caller} may lock no memory (RLIMIT_MEMLOCK is 0)")
    if limit is not None and verbs.page_up(create.size) > limit:
        raise OSError(
            errno.EAGAIN, f"process {caller} may lock {limit} bytes (RLIMIT_MEMLOCK), not more"
        )


def check_lock(payer: int, locked: int) -> None:
    """EPERM: process `payer` may lock nothing. ENOMEM: not `locked` bytes in all."""
    if proc.has_capability(payer, proc.CAP_IPC_LOCK):
        return
    limit = _rlimit(payer, resource.RLIMIT_MEMLOCK)
    if limit == 0:
        raise OSError(errno.EPERM, f"process {payer} may lock no memory (RLIMIT_MEMLOCK is 0)")
    if limit is not None and locked > limit:
        raise OSError(
            errno.ENOMEM,
            f"{locked} bytes would be locked in the regions of process {payer}: its "
            f"RLIMIT_MEMLOCK is {limit}",
        )


def check_space(create: Create, caller: int, mapped: Callable[[], list[tuple[int, int]]]) -> None:
    """ENOMEM: with the new mapping more of the region would be mapped than RLIMIT_AS of `caller`.

    `mapped` are the ranges that are mapped now; those that the new one replaces do not count.
    """
    limit = _rlimit(caller, resource.RLIMIT_AS)
    if limit is None:
        return
    start, end = create.region_offset, create.end
    ranges = mapped()
    total = sum(high - low for low, high in ranges)
    replaced = sum(max(0, min(high, end) - max(low, start)) for low, high in ranges)
    if total - replaced + end - start > limit:
        raise OSError(
            errno.ENOMEM,
            f"{total - replaced + end - start} bytes of the region would be mapped: "
            f"RLIMIT_AS of process {caller} is {limit}",
        )


def promises_all() -> bool:
    """Whether Linux promises memory without a look at how much there is."""
    return proc.sysctl("vm/overcommit_memory") == _OVERCOMMIT_ALWAYS


def check_commit(create: Create) -> None:
    """ENOMEM: anonymous memory of that size is not promised (vm.overcommit_memory).

    MAP_NORESERVE asks for no promise, except where Linux gives no memory without one.
    """
    if promises_all():
        return
    policy = proc.sysctl("vm/overcommit_memory")
    size = verbs.page_up(create.size)
    if policy != _OVERCOMMIT_NEVER and (
        create.flags & verbs.MAP_NORESERVE or size <= os.sysconf("SC_PHYS_PAGES") * verbs.PAGE
    ):
        return
    memory = proc.meminfo()
    if policy == _OVERCOMMIT_NEVER:
        left = memory["CommitLimit"] - memory["Committed_AS"]
    else:
        left = memory["MemTotal"] + memory["SwapTotal"]
    if size > left:
        raise OSError(
            errno.ENOMEM,
            f"{size} bytes of anonymous memory: only {left} can be promised "
            "(vm.overcommit_memory); map less, or with MAP_NORESERVE",
        )


def _rlimit(pid: int, limit: int) -> int | None:
    """The soft limit of a process, one of `_LIMITS`; None: there is none."""
    if pid:
        with contextlib.suppress(OSError):  # it may ask for a capability that root lacks
            soft = resource.prlimit(pid, limit)[0]
            return None if soft == resource.RLIM_INFINITY else soft
    try:
        return proc.soft_limit(pid, _LIMITS[limit])
    except OSError:
        return None
