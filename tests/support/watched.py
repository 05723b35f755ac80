"""The parts of a process's address space that userfaultfd watches, according to the kernel."""

from __future__ import annotations

from . import proc


def watched(pid: int, start: int, size: int) -> list[tuple[int, int]]:
    """The watched parts of [start, start + size): offsets from `start`, in order."""
    found: list[tuple[int, int]] = []
    for mapping in proc.smaps(pid):
        low, high = max(mapping.start, start), min(mapping.end, start + size)
        if low >= high or "um" not in mapping.flags:
            continue
        if found and found[-1][1] == low - start:
            found[-1] = found[-1][0], high - start
        else:
            found.append((low - start, high - start))
    return found
