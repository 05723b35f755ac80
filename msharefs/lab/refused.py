"""Why memory was not adopted: our library keeps it in a program (native/preload/refused.c)."""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from msharefs import proc

_NAME = "/memfd:msharefs-refused"
_MAGIC = b"REFUSED\0"
_HEAD = struct.Struct("=8sI116x")
_RECORD = struct.Struct("=QQ112s")
_RECORDS = 63


class Refusal(NamedTuple):
    """Memory of a program that stayed what it was."""

    start: int
    end: int
    why: str


def refusals(pid: int) -> list[Refusal]:
    """Those of a process, the latest first. ProcessLookupError, PermissionError."""
    place = proc.mapped(pid, _NAME)
    if place is None:
        return []
    try:
        with proc.open_memory(pid) as memory:
            data = os.pread(memory.fileno(), _HEAD.size + _RECORDS * _RECORD.size, place)
    except (PermissionError, ProcessLookupError):
        raise
    except OSError:  # it has just ended
        return []
    if len(data) < _HEAD.size + _RECORDS * _RECORD.size or data[: len(_MAGIC)] != _MAGIC:
        return []
    found = [
        Refusal(start, end, why.partition(b"\0")[0].decode(errors="replace"))
        for start, end, why in _RECORD.iter_unpack(data[_HEAD.size :])
        if end
    ]
    return found[::-1]


def why(refused: list[Refusal], start: int) -> str:
    """The reason for memory that is mapped from `start` on; empty: none is kept."""
    return next((one.why for one in refused if one.start <= start < one.end), "")
