"""Native attachments: which processes have mapped a region without our library.

Their mmap(2) asked us nothing, so we look for them in /proc/PID/maps, where a mapping by FUSE
passthrough has the device and inode of the region file and not of its backing file. That tells what
is mapped and nothing else: the kernel does not count the faults of one mapping.
"""

from __future__ import annotations

import logging
import os
import re
from typing import TYPE_CHECKING, Any

from msharefs import processes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

log = logging.getLogger(__name__)

# What `describe.clients` counts of an attachment.
_UNKNOWN = (
    "links", "faults", "materialised_pages", "segv",
    "budget_bytes", "budget_asked_bytes", "budget_grown", "evicted_spans", "refaulted_spans",
)  # fmt: skip
# proc_pid_maps(5): start-end prot offset major:minor inode
_LINE = rb"^([0-9a-f]+)-([0-9a-f]+) (....) ([0-9a-f]+) (?:%s) %d "


class NativeMappings:
    """Finds the mappings of the files of a mount by its device number.

    A mapping may outlive the server that its file came from, and still shares memory with the
    region. So the device numbers of earlier mounts are kept in the state directory, as long as
    there are such mappings when a server starts.
    """

    def __init__(self, state: Path) -> None:
        self._record = state / "devices"
        self._devices: list[str] = []

    def mounted(self, device: int) -> None:
        """Files of the mount have this st_dev from now on."""
        try:
            before = self._record.read_text().split()
        except FileNotFoundError:
            before = []
        self._devices = [*_in_use(before), f"{os.major(device):02x}:{os.minor(device):02x}"]
        self._record.write_text("\n".join(self._devices))

    def of(self, ino: int) -> list[dict[str, Any]]:
        """The mappings of file `ino`, like the attachments of `describe.clients`.

        Waits for the address spaces it reads, and one of them may wait for us: only for a thread
        that answers no requests.
        """
        if not self._devices:
            return []
        pattern = re.compile(_LINE % (_any(self._devices), ino), re.MULTILINE)
        return [
            {
                "pid": pid,
                "start_time": processes.start_time(pid),
                "comm": processes.command(pid),
                "kind": "native",
                "base": int(start, 16),
                "size": int(end, 16) - int(start, 16),
                "offset": int(offset, 16),
                "prot": prot.decode(),
                **dict.fromkeys(_UNKNOWN),
            }
            for pid, maps in _all_maps()
            for start, end, prot, offset in pattern.findall(maps)
        ]


def _in_use(devices: Iterable[str]) -> list[str]:
    """The numbers of devices with a file that a process maps. The kernel reuses the others."""
    wanted = set(devices)
    if not wanted:
        return []
    pattern = re.compile(rb" (%s) [0-9]+ " % _any(wanted))
    return sorted({found.decode() for _, maps in _all_maps() for found in pattern.findall(maps)})


def _any(devices: Iterable[str]) -> bytes:
    return "|".join(devices).encode()


def _all_maps() -> Iterator[tuple[int, bytes]]:
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/maps", "rb") as file:
                    yield int(name), file.read()
            except (FileNotFoundError, ProcessLookupError):
                continue
            except PermissionError:
                log.debug("the mappings of process %s are not ours to see", name)
