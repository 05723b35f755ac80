"""Parameter types of the command line."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, Literal, TextIO

import click

from msharefs import units


class Size(click.ParamType):
    """A number of bytes, written as 4096, 256M or 1GiB; a multiple of `of`."""

    name = "size"

    def __init__(self, of: int = 1) -> None:
        self._of = of

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The bytes, at least one unit."""
        try:
            count = value if isinstance(value, int) else units.parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if count <= 0 or count % self._of:
            self.fail(f"{value} is not a multiple of {self._of} bytes above zero", param, ctx)
        return count


class Classes(click.ParamType):
    """Classes of memory, each with a least size, as ``anon,sysv:64M``; ``all`` is all of them."""

    name = "classes"

    def __init__(self, *names: str, least: int) -> None:
        self._names = names
        self._least = least

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, int]:
        """The sizes in bytes; what is named itself counts, whatever ``all`` says."""
        if isinstance(value, dict):
            return value
        everything: dict[str, int] = {}
        named: dict[str, int] = {}
        for item in value.split(","):
            name, colon, text = item.strip().partition(":")
            size = Size().convert(text, param, ctx) if colon else self._least
            if name == "all":
                everything = dict.fromkeys(self._names, size)
            elif name in self._names:
                named[name] = size
            else:
                choices = ", ".join(self._names)
                self.fail(f"{name!r} is no class of memory: {choices} or all", param, ctx)
        return everything | named


class Flag(click.ParamType):
    """A flag of mmap(2) that Linux has no use for, or MAP_HUGETLB, as Android has it."""

    name = "flag"
    _FREE = 0x600, 0x200000, 0x400000, 0x800000, 0x1000000, 0x2000000
    _HUGETLB = 0x40000

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """One bit."""
        try:
            number = int(str(value), 0)
        except ValueError:
            number = 0
        if number != self._HUGETLB and (number.bit_count() != 1 or not number & sum(self._FREE)):
            self.fail(
                f"{value} is no flag that is free: one bit of those that mmap(2) does not use, as "
                "0x200000, or 0x40000 as in Android",
                param,
                ctx,
            )
        return number


class Input(click.ParamType):
    """A file to read, open. OSError, and not wrong usage, if it cannot be opened."""

    name = "file"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> TextIO:
        """Open until the command ends."""
        del param
        return _opened(value, "r", ctx, "cannot be read ({}): give a file that is there and yours")


class Output(click.ParamType):
    """A file to write, opened before anything is measured. OSError as for Input."""

    name = "file"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> TextIO:
        """Open until the command ends."""
        if value == "-":
            self.fail("- is no file: --json prints to standard output", param, ctx)
        return _opened(
            value, "w", ctx, "cannot be written ({}): its directory must be there and yours"
        )


def _opened(path: str, mode: Literal["r", "w"], ctx: click.Context | None, sentence: str) -> TextIO:
    try:
        file: TextIO = open(path, mode, encoding="utf-8")  # noqa: SIM115  # the context closes it
    except OSError as error:
        raise OSError(error.errno, sentence.format(os.strerror(error.errno or 0)), path) from None
    if ctx is not None:
        ctx.call_on_close(file.close)
    return file


def make_directory(path: str) -> None:
    """Make a directory for files that come later, now. OSError if they could not be written."""
    sentence = "cannot be made and written ({}): name a directory of yours"
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(error.errno, sentence.format(os.strerror(error.errno or 0)), path) from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, sentence.format(os.strerror(errno.EACCES)), path)
