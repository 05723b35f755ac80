"""``msharefs check MOUNT|REGION|STATE``."""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from pathlib import Path
from typing import Any

import click

from msharefs import mountpoint

from . import _complete, _json, _patience, _region, _show, sentence
from .ls import regions

CLEAN, REPAIRED, BROKEN = range(3)

# Of a region in use, what is wrong in one look may be right in the next.
_LOOKS = 4
_AGAIN_SECONDS = 0.1

Findings = list[dict[str, Any]]


def check_region(path: str, *, repair: bool) -> tuple[Findings, Findings]:
    """What a region's server finds wrong, and what is left of that."""
    found = _looked(path, "check")
    left = found
    if found and repair:
        try:
            _asked(path, "repair")
            left = _looked(path, "check")
        except OSError as error:
            left = [*found, _failure(error)]
    return found, left


def _looked(path: str, what: str) -> Findings:
    """The findings that each of several looks has."""
    found = _asked(path, what)
    for _ in range(_LOOKS):
        if not found:
            break
        time.sleep(_AGAIN_SECONDS)
        again = {each["what"]: each for each in _asked(path, what)}
        found = [again[each["what"]] for each in found if each["what"] in again]
    return found


def _asked(path: str, what: str) -> Findings:
    import msharefs

    flags = os.O_RDWR if what == "repair" else os.O_RDONLY
    try:
        with msharefs.open(path, flags) as region:
            found: Findings = region.describe(what)
            return found
    except OSError as error:
        if error.errno == errno.EUCLEAN and what == "check":
            return [_failure(error)]
        raise


def _failure(error: OSError) -> dict[str, Any]:
    return {"what": "error", "sentence": sentence(error), "mended": True}


def check_state(path: Path, *, repair: bool) -> dict[str, tuple[Findings, Findings]]:
    """The same of a state directory without a server."""
    from msharefs.server import offline

    result = {}
    with offline.taken(path) as quantum:
        for ident, (name, size) in offline.names(path).items():
            found = left = offline.check(path, ident, size, quantum)
            if found and repair:
                offline.repair(path, ident, size, quantum)
                left = offline.check(path, ident, size, quantum)
            result[name or f"region {ident}, without a name"] = found, left
    return result


def check_all(path: str, *, repair: bool) -> dict[str, tuple[Findings, Findings]]:
    """What was found in each region, and what is left of it."""
    if _is_state(path):
        return check_state(Path(path), repair=repair)
    if not stat.S_ISDIR(_region.look(path).st_mode):
        _region.check_region(path)
        return {path: check_region(path, repair=repair)}
    return {
        name: check_region(name, repair=repair)
        for name, status in regions(path, recursive=True)
        if status.st_size
    }


def _is_state(path: str) -> bool:
    """Whether a state directory was named. On a mount only its server knows what is what."""
    from msharefs.server import offline

    try:
        return mountpoint.fstype(os.stat(path).st_dev) == "tmpfs" and offline.is_state(Path(path))
    except PermissionError:
        raise OSError(errno.EACCES, "is not yours to look at", path) from None
    except OSError:
        return False


@click.command()
@click.argument("path", metavar="MOUNT|REGION|STATE", shell_complete=_complete.regions)
@click.option("--repair", is_flag=True, help="Mend what can be mended.")
@_show.json_option
def command(path: str, repair: bool, as_json: bool) -> None:
    """Check a region, all regions of a mount, or a state directory that no server has.

    Page tables are counted, entries compared with mappings, slots with processes, records with
    objects. --repair frees what dead processes and servers have left, drops wrong entries (the next
    access fills them anew), records objects that its server still has, and brings back regions that
    a server has set aside as damaged, if they are whole. Exit status: 0 nothing is wrong, 1 all is
    mended, 2 something is wrong or could not be checked.
    """
    _patience.watch(Path(path))
    try:
        result = check_all(path, repair=repair)
    except OSError as error:
        click.echo(f"msharefs: {sentence(error)}", err=True)
        sys.exit(BROKEN)
    if as_json:
        regions = [
            {"name": name, "found": found, "left": left} for name, (found, left) in result.items()
        ]
        _show.print_json(_json.document("check", {"path": path, "regions": regions}))
    else:
        _tell(result, repair=repair)
    if any(left for _, left in result.values()):
        sys.exit(BROKEN)
    sys.exit(REPAIRED if any(found for found, _ in result.values()) else CLEAN)


def _tell(result: dict[str, tuple[Findings, Findings]], *, repair: bool) -> None:
    for name, (found, left) in result.items():
        remain = {each["what"] for each in left}
        for each in [*(one for one in found if one["what"] not in remain), *left]:
            fate = ": mended"
            if each["what"] in remain:
                fate = "; --repair can mend that" if each["mended"] and not repair else ""
            click.echo(f"{_show.printable(name)}: {each['sentence']}{fate}")
    wrong = sum(bool(left) for _, left in result.values())
    click.echo(f"{len(result)} regions checked, {wrong} with something wrong")
