"""Whether the preload library can be put before a program, told from the program's file.

The dynamic linker decides, after exec: of musl it ends with status 127 where it cannot load our
library, which is for glibc. A program that has no dynamic linker never loads any.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
from dataclasses import dataclass

_ELF = b"\x7fELF"
_CLASS_64 = 2
_HEADER = struct.Struct("<16x HHI QQQ I HHH")  # Elf64_Ehdr as far as e_phnum
_SEGMENT = struct.Struct("<II QQQQ")  # Elf64_Phdr as far as p_filesz
_PT_INTERP = 3
_MUSL = b"/ld-musl-"
# Of scripts that name an interpreter that is a script.
_DEPTH = 4
_LINE = 256


@dataclass(frozen=True)
class Unsuited:
    """Why the library has no effect there."""

    sentence: str
    harms: bool
    """With it the program would not even start."""


def look(program: str) -> Unsuited | None:
    """Why the library cannot be put before `program`, found as exec finds it; None: it can.

    What cannot be read or is no ELF file is left to exec.
    """
    with contextlib.suppress(OSError, struct.error):
        return _look(shutil.which(program) or program, _DEPTH)
    return None


def _look(path: str, depth: int) -> Unsuited | None:
    with open(path, "rb") as file:
        start = file.read(_LINE)
        if start.startswith(b"#!") and depth:
            words = start[2:].split(b"\n", 1)[0].split()
            env = len(words) > 1 and words[0].endswith(b"/env") and not words[1].startswith(b"-")
            name = os.fsdecode(words[1 if env else 0])
            return _look(shutil.which(name) or name, depth - 1)
        if not start.startswith(_ELF):
            return None
        if start[4] != _CLASS_64:
            return Unsuited("is a program of 32 bits, and regions are for 64", harms=False)
        _, _, _, _, at, _, _, _, size, count = _HEADER.unpack_from(start)
        for number in range(count):
            file.seek(at + number * size)
            kind, _, offset, _, _, length = _SEGMENT.unpack(file.read(_SEGMENT.size))
            if kind == _PT_INTERP:
                file.seek(offset)
                return _linker(file.read(length))
    return Unsuited("is linked statically", harms=False)


def _linker(name: bytes) -> Unsuited | None:
    if _MUSL in name:
        return Unsuited("is linked with musl, and our library with glibc", harms=True)
    return None
