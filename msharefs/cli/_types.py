"""Parameter types of the command line."""

from __future__ import annotations

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


class Input(click.ParamType):
    """A file to read, open. OSError, and not wrong usage, if it cannot be opened."""

    name = "file"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> TextIO:
        """Open until the command ends."""
        del param
        return _opened(value, "r", ctx)


class Output(click.ParamType):
    """A file to write, opened before anything is measured. OSError as for Input."""

    name = "file"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> TextIO:
        """Open until the command ends."""
        if value == "-":
            self.fail("- is no file: --json prints to standard output", param, ctx)
        return _opened(value, "w", ctx)


def _opened(path: str, mode: Literal["r", "w"], ctx: click.Context | None) -> TextIO:
    file: TextIO = open(path, mode, encoding="utf-8")  # noqa: SIM115  # the context closes it
    if ctx is not None:
        ctx.call_on_close(file.close)
    return file
