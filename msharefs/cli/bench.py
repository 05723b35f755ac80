"""``msharefs bench``: what msharefs costs and saves beside what programs use today."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TextIO

import click

from msharefs import units, verbs

from . import _json, _plot, _progress, _shootdown, _show, _types

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

# Here and not asked of msharefs.lab.bench, so that --help loads none of it; a test compares them.
SCENARIOS = (
    "first-touch", "populated", "steady", "fork", "unmap", "protect", "attach", "ioctl",
    "metadata", "pagetables", "clients", "budget",
)  # fmt: skip
PLAN_CHECK = "plan-check"
ALONE = (PLAN_CHECK, _shootdown.NAME)
MISSED = 3
"""The exit status of --gate where a target is missed."""
BACKENDS = (
    "memfd", "thp", "hugetlb", "sysv", "msharefs", "msharefs-strict", "msharefs-watched",
    "msharefs-native", "msharefs-budget",
)  # fmt: skip


class Counts(click.ParamType):
    """Numbers of processes, as 1,8,64."""

    name = "N,N,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """In the order given, each above zero."""
        try:
            found = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            found = (0,)
        if min(found) < 1:
            self.fail(f"{value} is not a list of numbers above zero: write 1,8,64", param, ctx)
        return found


def _time(nanoseconds: float) -> str:
    for unit, size in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if nanoseconds >= size:
            return f"{nanoseconds / size:.3g} {unit}"
    return f"{nanoseconds:.0f} ns"


def _bytes(count: float) -> str:
    return f"-{units.size(-count)}" if count < 0 else units.size(count)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def figure(key: str, value: float) -> str:
    """A figure for people, by the unit in its name."""
    if key.endswith("_bytes"):
        return _bytes(value)
    if "ns" in key.split("_"):
        return f"{value:,.0f} ns" if key.endswith("_per_page") else _time(value)
    return _number(value)


def times(ratio: dict[str, float] | None) -> str:
    """A ratio for people."""
    return f"{ratio['median']:.3g}x" if ratio else "-"


def _spread(ratio: dict[str, float]) -> str:
    return f"{ratio['low']:.3g}-{ratio['high']:.3g}"


# Figures that each row shows beside the headline, if it has them.
_ASIDE = (
    ("faults_per_page", "faults a page"),
    ("faults_per_fork", "faults a fork"),
    ("cpu_ns_per_page", "CPU a page"),
    ("vmpte_bytes", "VmPTE"),
    ("added_page_table_bytes", "host mm"),
    ("attach_ns", "attach"),
    ("filled_per_touched", "filled/touched"),
    ("p99_ns", "p99"),
    ("per_second", "a second"),
    ("meminfo_bytes", "PageTables"),
    ("faults", "faults"),
    ("added_table_frames", "frames added"),
    ("bookkeeping_bytes", "a client"),
    ("flush_all_messages", "flush all"),
    ("list_messages", "list"),
    ("cpumask_messages", "cpumask"),
    ("broadcast_messages", "broadcast"),
)
_HEADLINES = {"ns_per_page": "a page", "p50_ns": "median", "ns": "time", "ns_per_fork": "a fork",
              "tables_bytes": "page tables", "page_table_bytes": "page tables"}  # fmt: skip


def table(scenario: dict[str, Any]) -> Table:
    """One scenario, one line per row; the ratio first, then the figures it is made of."""
    headline = scenario["headline"]
    cases = scenario["cases"]
    names = list(dict.fromkeys(key for case in cases for key in case["case"]))
    present = {key for case in cases for row in case["rows"].values() for key in row["figures"]}
    aside = [(key, title) for key, title in _ASIDE if key in present and key != headline]
    several = len({case["processes"] for case in cases}) > 1
    counted = ["processes"] if several else []
    titles = dict(_ASIDE)
    also = [f"{titles[key]} ratio" for key in scenario["also"]]
    right = ["processes", "ratio", "spread", *also, _HEADLINES[headline]]
    right += [title for _, title in aside]
    lines = _show.table(*names, *counted, "", *right[1:], right=tuple(right))
    for case in cases:
        lead = [case["case"][name] for name in names]
        lead += [str(case["processes"])] if several else []
        for row, found in case["rows"].items():
            figures, ratio = found["figures"], found["ratio"]
            lines.add_row(
                *lead,
                row,
                times(ratio),
                _spread(ratio) if ratio else "",
                *(times(found["ratios"].get(key)) for key in scenario["also"]),
                figure(headline, figures[headline]["median"]),
                *(
                    figure(key, figures[key]["median"]) if key in figures else ""
                    for key, _ in aside
                ),
            )
            lead = [""] * len(lead)
    return lines


def show(found: dict[str, Any]) -> None:
    """Print all scenarios for people."""
    machine = found["machine"]
    print(
        f"{machine['cpu']}, {machine['cpus']} CPUs, {units.size(machine['memory_bytes'])}; "
        f"Linux {machine['kernel']}"
    )
    for name, backend in found["backends"].items():
        if not backend["available"]:
            print(f"{name} ({backend['about']}): not available: {backend['why_not']}")
    for scenario in found["scenarios"]:
        size = f", {units.size(scenario['size_bytes'])}" if scenario["size_bytes"] else ""
        print(f"\n{scenario['name']}: {scenario['title']}{size}")
        rounds = scenario["rounds"]
        over = "one round" if rounds == 1 else f"median and range of {rounds} rounds"
        print(f"ratios to {scenario['baseline']}, {over}\n")
        _show.show(table(scenario))
        for row, reason in scenario["missing"].items():
            print(f"{row}: not available: {reason}")
    if found["targets"]:
        print("\ntargets\n")
        _show.show(targets_table(found["targets"]))
    if "compared" in found:
        show_changes(found["compared"])


def show_changes(compared: dict[str, Any]) -> None:
    """Print what differs from an earlier run."""
    elsewhere = "" if compared["same_machine"] else ", on another machine"
    print(f"\ncompared with the run of {compared['started']}{elsewhere}")
    if not compared["changes"]:
        print(f"none of {compared['compared']:,} figures changed beyond noise")
        return
    print(
        f"{len(compared['changes']):,} of {compared['compared']:,} figures changed beyond noise\n"
    )
    lines = _show.table("", "", "figure", "before", "now", right=("before", "now"))
    for change in compared["changes"]:
        case = ", ".join(value for key, value in change["case"].items() if key != "size")
        place = ", ".join(filter(None, (change["scenario"], case)))
        count = change["processes"]
        lines.add_row(
            place if count == 1 else f"{place}, {count:,} processes",
            change["row"],
            change["figure"],
            *(
                f"{change[key]:.3g}x"
                if change["unit"] == "ratio"
                else figure(change["figure"], change[key])
                for key in ("before", "now")
            ),
        )
    _show.show(lines)


def gate(targets: Sequence[dict[str, Any]]) -> None:
    """End with MISSED if a figure that was to be reached was not, or none was asked for."""
    missed = [target["what"] for target in targets if not target["met"]]
    if missed:
        click.echo(f"msharefs: missed: {'; '.join(missed)}", err=True)
    elif not targets:
        click.echo("msharefs: --gate: nothing that was measured has a target", err=True)
    if missed or not targets:
        sys.exit(MISSED)


def targets_table(targets: Sequence[dict[str, Any]]) -> Table:
    """The figures to reach, and those that were measured."""
    lines = _show.table("", "target", "measured", "", "of", right=("target", "measured"))
    for target in targets:
        bound = ">=" if target["at_least"] else "<="
        lines.add_row(
            target["what"],
            f"{bound} {_target_figure(target, target['target'])}",
            _target_figure(target, target["measured"]),
            "" if target["met"] else "missed",
            _of(target),
        )
    return lines


def _of(target: dict[str, Any]) -> str:
    """The place where it was measured: a scenario of ours, or a case of a workload."""
    if "scenario" not in target:
        return ", ".join(f"{key} {value}" for key, value in target["case"].items())
    of = f"{target['scenario']}, {units.size(target['size_bytes'])}"
    count = target["processes"]
    return of if count == 1 else f"{of}, {count:,} processes"


def _target_figure(target: dict[str, Any], value: float) -> str:
    return f"{value:.3g}x" if target["unit"] == "ratio" else figure(target["figure"], value)


def show_check(found: dict[str, Any]) -> None:
    """Print the findings of plan-check."""
    planned, built = found["planned"], found["built"]
    lines = _show.table("", "planned", "built", right=("planned", "built"))
    for level, count in planned["tables"].items():
        lines.add_row(f"{level} tables", f"{count:,}", f"{built['tables'][level]:,}")
    lines.add_row("bytes", f"{planned['bytes']:,}", f"{built['bytes']:,}")
    print(
        f"{units.size(found['size_bytes'])}, {built['entries']:,} entries filled in "
        f"{found['seconds']:.1f} s, {found['ns_per_entry']:.0f} ns each\n"
    )
    _show.show(lines)
    print(
        f"\n{'equal to the byte' if found['equal'] else 'NOT equal'}: "
        f"{units.size(built['bytes'])} of page tables; the whole object takes "
        f"{units.size(built['whole_object_bytes'])}"
    )


def plan_check(size: int | None, output: TextIO | None, *, as_json: bool) -> None:
    """Build the shared side of a plan and compare."""
    from msharefs.lab.bench import plan_check

    size = size or plan_check.SIZE
    with _progress.Bars() as bars:
        found = plan_check.run(size, bars.step(PLAN_CHECK, size))
    if _show.give_json(_json.document("plan-check", found), output, as_json=as_json):
        show_check(found)
    sys.exit(0 if found["equal"] else 1)


def _read(earlier: TextIO) -> dict[str, Any]:
    from msharefs.lab.bench import compare

    try:
        return compare.read(earlier)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _draw(found: dict[str, Any], plot: str) -> None:
    from msharefs.lab.bench import pictures

    for path in pictures.draw(found, plot):
        click.echo(f"msharefs: drew {path}", err=True)
    for scenario in found["scenarios"]:
        if not pictures.has_figures(scenario):
            click.echo(
                f"msharefs: no picture of {scenario['name']}: none of its rows was to be had",
                err=True,
            )


@click.command()
@click.argument(
    "scenarios", nargs=-1, metavar="[SCENARIO]...", type=click.Choice([*SCENARIOS, *ALONE])
)
@click.option("--processes", type=Counts(), default=None, help="Numbers of processes, as 1,8,64.")
@click.option("--size", type=_types.Size(of=verbs.PAGE), help="Memory they share, as 256M.")
@click.option(
    "--rounds", type=click.IntRange(min=1),
    help="How often each row is measured; medians are over these. 5, but for budget, clients and "
    "pagetables 1.",
)  # fmt: skip
@click.option(
    "--backend", "backends", multiple=True, type=click.Choice(BACKENDS), metavar="KIND",
    help=f"Compare only this kind of memory; may be given several times. {', '.join(BACKENDS)}.",
)  # fmt: skip
@_show.json_option
@_show.output_option
@click.option(
    "--plot", type=click.Path(file_okay=False, readable=False),
    help="Draw a picture of each scenario into this directory; with pagetables also a map.",
)  # fmt: skip
@click.option(
    "--compare", "earlier", type=click.File(), metavar="OLD.json",
    help="Say what changed since an earlier run, beyond the noise of the rounds: times as ratios "
    "to the first row, bytes and counts as they are.",
)  # fmt: skip
@click.option("--gate", "gated", is_flag=True, help="Exit status 3 if a target is missed.")
def command(
    scenarios: Sequence[str],
    processes: tuple[int, ...] | None,
    size: int | None,
    rounds: int | None,
    backends: tuple[str, ...],
    as_json: bool,
    output: TextIO | None,
    plot: str | None,
    earlier: TextIO | None,
    gated: bool,
) -> None:
    """Measure msharefs beside what programs use today.

    Scenarios: first-touch, populated, steady, fork, unmap, protect, attach, ioctl, metadata,
    pagetables, clients, budget; without a name all of them. Every row is measured in turns with the
    others; ratios are to the first row. In the end: what was to be reached, and what was.

    plan-check, alone, builds the page tables of `msharefs plan` for a window of --size (300G) and
    compares them to the byte.

    shootdown, alone, takes 1, 16, 512 and 16,384 pages away from many processes, in six ways: the
    time, and the interrupts of /proc/interrupts beside what the models of `stat` predict.
    """
    alone = [name for name in ALONE if name in scenarios]
    if alone and (len(scenarios) > 1 or backends or earlier or gated):
        raise click.UsageError(f"{alone[0]} stands alone, and has no such option")
    if _shootdown.NAME in scenarios:
        _shootdown.run(processes, size, rounds, output, plot, as_json=as_json)
        return
    if PLAN_CHECK in scenarios:
        if processes or plot:
            raise click.UsageError("plan-check stands alone, with --size, --json and --output only")
        plan_check(size, output, as_json=as_json)
    from msharefs.lab import bench
    from msharefs.lab.bench import run

    old = _read(earlier) if earlier else None
    if plot:
        _plot.module()
        _types.make_directory(plot)
    _progress.end_on_signals()
    names = list(dict.fromkeys(scenarios or SCENARIOS))
    wishes = run.Wishes(
        processes or (), size, rounds, backends, with_map=bool(plot) and "pagetables" in names
    )
    chosen = [bench.SCENARIOS[name] for name in names]
    with _progress.Bars() as bars:
        found = run.run(chosen, wishes, bars)
    if old is not None:
        from msharefs.lab.bench import compare

        found["compared"] = compare.compare(old, found)
    if _show.give_json(found, output, as_json=as_json):
        show(found)
    if plot:
        _draw(found, plot)
    if gated:
        gate(found["targets"])
