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
    """A mount that is v3 to the letter."""
    INNER = "window=inner"
    """A mount on which ordinary calls on a window hold for the region."""
    CALLS = "2026"
    """A mount without options, asked with the calls of 2026 of our library."""
    LIBRARY = "library"
    """A mount without options, attached by our library: other calls are Linux's alone."""
