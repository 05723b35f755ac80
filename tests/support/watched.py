"""What of a process's address space userfaultfd watches, as its kernel says."""

from __future__ import annotations

import re
from pathlib import Path

_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) ", re.MULTILINE)


def watched(pid: int, start: int, size: int) -> list[tuple[int, int]]:
    """The parts of [start, start + size) that are: offsets from `start`, in order."""
    text = Path(f"/proc/{pid}/smaps").read_text()
    mappings = list(_MAPPING.finditer(text))
    ends = [mapping.start() for mapping in mappings[1:]] + [len(text)]
    found: list[tuple[int, int]] = []
    for mapping, until in zip(mappings, ends, strict=True):
        low, high = max(int(mapping[1], 16), start), min(int(mapping[2], 16), start + size)
        flags = re.search("^VmFlags:(.*)$", text[mapping.end() : until], re.MULTILINE)
        if low >= high or flags is None or "um" not in flags[1].split():
            continue
        if found and found[-1][1] == low - start:
            found[-1] = found[-1][0], high - start
        else:
            found.append((low - start, high - start))
    return found
