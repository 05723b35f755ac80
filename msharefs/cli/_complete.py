"""What a shell proposes: options of a mount, regions and mount points."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from click.shell_completion import CompletionItem

from msharefs import mountpoint, proc

if TYPE_CHECKING:
    import click


# Values that are not to be written as they are.
_ANY = ("DIR", "SIZE", "COUNT", "PAGES")


def options(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Of ``-o``: the name of the last option of the list, or its value."""
    del ctx, param
    from msharefs.server.options import FLAGS, KEYS

    before, comma, last = incomplete.rpartition(",")
    key, equals, _ = last.partition("=")
    if equals:
        values = KEYS.get(key, "").split("/")
        found = [f"{key}={value}" for value in values if value not in _ANY]
    else:
        found = [*(f"{name}=" for name in KEYS), *FLAGS, "allow_other", "defaults"]
    return [CompletionItem(before + comma + each) for each in found if each.startswith(last)]


def regions(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """A region or a directory: the mounts, where nothing is written yet; otherwise files."""
    del ctx, param
    mounts = [
        os.fspath(each.directory) for each in proc.mounts() if each.fstype == mountpoint.FSTYPE
    ]
    found = [CompletionItem(each) for each in mounts if each.startswith(incomplete)]
    return (
        found if found and incomplete not in mounts else [CompletionItem(incomplete, type="file")]
    )
