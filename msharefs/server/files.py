"""The files of a region in the state directory: host mm, pages, records of its other objects."""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def object_paths(directory: Path, ident: int) -> tuple[Path, Path]:
    """Where region `ident` keeps its host mm and its pages."""
    return directory / f"{ident}.mm", directory / f"{ident}.mem"


def open_memory(directory: Path, ident: int) -> int:
    """Opens a region's pages, which exist from its first open(2) on: native mappings map them."""
    return os.open(object_paths(directory, ident)[1], os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def reset_objects(directory: Path, ident: int) -> None:
    """The region has no size yet. Mappings of its pages stay when it gets one."""
    mm, mem = object_paths(directory, ident)
    mm.unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        os.truncate(mem, 0)
    shutil.rmtree(records_path(directory, ident), ignore_errors=True)


def records_path(directory: Path, ident: int) -> Path:
    """Where region `ident` keeps the records of its other objects."""
    return directory / f"{ident}.objects"


def remove_objects(directory: Path, ident: int) -> None:
    """Removes both files; attached processes keep their mappings."""
    for path in object_paths(directory, ident):
        path.unlink(missing_ok=True)
    shutil.rmtree(records_path(directory, ident), ignore_errors=True)
