"""The C core as Python sees it: `ffi`, `lib` and errors as OSError.

The functions are documented in the headers of native/. They return 0 or more, or -errno.
"""

from __future__ import annotations

import os
import signal

from ._native import ffi, lib

__all__ = ["LEVELS", "check", "check_errno", "ffi", "lib"]

LEVELS = ("pte", "pmd", "pud", "pgd")
"""Names of the table levels, by their number in the core."""


def check(result: int, sentence: str, filename: str | None = None) -> int:
    """`result`, or if it is an error OSError with its errno, `sentence` and file."""
    if result < 0:
        raise OSError(-result, f"{sentence}: {os.strerror(-result)}", filename)
    return result


def check_errno(failed: bool, sentence: str, filename: str | None = None) -> None:
    """The same for a function that sets errno, as those of msharefs.h and the C library."""
    if failed:
        raise OSError(ffi.errno, f"{sentence}: {os.strerror(ffi.errno)}", filename)


def end_with_parent(parent: int) -> None:
    """A SIGTERM for this process when the thread that started it ends, however it ends.

    At once, if process `parent` has ended already.
    """
    _prctl(lib.PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def become_subreaper() -> None:
    """From now on descendants whose parents have ended are children of this process."""
    _prctl(lib.PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    check_errno(lib.prctl(option, ffi.cast("unsigned long", value)) < 0, f"prctl {option}")
