"""``msharefs metrics``: the figures of all regions, for Prometheus."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from msharefs import mountpoint

from . import _live, tell
from ._progress import end_on_signals

if TYPE_CHECKING:
    from collections.abc import Iterator

LOOPBACK = "127.0.0.1"
COUNTERS = {
    "faults": "Entries filled because a page was touched first.",
    "links": "Shared tables linked: one for each client and quantum.",
    "materialised_pages": "Pages made reachable in clients' own page tables.",
    "unmaps": "Shootdowns: what was taken away in all clients.",
    "segv": "Accesses answered with SIGSEGV.",
    "prefaulted": "Entries filled ahead of a sequential first touch.",
    "evicted_spans": "Spans of 2 MiB that clients gave back to stay within a budget.",
    "refaulted_spans": "Those of them that came back.",
}
GAUGES = {
    "size_bytes": "Size of the region.",
    "rss_bytes": "Anonymous memory in use.",
    "page_table_bytes": "What the shared page tables take.",
    "vmas": "Mappings in the region.",
    "budget_bytes": "Bytes of its own page tables that a client may keep; 0: any number.",
}
NAMES = {"rss_bytes": "resident_bytes", "vmas": "mappings", "unmaps": "shootdowns"}
UNNAMED = "(unnamed)"
"""The label of adopted memory and unlinked regions together: each would be a label of its own, and
they come and go. Sums that shrink are no counters, so they have none."""


class Regions:
    """A collector of prometheus_client: one look at each time that it is asked."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory

    def collect(self) -> Iterator[Any]:
        """All families. There are no labels of processes: they come and go."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        directories = _live.mounts(self._directory)
        look = _live.look(directories, with_clients=False)
        up = GaugeMetricFamily(
            "msharefs_up", "Whether the server of a mount answers.", labels=["mount"]
        )
        for directory in map(os.fspath, directories):
            up.add_metric([directory], float(directory not in look.silent))
        yield up
        known, others = _parted(look.regions)
        for key, text in COUNTERS.items():
            family = CounterMetricFamily(_name(key), text, labels=["mount", "region"])
            for each in known:
                family.add_metric([each["mount"], each["name"]], each["counters"][key])
            yield family
        for key, text in GAUGES.items():
            gauge = GaugeMetricFamily(_name(key), text, labels=["mount", "region"])
            for each in known:
                gauge.add_metric([each["mount"], each["name"]], each[key])
            for mount, each in others.items():
                gauge.add_metric([mount, UNNAMED], each[key])
            yield gauge
        attached = GaugeMetricFamily(
            "msharefs_attached_processes", "Attachments of processes.", labels=["mount", "region"]
        )
        for each in known:
            attached.add_metric([each["mount"], each["name"]], each["clients"])
        for mount, each in others.items():
            attached.add_metric([mount, UNNAMED], each["clients"])
        yield attached
        yield from self._limits(look)

    @staticmethod
    def _limits(look: _live.Look) -> Iterator[Any]:
        from prometheus_client.core import GaugeMetricFamily

        used = GaugeMetricFamily(
            "msharefs_limit_used",
            "What is in use of a limit of the mount.",
            labels=["mount", "limit"],
        )
        most = GaugeMetricFamily(
            "msharefs_limit", "A limit of the mount, if there is one.", labels=["mount", "limit"]
        )
        for mount in sorted({each["mount"] for each in look.regions}):
            try:
                limits = mountpoint.limits(Path(mount))
            except OSError:  # it has ended meanwhile
                continue
            for name, each in limits.items():
                used.add_metric([mount, name], each["used"])
                if each["limit"]:
                    most.add_metric([mount, name], each["limit"])
        yield used
        yield most


def _name(key: str) -> str:
    return f"msharefs_{NAMES.get(key, key)}"


def _parted(
    regions: list[dict[str, Any]],
) -> tuple[list[dict[str, Any]], dict[str, dict[str, int]]]:
    """Those with a name, and the sums of the others by mount."""
    known = [each for each in regions if each["name"] is not None]
    sums: dict[str, dict[str, int]] = {}
    for each in regions:
        if each["name"] is None:
            total = sums.setdefault(each["mount"], dict.fromkeys((*GAUGES, "clients"), 0))
            for key in total:
                total[key] += each[key]
    return known, sums


def address(written: str) -> tuple[str, int]:
    """The address and the port in ``9923``, ``127.0.0.1:9923``, ``[::1]:9923``."""
    host, _, port = written.rpartition(":")
    if not port.isdecimal() or not 0 <= int(port) < 1 << 16:
        raise click.BadParameter(f"{written}: write ADDRESS:PORT, or a port alone")
    return host.strip("[]") or LOOPBACK, int(port)


@click.command()
@click.argument("directory", metavar="[MOUNT]", type=Path, required=False)
@click.option(
    "--textfile",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help="Write them to this file, at once as a whole, for the node exporter; *.prom.",
)
@click.option(
    "--listen",
    metavar="[ADDRESS:]PORT",
    help="Serve them by HTTP until interrupted; to this machine alone, unless an address is given.",
)
def command(directory: Path | None, textfile: str | None, listen: str | None) -> None:
    """Give the figures of all regions to Prometheus.

    Of one mount, or of all. Without an option they are printed.
    """
    if textfile and listen:
        raise click.UsageError("give --textfile or --listen")
    try:
        import prometheus_client
    except ImportError:
        raise click.UsageError("needs prometheus-client: pip install 'msharefs[metrics]'") from None
    registry = prometheus_client.CollectorRegistry()
    registry.register(Regions(directory))
    if textfile:
        prometheus_client.write_to_textfile(textfile, registry)
    elif listen:
        host, port = address(listen)
        try:
            server, thread = prometheus_client.start_http_server(port, host, registry)
        except OSError as error:
            error.filename = listen
            raise
        end_on_signals()
        tell(f"metrics at http://{host}:{server.server_port}/metrics")
        thread.join()
    else:
        click.echo(prometheus_client.generate_latest(registry).decode(), nl=False)
