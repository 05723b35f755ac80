"""The C core as Python sees it: `ffi`, `lib` and errors as OSError.

The functions are documented in the headers of native/. They return 0 or more, or -errno.
"""

from __future__ import annotations

import os

from ._native import ffi, lib

__all__ = ["LEVELS", "check", "check_errno", "ffi", "lib"]

LEVELS = ("pte", "pmd", "pud", "pgd")
"""Names of the table levels, by their number in the core."""


def check(result: int, sentence: str) -> int:
    """`result`, or if it is an error OSError with its errno and `sentence`."""
    if result < 0:
        raise OSError(-result, f"{sentence}: {os.strerror(-result)}")
    return result


def check_errno(failed: bool, sentence: str) -> None:  # for the public functions
    """OSError with errno and `sentence` if a function of msharefs.h failed."""
    if failed:
        raise OSError(ffi.errno, f"{sentence}: {os.strerror(ffi.errno)}")
