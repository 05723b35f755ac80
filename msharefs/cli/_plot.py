"""Drawing is an extra: say so before anything is measured for nothing."""

from __future__ import annotations

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
