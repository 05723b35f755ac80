"""All rows, in the order of the report."""

from __future__ import annotations

from importlib import import_module

MODULES = [
    import_module(f"{__package__}.rows_{name}")
    for name in (
        "uapi", "mount", "names", "info", "descriptor", "sizing", "create", "limits", "objects",
        "huge", "attach", "faults", "vma", "gup", "proc", "owner", "memcg", "fork", "tables",
    )
]  # fmt: skip
