"""The rows that can be asked of any mount, in the order of the report."""

from __future__ import annotations

from importlib import import_module

MODULES = (
    "names", "info", "descriptor", "sizing", "create", "limits", "attach", "faults", "vma", "gup",
    "owner", "fork", "tables", "calls",
)  # fmt: skip


def load(*names: str) -> None:
    """Adds the rows of these modules; of all, if none is named."""
    for name in names or MODULES:
        import_module(f"{__package__}.rows_{name}")
