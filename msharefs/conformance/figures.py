"""The figures of a row's region, from `msharefs stat`, `clients` and so on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import msharefs

if TYPE_CHECKING:
    from .stage import Stage


def look(stage: Stage, what: str, name: str = "r") -> Any:
    """One of the documents of a region."""
    with msharefs.open(stage.path(name), os.O_RDONLY) as region:
        return region.describe(what)


def clients(stage: Stage, name: str = "r") -> dict[int, dict[str, Any]]:
    """The attachments by process."""
    return {entry["pid"]: entry for entry in look(stage, "clients", name)}
