"""Processes and mounts as the kernel shows them, read without msharefs: a second opinion.

Sources: proc(5). It imports none of our code: the watchdog uses it alone.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

_MAPPING = re.compile(
    r"^(?P<start>[0-9a-f]+)-(?P<end>[0-9a-f]+) (?P<prot>....) [0-9a-f]+ [0-9a-f]+:[0-9a-f]+ "
    r"(?P<inode>\d+) *(?P<path>.*)$",
    re.MULTILINE,
)


def _text(path: Path | str) -> str:
    return Path(path).read_bytes().decode(errors="surrogateescape")


# Processes


def status(where: int | Path, field: str) -> str:
    """A field of the status of a process, or of a thread by its directory, as written there."""
    directory = where if isinstance(where, Path) else Path(f"/proc/{where}")
    found = re.search(rf"^{field}:\t(.*)$", _text(directory / "status"), re.MULTILINE)
    assert found is not None, f"{directory}/status has no {field}"
    return found[1].strip()


def status_bytes(pid: int, field: str) -> int:
    """A size in the status of a process."""
    number, unit = status(pid, field).split()
    assert unit == "kB"
    return int(number) << 10


@dataclass(frozen=True)
class Mapping:
    """A line of maps, and the lines that follow it in smaps."""

    start: int
    end: int
    prot: str
    inode: int
    path: str
    more: str = ""

    def figure(self, field: str) -> int:
        """A figure of smaps, in bytes."""
        found = re.search(rf"^{field}: +(\d+) kB$", self.more, re.MULTILINE)
        assert found is not None, f"smaps has no {field}"
        return int(found[1]) << 10

    @property
    def flags(self) -> set[str]:
        """VmFlags of smaps; none for entries that are no mapping of the process."""
        found = re.search("^VmFlags:(.*)$", self.more, re.MULTILINE)
        return set(found[1].split()) if found else set()


def maps(pid: int, name: str = "maps") -> list[Mapping]:
    """The mappings of a process, in order."""
    text = _text(f"/proc/{pid}/{name}")
    heads = list(_MAPPING.finditer(text))
    ends = [head.start() for head in heads[1:]] + [len(text)]
    return [
        Mapping(
            int(head["start"], 16), int(head["end"], 16), head["prot"], int(head["inode"]),
            head["path"], text[head.end() : end],
        )
        for head, end in zip(heads, ends, strict=True)
    ]  # fmt: skip


def smaps(pid: int) -> list[Mapping]:
    """The mappings of a process with their figures and flags."""
    return maps(pid, "smaps")


def open_files(pid: int) -> list[str]:
    """The files of a process's descriptors, found without asking a file system."""
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(os.readlink(link))
        except FileNotFoundError:
            continue  # closed meanwhile: the descriptor by which we look, if it is our process
    return found


def tasks(pid: int) -> list[Path]:
    """The threads of a process, as their directories."""
    return sorted(Path(f"/proc/{pid}/task").iterdir())


def comm(task: Path) -> str:
    """The name of a thread."""
    return _text(task / "comm").removesuffix("\n")


def state(task: Path) -> str:
    """The state of a thread, a letter of proc_pid_stat(5)."""
    return _text(task / "stat").rpartition(") ")[2][0]


def wchan(task: Path) -> str:
    """The kernel's function in which a thread sleeps."""
    return _text(task / "wchan")


def stacks(pid: int) -> str:
    """Where the threads of a process are in the kernel, and its shadows. For root."""
    lines = []
    with contextlib.suppress(OSError):
        for task in [*tasks(pid), *shadows(pid)]:
            where = " ".join(_text(task / "stack").split("\n")[:6])
            lines.append(f"thread {task.name} {comm(task)} {state(task)}: {where}")
    return "\n".join(lines)


def shadows(pid: int) -> list[Path]:
    """The processes that take the faults of process `pid`, one for each attachment.

    One that has ended is none, whoever still has to wait for it.
    """
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if comm(path) == f"msharefs: {pid}"[:15] and state(path) not in "ZX":
                found.append(path)
    return found


def service_thread(pid: int) -> Path:
    """Who takes the faults of process `pid`: its thread, once that has its name, or its shadow."""
    (found,) = [task for task in tasks(pid) if comm(task) == "mshare-service"] or shadows(pid)
    return found


# The machine


def meminfo(field: str) -> int:
    """A figure of /proc/meminfo: bytes, or a number of huge pages."""
    found = re.search(rf"^{field}: +(\d+)( kB)?$", _text("/proc/meminfo"), re.MULTILINE)
    assert found is not None, f"/proc/meminfo has no {field}"
    return int(found[1]) << 10 if found[2] else int(found[1])


@dataclass(frozen=True)
class MountPoint:
    """One line of /proc/self/mountinfo."""

    path: str
    fstype: str
    minor: int  # of st_dev; names a FUSE mount's directory under fusectl


def mounts() -> list[MountPoint]:
    """All mounts this process sees."""
    found = []
    for line in _text("/proc/self/mountinfo").removesuffix("\n").split("\n"):
        fields, _, rest = line.partition(" - ")
        _, _, device, _, path = fields.split(" ")[:5]
        plain = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), path)
        found.append(MountPoint(plain, rest.split(" ")[0], int(device.partition(":")[2])))
    return found
