"""Who imports whom in msharefs/: no module leads back to itself."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path
from typing import TYPE_CHECKING

import msharefs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

TOP = Path(msharefs.__file__).parent


def modules() -> dict[str, Path]:
    found = {}
    for path in TOP.rglob("*.py"):
        names = path.relative_to(TOP.parent).with_suffix("").parts
        found[".".join(names[:-1] if names[-1] == "__init__" else names)] = path
    return found


def at_run_time(nodes: Iterable[ast.AST]) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports, also those in functions, but those that only type checkers see."""
    for node in nodes:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from at_run_time(node.orelse)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        else:
            yield from at_run_time(ast.iter_child_nodes(node))


def imported(name: str, path: Path, known: Iterable[str]) -> set[str]:
    """The modules of ours that module `name` asks for."""
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    found = set()
    for node in at_run_time(ast.parse(path.read_text()).body):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
            continue
        base = package.rsplit(".", node.level - 1)[0] if node.level else ""
        module = ".".join(filter(None, (base, node.module)))
        for alias in node.names:
            found.add(f"{module}.{alias.name}" if f"{module}.{alias.name}" in known else module)
    # `from . import _native`, of C, names the package it is in, which is not what it needs.
    return {one for one in found if one in known and one not in (name, package)}


def test_no_module_leads_back_to_itself() -> None:
    known = modules()
    graph = {name: imported(name, path, known) for name, path in known.items()}
    assert "msharefs.server.revocation" in graph["msharefs.server.hostmm"]
    list(graphlib.TopologicalSorter(graph).static_order())  # CycleError names the circle
