"""All rows, in the order of the report: also those for which mounts, pools or groups are made."""

from __future__ import annotations

from importlib import import_module

from msharefs.conformance import rows

OURS = ("uapi", "mount", "objects", "huge", "proc", "memcg")

for name in (
    "uapi", "mount", "names", "info", "descriptor", "sizing", "create", "limits", "objects",
    "huge", "attach", "faults", "vma", "gup", "proc", "owner", "memcg", "fork", "tables",
    "calls",
):  # fmt: skip
    if name in OURS:
        import_module(f"{__package__}.rows_{name}")
    else:
        rows.load(name)
