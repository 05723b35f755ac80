"""Native attachments: which processes have mapped a region without our library.

Their mmap(2) asked us nothing, so we look for them in /proc/PID/maps, where a mapping by FUSE
passthrough has the device and inode of the region file and not of its backing file. That tells what
is mapped and nothing else: the kernel does not count the faults of one mapping.
"""

from __future__ import annotations

import errno
import logging
import os
from typing import TYPE_CHECKING, Any, TypeVar

import psutil
import trio

from msharefs import looking, proc, processes

from . import describe

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

log = logging.getLogger(__name__)

T = TypeVar("T")

# A process can keep us waiting for its address space: so many at a time, and so long.
LOOK_SECONDS = 5.0
SEEN_SECONDS = 2.0  # the first such process, see `looking`
_LOOKERS = 4
_UNSEEN_MAX = 16  # in one list


class NativeMappings:
    """Finds the mappings of the files of a mount by its device number.

    A mapping may outlive the server that its file came from, and still shares memory with the
    region. So the device numbers of earlier mounts are kept in the state directory, as long as
    there are such mappings when a server starts.
    """

    def __init__(self, state: Path) -> None:
        self._record = state / "devices"
        self._devices: set[int] = set()
        self._lookers = trio.CapacityLimiter(_LOOKERS)

    def mounted(self, device: int) -> None:
        """Files of the mount have this st_dev from now on."""
        try:
            before = set(map(_number, self._record.read_text().split()))
        except FileNotFoundError:
            before = set()
        self._keep(before | {device})

    async def forget_unused(self, device: int) -> None:
        """Forgets the devices of earlier mounts that no process maps; not `device`, which is ours.

        The kernel reuses their numbers. To be called when requests are answered: a process may wait
        for us with its address space locked.
        """
        if len(self._devices) > 1:
            used = await self.look(lambda: _in_use(self._devices - {device}))
            if used is not None:
                self._keep(used | {device})

    async def of(self, ino: int) -> list[dict[str, Any]]:
        """The mappings of file `ino`, like the attachments of `describe.clients`.

        A process that does not let us see its mappings now is there, of kind "unseen". ETIMEDOUT:
        there are many of those.
        """
        return await self.look(lambda: self._of(ino))

    async def processes_of(self, device: int, inode: int) -> set[int]:
        """The processes that map a file, of whichever device, or may. ETIMEDOUT: as `of`."""

        def find() -> set[int]:
            found = _all_maps({device}, inode)
            _check_unseen(found.unknown)
            pids = {pid for pid, maps in found.seen.items() if maps}
            return {pid for pid in pids if not processes.is_shadow(pid)} | found.unknown

        return await self.look(find)

    def _keep(self, devices: set[int]) -> None:
        self._devices = devices
        self._record.write_text("\n".join(sorted(map(_text, devices))))

    async def look(self, work: Callable[[], T]) -> T:
        """The result of `work`, which reads the address spaces of all processes, in a thread."""
        with trio.move_on_after(LOOK_SECONDS):
            return await trio.to_thread.run_sync(
                work, abandon_on_cancel=True, limiter=self._lookers
            )
        raise OSError(
            errno.ETIMEDOUT,
            f"the mappings of all processes could not be read in {LOOK_SECONDS:g} s: one of them "
            "keeps its address space locked (is it in a very large fork, mlock or munmap?)",
        )

    def _of(self, ino: int) -> list[dict[str, Any]]:
        if not self._devices:
            return []
        found = looking.look(psutil.pids(), lambda pid: self._of_process(pid, ino), SEEN_SECONDS)
        _check_unseen(found.unknown)
        unseen = [describe.unseen(pid) for pid in sorted(found.unknown)]
        return [row for rows in found.seen.values() for row in rows] + unseen

    def _of_process(self, pid: int, ino: int) -> list[dict[str, Any]]:
        try:
            mappings = list(proc.maps(pid, self._devices, ino))
            if not mappings or processes.is_shadow(pid):
                return []
            started = processes.start_time(pid)
        except ProcessLookupError:
            return []
        except PermissionError:
            log.debug("the mappings of process %s are not ours to see", pid)
            return []
        return [_row(pid, started, one) for one in mappings]


def _row(pid: int, started: int, mapping: proc.Mapping) -> dict[str, Any]:
    return {
        **describe.unseen(pid),
        "kind": "native",
        "start_time": started,
        "base": mapping.start,
        "size": mapping.end - mapping.start,
        "offset": mapping.offset,
        "prot": mapping.prot,
    }


def _check_unseen(unseen: Collection[int]) -> None:
    if len(unseen) > _UNSEEN_MAX:
        raise OSError(
            errno.ETIMEDOUT,
            f"who has it mapped could not be seen: {processes.listed(unseen)} are in the "
            "middle of execve(2), or keep their address spaces locked; let them go on",
        )


def _in_use(devices: set[int]) -> set[int] | None:
    """The numbers of devices with a file that a process maps. The kernel reuses the others.

    None: a process does not let us see whether it has one mapped.
    """
    found = _all_maps(devices)
    if found.unknown:
        log.debug("not looked at: %s", processes.listed(found.unknown))
        return None
    return {mapping.device for maps in found.seen.values() for mapping in maps}


def _text(device: int) -> str:
    return f"{os.major(device):02x}:{os.minor(device):02x}"


def _number(text: str) -> int:
    major, minor = (int(part, 16) for part in text.split(":"))
    return os.makedev(major, minor)


def _all_maps(
    devices: Collection[int], inode: int | None = None
) -> looking.Found[int, list[proc.Mapping]]:
    """What all processes map of files on these devices."""

    def at(pid: int) -> list[proc.Mapping]:
        try:
            return list(proc.maps(pid, devices, inode))
        except ProcessLookupError:
            return []
        except PermissionError:
            log.debug("the mappings of process %s are not ours to see", pid)
            return []

    return looking.look(psutil.pids(), at, SEEN_SECONDS)
