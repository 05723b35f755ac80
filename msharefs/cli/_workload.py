"""The output of the programs in scripts/workloads, and the options that they all have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TextIO

import click

from msharefs import units

from . import _show
from .bench import figure, targets_table, times

if TYPE_CHECKING:
    from rich.table import Table

rounds_option = click.option(
    "--rounds", type=click.IntRange(min=1), default=3, show_default=True,
    help="How often each server is measured, in turns; medians are over these.",
)  # fmt: skip
seconds_option = click.option(
    "--seconds", type=click.IntRange(min=1), default=3, show_default=True,
    help="How long one measurement takes.",
)  # fmt: skip
_MEMORY = (
    ("vmpte_bytes", "VmPTE"),
    ("own_tables_bytes", "for regions"),
    ("page_table_bytes", "host mm"),
    ("process_faults", "faults"),
    ("region_faults", "pages filled"),
)


def table(found: dict[str, Any], titles: dict[str, str]) -> Table:
    """A line for each case and way: figures by `titles`, each with its ratio to plain; memory."""
    names = list(dict.fromkeys(key for case in found["cases"] for key in case["case"]))
    headings = [part for title in titles.values() for part in (title, f"{title} ratio")]
    memory = [title for _, title in _MEMORY]
    lines = _show.table(*names, "", *headings, *memory, right=(*headings, *memory))
    for case in found["cases"]:
        lead = [str(case["case"][name]) for name in names]
        for way, row in case["rows"].items():
            cells = [
                text
                for key in titles
                for text in (figure(key, row["figures"][key]["median"]), times(row["ratios"][key]))
            ]
            cells += [_seen(key, row["memory"][key]) for key, _ in _MEMORY]
            lines.add_row(*lead, way, *cells)
            lead = [""] * len(lead)
    return lines


def _seen(key: str, value: float | None) -> str:
    """None: not all processes were there at the moment of the look."""
    return "incomplete" if value is None else figure(key, value)


def write(
    found: dict[str, Any], titles: dict[str, str], output: TextIO | None, *, as_json: bool
) -> None:
    """Print the table of a workload, or its JSON; write JSON wherever else it is wanted."""
    if not _show.give_json(found, output, as_json=as_json):
        return
    machine = found["machine"]
    settings = ", ".join(
        f"{key.removesuffix('_bytes').replace('_', ' ')} "
        f"{units.size(value) if key.endswith('_bytes') else value}"
        for key, value in found["settings"].items()
    )
    print(f"{found['name']}: {settings}")
    print(f"{machine['cpu']}, {machine['cpus']} CPUs; Linux {machine['kernel']}\n")
    _show.show(table(found, titles))
    print(
        "\nVmPTE, faults: of all its processes. for regions: what of VmPTE sharing would take away;"
        "\nhost mm: what it would put in the place, once."
    )
    if found["targets"]:
        print()
        _show.show(targets_table(found["targets"]))
