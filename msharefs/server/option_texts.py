"""What the options of a mount mean: for ``mount --help`` and msharefs(5), both made from this."""

from __future__ import annotations

TEXTS = {
    "quantum": "What sizes of regions and attach addresses are multiples of: 512G by default.",
    "size": "Bytes that the tmpfs of root's own server may have; without, any number.",
    "huge": "When that tmpfs uses transparent huge pages; without, as the kernel does.",
    "state": "Another directory for regions, on tmpfs.",
    "owner": "Whose end is a region's end: the file's (by default), or that of the process or "
    "thread which has made it, as in the series; creator: the process, or its last descriptor of "
    "the region, as was shown in 2026.",
    "quirks": "v3: the series to the letter, its defects included.",
    "window": "What mprotect(2), madvise(2) and the like of an attachment do in a program under "
    "`msharefs run`. refuse: they are refused, as in the series (by default). inner: they are for "
    "the region, and hold for all processes. private: they change the process that makes them, and "
    "no other; its page tables there are no longer shared.",
    "charge": "Whose memory cgroup pays for a region's own pages: toucher, that of whoever touches "
    "one first, as Linux does (by default); owner, that of the region's owner, as in the series.",
    "fault_around": "Pages that a sequential first touch may fill together, up to 512; 64 by "
    "default. 1 is strict. 0: nor is a page mapped along that others have filled.",
    "faults": "Who takes first touches of memory that all may read and write: Linux, at its own "
    "speed, or we each of them (by default).",
    "passthrough": "Whether a plain mmap(2) of a region, by a program without our library, maps "
    "its memory; by default, if the server is root's.",
    "budget": "Bytes of its own page tables that each attached process keeps, 128K or more; 0: "
    "any number, by default.",
    "regions": "How many regions there may be; 65536 by default.",
    "user_regions": "How many of them one user may have; a quarter by default.",
    "vmas": "How many mappings a region may have; 65530 by default.",
    "clients": "How many attachments there may be; by default a quarter of the server's "
    "RLIMIT_NOFILE.",
    "connections": "How many connections one user may have.",
    "memory": "Bytes that may be mapped in all regions; without, any number.",
    "nice": "How soon the server gets a processor where many programs want one: its nice value, "
    "-10 by default, if it may have that. 0 leaves its scheduling as it is.",
}

# The same in a few words.
SHORT = {
    "quantum": "what sizes are multiples of; 512G",
    "state": "another place for regions, on tmpfs",
    "size": "of the tmpfs of root's own",
    "huge": "pages of that tmpfs",
    "owner": "whose end is a region's end; file",
    "quirks": "the series to the letter",
    "window": "mprotect(2) of a window; refuse",
    "charge": "which memory cgroup pays; toucher",
    "fault_around": "filled together, up to 512; 64",
    "faults": "who takes first touches; watched",
    "passthrough": "plain mmap(2) of regions",
    "budget": "of its own page tables, each client",
    "regions": "limit of all; 65536",
    "user_regions": "limit of one user",
    "vmas": "limit of a region's mappings; 65530",
    "clients": "limit of attachments",
    "connections": "limit of one user",
    "memory": "limit of what is mapped in all",
    "nice": "value of the server; -10",
}

STANDARD = (
    "ro, noexec, nosuid, nodev, noatime, nodiratime, sync, dirsync and what takes them back are "
    "those of any mount. allow_other is what a mount of root's is in any case; that of another "
    "user is, if /etc/fuse.conf has a line user_allow_other. Options of fstab(5) are taken: "
    "defaults, auto, noauto, nofail, _netdev, user, users, owner, group, x-NAME, comment=."
)

REMOUNT = (
    "While it is mounted, mount -o remount changes regions, user_regions, vmas, clients, "
    "connections, memory and size, and the flags of any mount. It refuses other changes by name."
)
