"""Where the compiled parts of msharefs lie: library, header, pkg-config file and helper programs.

Everything a C program needs is under one prefix, ``_c`` beside the compiled extensions. That is not
always beside this file: an editable install keeps Python in the work tree and the compiled files in
the environment.
"""

from __future__ import annotations

import errno
from importlib.util import find_spec
from pathlib import Path


def prefix() -> Path:
    """Directory that holds ``lib``, ``include`` and ``libexec``.

    Raises `FileNotFoundError` if the compiled part is not installed.
    """
    spec = find_spec("msharefs._native")
    if spec is None or spec.origin is None:
        raise FileNotFoundError(
            errno.ENOENT,
            "the compiled part of msharefs is not installed: run `make setup` in the source tree, "
            "or install the wheel",
        )
    return Path(spec.origin).resolve().parent / "_c"


def libdir() -> Path:
    """Directory of ``libmsharefs.so.1``; ``pkgconfig/msharefs.pc`` is below it."""
    return prefix() / "lib"


def preload() -> Path:
    """The library that `msharefs run` puts before a program."""
    return libdir() / "libmsharefs-preload.so.1"


def agent() -> Path:
    """The program ``mshare-agent``: a process whose system calls `msharefs conformance` decides."""
    return prefix() / "libexec" / "mshare-agent"


def worker() -> Path:
    """The program ``mshare-worker``: one process of the demonstration."""
    return prefix() / "libexec" / "mshare-worker"


def walk() -> Path:
    """The program ``mshare-walk``: it lets a processor walk a region's page tables."""
    return prefix() / "libexec" / "mshare-walk"


def charger() -> Path:
    """The program ``mshare-charger``: it makes pages in a memory cgroup that is to pay for them."""
    return prefix() / "libexec" / "mshare-charger"
