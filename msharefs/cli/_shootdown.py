"""``bench shootdown``: its figures for people, and its picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from . import _plot, _progress, _show, _types

if TYPE_CHECKING:
    from rich.table import Table

NAME = "shootdown"
MODELS = ("flush_all", "list", "cpumask", "broadcast")


def _time(nanoseconds: float) -> str:
    return f"{nanoseconds / 1000:,.1f}"


def _ratio(row: dict[str, Any], model: str) -> str:
    ratio = (row["ratios"] or {}).get(model)
    return "-" if ratio is None else f"{ratio:.2g}x"


def beyond(row: dict[str, Any], name: str) -> str:
    """Interrupts beyond those of a quiet time of the same length."""
    return f"{max(row[name] - row[f'quiet_{name}'], 0):,.0f}" if name in row else "-"


def table(found: dict[str, Any]) -> Table:
    """A line for each measurement."""
    numbers = (
        "processes", "running", "pages", "us", "lost us", "TLB", "RES", "CAL", "all", "list",
        "mask", "TLB/list", "left",
    )  # fmt: skip
    lines = _show.table(*numbers[:3], "", *numbers[3:], right=numbers)
    for row in found["rows"]:
        predicted = row["predicted"]
        counted = (beyond(row, name) for name in ("tlb", "reschedule", "call"))
        lines.add_row(
            f"{row['processes']:,}", f"{row['running']}", f"{row['pages']:,}", row["how"],
            _time(row["ns"]),
            _time(max(row["victim_lost_ns"] - row["quiet_lost_ns"], 0)) if row["running"] else "-",
            *counted,
            *(f"{predicted[model]:,.0f}" for model in MODELS[:3]),
            _ratio(row, "list"),
            f"{row['left_pages']:,}",
        )  # fmt: skip
    return lines


def show(found: dict[str, Any]) -> None:
    """For people."""
    machine = found["machine"]
    click.echo(
        f"{machine['cpu']}, {machine['cpus']} CPUs, load {machine['load']:.1f}; "
        f"Linux {machine['kernel']}; medians of {found['rounds']} rounds"
    )
    click.echo(
        "us: the calls; lost us: by each process that ran; TLB, RES, CAL: interrupts of "
        "/proc/interrupts; both beyond those of a quiet time of that length; all, list, mask: whom "
        "the models of stat would have told (broadcast: 1, no interrupt); left: pages that the "
        "last process still has\n"
    )
    _show.show(table(found))
    for kind, reason in found["missing"].items():
        click.echo(f"{kind}: not available: {reason}")
    if found["not_counted"]:
        click.echo(f"not counted by this machine: {', '.join(found['not_counted'])}")


def run(
    processes: tuple[int, ...] | None,
    size: int | None,
    rounds: int | None,
    output: TextIO | None,
    plot: str | None,
    *,
    as_json: bool,
) -> None:
    """Measure, print, draw."""
    from msharefs.lab.bench import shootdown

    if plot:
        _plot.module()
        _types.make_directory(plot)
    _progress.end_on_signals()
    with _progress.Bars() as bars:
        found = shootdown.run(
            processes or shootdown.PROCESSES, size or shootdown.SIZE, rounds or shootdown.ROUNDS,
            bars,
        )  # fmt: skip
    if _show.give_json(found, output, as_json=as_json):
        show(found)
    if plot:
        from msharefs.lab import shootdown_plot

        path = Path(plot) / "shootdown.svg"
        path.write_text(shootdown_plot.draw(found), encoding="utf-8")
        click.echo(f"msharefs: drew {path}", err=True)
