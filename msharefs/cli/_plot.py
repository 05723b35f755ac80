"""Drawing is an extra: say so before anything is measured for nothing."""

from __future__ import annotations

import os
from typing import Any

import click


def module() -> Any:
    """The module that draws. If matplotlib is missing, a usage error that says what to install."""
    try:
        from msharefs.lab import plot
    except ImportError as error:
        raise click.UsageError(
            f"--plot needs matplotlib ({error}): pip install 'msharefs[plot]'"
        ) from None
    return plot


def check(ctx: click.Context, param: click.Parameter, path: str | None) -> str | None:
    """The callback of an option that names a picture."""
    if path is not None and os.path.splitext(path)[1] not in ("", ".svg", ".png"):
        raise click.BadParameter(f"{path}: a picture is .svg or .png", ctx, param)
    return path
