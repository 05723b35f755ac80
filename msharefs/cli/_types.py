"""Parameter types of the command line."""

from __future__ import annotations

from typing import Any

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
