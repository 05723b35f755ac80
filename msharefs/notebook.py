"""A region as HTML, for notebooks: what Jupyter shows of a `Region`."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

from . import units

if TYPE_CHECKING:
    from .documents import Stat

ENTRIES = 512
CELLS = 512
"""Cells of the map at most; each stands for as many PTE tables as need be."""
_COLUMNS = 64


def region_html(path: str, found: Stat, pagetable: dict[str, Any] | None) -> str:
    """The figures of a region (its stat), and a map of its page tables."""
    rows = [
        ("size", units.size(found["size_bytes"]) if found["size_bytes"] else "unsized"),
        ("resident", units.size(found["rss_bytes"])),
        ("page tables", units.size(found["page_table_bytes"])),
        ("mappings", str(found["vmas"])),
        ("clients", str(found["clients"])),
        ("faults, links", f"{found['counters']['faults']}, {found['counters']['links']}"),
    ]
    cells = "".join(
        f"<tr><th style='text-align:left'>{name}</th><td>{html.escape(text)}</td></tr>"
        for name, text in rows
    )
    drawn = _map(pagetable) if pagetable is not None else ""
    return (
        f"<div><b>msharefs region</b> <code>{html.escape(path)}</code>"
        f"<table>{cells}</table>{drawn}</div>"
    )


def _map(pagetable: dict[str, Any]) -> str:
    """Squares, as dark as their PTE tables are full, in order of addresses."""
    tables = next(level["tables"] for level in pagetable["levels"] if level["level"] == "pte")
    if not tables:
        return ""
    each = -(-len(tables) // CELLS)
    squares = []
    for number, at in enumerate(range(0, len(tables), each)):
        run = tables[at : at + each]
        share = sum(table["present"] for table in run) / (ENTRIES * len(run))
        x, y = number % _COLUMNS * 9, number // _COLUMNS * 9
        squares.append(
            f"<rect x='{x}' y='{y}' width='8' height='8' fill='#1b6ca8' "
            f"fill-opacity='{0.1 + 0.9 * share:.2f}'>"
            f"<title>{run[0]['start']:#x}: {share:.0%} of {len(run)} tables</title></rect>"
        )
    height = -(-len(squares) // _COLUMNS) * 9
    return (
        f"<svg width='{_COLUMNS * 9}' height='{height}' role='img' "
        f"aria-label='page tables: how full'>{''.join(squares)}</svg>"
        f"<div><small>a square is {each} PTE table{'s' * (each > 1)}, as dark as it is full"
        "</small></div>"
    )
