"""``msharefs conformance [DIR]``: what the kernel series answers, asked of a mount."""

from __future__ import annotations

import errno
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from msharefs import mountpoint
from msharefs.launch import running

from . import _json, _show, tell

if TYPE_CHECKING:
    from collections.abc import Iterable

    from msharefs.conformance.asking import Answer


def _tap(answers: Iterable[Answer], count: int) -> Iterable[tuple[Answer, list[str]]]:
    """Lines of the Test Anything Protocol, as kernel selftests print them."""
    click.echo(f"TAP version 14\n1..{count}")
    for number, answer in enumerate(answers, 1):
        row = answer.row
        name = f"{number} - {row.ident}: {row.what}".replace("#", "\\#")
        if answer.skipped:
            yield answer, [f"ok {name} # SKIP {answer.said}"]
        elif answer.verdict == "same":
            yield answer, [f"ok {name}"]
        else:
            todo = f" # TODO {answer.why}".rstrip() if answer.verdict == "known" else ""
            yield answer, [f"not ok {name}{todo}", f"# v3: {row.kernel}", f"# here: {answer.said}"]


def _lines(answers: Iterable[Answer]) -> Iterable[tuple[Answer, list[str]]]:
    """For people: those that are not the kernel's."""
    for answer in answers:
        row = answer.row
        said = f"{answer.said} (v3: {row.kernel})" if not answer.skipped else answer.said
        line = f"{answer.verdict:8} {row.ident}: {row.what}: {said}"
        yield answer, [] if answer.verdict == "same" else [line.rstrip()]


def _as_json(answer: Answer) -> dict[str, Any]:
    row = answer.row
    return {
        "row": row.ident,
        "table": row.title,
        "what": row.what,
        "source": row.source,
        "kernel": row.kernel,
        "answer": None if answer.skipped else answer.said,
        "verdict": answer.verdict,
        "why": answer.said if answer.skipped else answer.why or None,
    }


def _place(given: Path | None) -> Path:
    """The mount to ask. A kernel's has to be named."""
    if given is not None:
        return mountpoint.resolve(given)
    try:
        found = running.choose_mount(None, tell=tell)
    except running.SeveralMountsError as error:
        raise click.UsageError(str(error)) from None
    if found is None:
        raise OSError(
            errno.ENODEV, "there is no mount to ask: mount one (`msharefs mount DIR`) and name it"
        )
    return found


@click.command()
@click.option("--tap", is_flag=True, help="Print the Test Anything Protocol, as selftests do.")
@_show.json_option
@click.option(
    "--only",
    metavar="PATTERN",
    multiple=True,
    help="Ask only rows of these names, as munmap-*; may be given several times.",
)
@click.option("--list", "as_list", is_flag=True, help="List the rows, and ask nothing.")
@click.argument("directory", metavar="[DIR]", required=False, type=Path)
def command(
    tap: bool, as_json: bool, only: tuple[str, ...], as_list: bool, directory: Path | None
) -> None:
    """Ask a mount what the kernel series has an answer to, case by case.

    DIR may be a mount of ours, or of a kernel that has the series; by default it is the mount that
    `msharefs run` would take. An answer is the kernel's (same), one of ours that CONFORMANCE.md
    explains (known), or another one (differs), and then the exit status is 1. Rows for which
    further mounts, control groups or huge pages are needed are asked by `make conformance` alone.
    """
    from msharefs.conformance import asking

    if tap and as_json:
        raise click.UsageError("--tap and --json exclude each other")
    wanted = asking.chosen(only)
    if not wanted:
        raise click.UsageError(f"--only {' '.join(only)}: there is no such row")
    if as_list:
        for row in wanted:
            click.echo(f"{row.ident}: {row.what}")
        return
    place = _place(directory)
    asking.check(place)
    answers = asking.ask(place, wanted)
    found: list[Answer] = []
    if as_json:
        found = list(answers)
    else:
        for answer, lines in _tap(answers, len(wanted)) if tap else _lines(answers):
            found.append(answer)
            for line in lines:
                click.echo(_show.printable(line))
    counts = Counter(answer.verdict for answer in found)
    numbers = {verdict: counts[verdict] for verdict in ("same", "known", "differs", "skipped")}
    if as_json:
        rows = [_as_json(answer) for answer in found]
        _show.print_json(
            _json.document("conformance", {"mount": str(place), **numbers, "rows": rows})
        )
    else:
        summary = ", ".join(f"{number} {verdict}" for verdict, number in numbers.items())
        click.echo(f"{'# ' if tap else ''}{len(found)} rows of {place}: {summary}")
    sys.exit(counts["differs"] > 0)
