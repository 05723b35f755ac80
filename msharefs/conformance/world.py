"""Who is asked, and that a row cannot be."""

from __future__ import annotations

from enum import Enum


class SkippedError(Exception):
    """A row cannot be asked here; the text says of what."""


class World(Enum):
    """Who is asked."""

    PLAIN = "plain"
    """Linux without us: files on tmpfs, shared memory."""
    DEFAULT = "default"
    """A mount without options."""
    V3 = "quirks=v3"
