"""Drawing is an extra: say so before anything is measured in vain."""

from __future__ import annotations

from typing import Any

import click


def module() -> Any:
    """The module that draws. Usage error with what to install if matplotlib is missing."""
    try:
        from msharefs.lab import plot
    except ImportError as error:
        raise click.UsageError(
            f"--plot needs matplotlib ({error}): pip install 'msharefs[plot]'"
        ) from None
    return plot
