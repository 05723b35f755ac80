"""Examples of each verb, for --help and the manual pages."""

from __future__ import annotations

EXAMPLES: dict[str, list[tuple[str, str]]] = {
    "msharefs": [
        ("msharefs mount -o quantum=2M /mnt", "then regions are files below /mnt"),
        ("msharefs run --adopt all -- ./server", "a program's shared memory becomes regions"),
        ("msharefs stat --help", "each verb has examples of its own"),
    ],
    "mount.msharefs": [
        ("mount -t msharefs none /mnt -o quantum=2M", "starts mount.msharefs none /mnt -o ..."),
        ("mount -o remount,memory=64G,ro /mnt", "what can change while it is mounted"),
        ("mount.msharefs -f -v none /mnt -o size=8G", "are these options right? Mounts nothing"),
    ],
    "umount.msharefs": [
        ("umount /mnt", "starts umount.msharefs /mnt, which waits for the server's end"),
        ("umount.msharefs -l /mnt", "although processes are attached"),
    ],
    "mount": [
        ("msharefs mount /mnt", "as root: for all users"),
        ("msharefs mount -o quantum=2M,size=8G /mnt", "small regions, 8 GiB of memory in all"),
        ("mount -t msharefs none /mnt -o quantum=2M", "the same by mount(8), and in fstab(5)"),
    ],
    "umount": [
        ("msharefs umount /mnt", "returns when its server has ended"),
        ("msharefs umount --lazy /mnt", "although processes are attached"),
    ],
    "ls": [
        ("msharefs ls /mnt", "the regions of the root directory"),
        ("msharefs ls -R --sort page_tables /mnt", "all of them, the costliest first"),
        ("msharefs ls --all /mnt", "adopted memory and regions without a name, too"),
    ],
    "stat": [
        ("msharefs stat /mnt/r", "one region"),
        ("msharefs stat --watch 2 /mnt/r", "its counters again every 2 s, with what was added"),
        ("msharefs stat /mnt", "the limits of a mount"),
    ],
    "maps": [("msharefs maps /mnt/r", "as in /proc/PID/maps, by region offsets")],
    "smaps": [
        ("msharefs smaps /mnt/r", "as a kernel would print it that knew of regions"),
        ("msharefs smaps --status --pid 812 /mnt/r", "by four ways to count"),
    ],
    "pagetable": [
        ("msharefs pagetable /mnt/r", "level by level"),
        ("msharefs pagetable --map /mnt/r", "a map: how full, and whose"),
    ],
    "clients": [
        ("msharefs clients /mnt/r", "who is attached to a region"),
        ("msharefs clients --sort faults /mnt", "to any region of a mount"),
        ("msharefs clients --pid 812 /mnt", "what one process is attached to"),
    ],
    "trace": [
        ("msharefs trace /mnt/r", "until interrupted"),
        ("msharefs trace --event unmap --event protect /mnt/r", "who takes memory away"),
        ("msharefs trace --seconds 10 --json 812", "all regions of a process"),
    ],
    "idle": [
        ("msharefs idle /mnt/r", "six looks, 10 s apart"),
        ("msharefs idle --interval 60 --rounds 30 --html idle.html /mnt", "all regions of a mount"),
        ("msharefs idle --method stores /mnt/r", "which pages are written, and by whom"),
    ],
    "reclaim": [
        ("msharefs reclaim --keep 512M /mnt/r", "the oldest pages first, until it fits"),
        ("msharefs reclaim --keep 512M --cold 60 /mnt/r", "none that was used in that minute"),
        ("msharefs reclaim --keep 512M --watch 30 /mnt/r", "and keep it so"),
    ],
    "export": [
        ("msharefs export -o r.csv /mnt/r", "every entry, as a line"),
        ("msharefs export --format champsim /mnt/r | xz > r.champsimtrace.xz", ""),
        ("msharefs export --format virtuoso -o t.vma /mnt/r", "the mappings, beside a trace t"),
    ],
    "top": [
        ("msharefs top", "all mounts, live; needs the extra `tui`"),
        ("msharefs top --once /mnt", "once, as a table"),
    ],
    "metrics": [
        ("msharefs metrics", "print them; needs the extra `metrics`"),
        ("msharefs metrics --listen 127.0.0.1:9923", "for Prometheus to fetch"),
        (
            "msharefs metrics --textfile /var/lib/prometheus/node-exporter/msharefs.prom",
            "for its node exporter",
        ),
    ],
    "check": [
        ("msharefs check /mnt", "all regions of a mount"),
        ("msharefs check --repair /mnt/r", "mend one"),
    ],
    "reap": [("msharefs reap /mnt", "now, and not within 5 s")],
    "owner": [("msharefs owner /mnt/r 812", "process 812 owns it from now on")],
    "run": [
        ("msharefs run -- ./program", "written for the series: open, ioctl, mmap"),
        ("msharefs run --adopt-anon 64M -- ./server", "its large shared memory becomes regions"),
        ("msharefs run --report r.html -- ./program", "what sharing would save it"),
    ],
    "demo": [
        ("msharefs demo", "32 processes, 256 MiB"),
        ("msharefs demo --processes 1000 --size 64M", ""),
    ],
    "bench": [
        ("msharefs bench", "all scenarios, and the figures to reach"),
        ("msharefs bench steady --rounds 3 -o steady.json", "one of them"),
        (
            "msharefs bench steady --compare steady.json --gate",
            "what changed; 3: a target is missed",
        ),
    ],
    "survey": [
        ("msharefs survey", "all processes; as root"),
        ("msharefs survey --tree $(pgrep -o postgres)", "a server and all it has started"),
        ("msharefs survey --cgroup system.slice/apache2.service --html apache.html", ""),
        ("msharefs survey --pid 812,813 --exact --json", ""),
        ("msharefs survey --tree 812 --watch 10", "again every ten seconds"),
    ],
    "lab walk": [
        ("msharefs lab walk /mnt/r", "let a processor walk its tables, in 64 address spaces"),
        ("msharefs lab walk --spaces 2000 --check /mnt/r", "every page in all of them"),
        ("msharefs lab walk --wait 60 /mnt/r", "and look on when it is changed meanwhile"),
    ],
    "lab bits": [
        ("msharefs lab bits --interval 1 /mnt/r", "is one accessed bit for all processes enough?"),
    ],
    "conformance": [
        ("msharefs conformance /mnt", "what is not as in the series, and a count"),
        ("msharefs conformance --tap /sys/fs/mshare", "a kernel that has the series"),
        ("msharefs conformance --only 'munmap-*' /mnt", "some of the cases"),
    ],
    "plan": [
        ("msharefs plan --size 300G --clients 1500", "a database's buffer"),
        ("msharefs plan --from-run survey.json --clients 5000", "what was measured, for more"),
    ],
}


def lines(verb: str) -> list[str]:
    """The examples of a verb and of the verbs below it, each with its remark."""
    examples = [
        example
        for name, some in EXAMPLES.items()
        if name == verb or name.startswith(f"{verb} ")
        for example in some
    ]
    width = max((len(command) for command, _ in examples if len(command) <= _WIDE), default=0)
    return [f"{command:{width}}  {remark}".rstrip() for command, remark in examples]


def epilog(verb: str) -> str:
    """The section for --help."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines(verb))


_WIDE = 48
"""A command that is longer does not move the remarks of all others."""
