"""Sizes as people write and read them: in powers of 1024, as in truncate(1) and mount(8)."""

from __future__ import annotations

import re

_WRITTEN = re.compile(r"([0-9]+)(?:([KMGTP])(?:IB)?)?", re.IGNORECASE)
_PREFIXES = "KMGTPE"


def parse_size(text: str) -> int:
    """The bytes in ``4096``, ``256M``, ``512G`` or ``1GiB``.

    Raises ValueError with a sentence. ``MB`` is not valid: half of all people mean the other unit.
    """
    found = _WRITTEN.fullmatch(text.strip())
    if found is None:
        raise ValueError(
            f"{text!r} is not a size: write a number of bytes, or one with K, M, G, T or P, as 256M"
        )
    number, prefix = found.groups()
    power = _PREFIXES.index(prefix.upper()) + 1 if prefix else 0
    return int(number) << 10 * power


def size(count: float) -> str:
    """A number of bytes for people, four digits at most: 512 GiB, 528 KiB, 1.5 MiB."""
    value = float(count)
    for unit in ("B", *(f"{prefix}iB" for prefix in _PREFIXES[:-1])):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} {_PREFIXES[-1]}iB"
