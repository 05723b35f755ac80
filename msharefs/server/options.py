"""The options of a mount: the values of ``-o``, checked, and where its state lives."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from msharefs import home, units

if TYPE_CHECKING:
    from collections.abc import Iterable

Owner = Literal["file", "creator", "process", "thread"]
Quirks = Literal["", "v3"]
Faults = Literal["linux", "watched"]
Window = Literal["refuse", "inner", "private"]
Charge = Literal["toucher", "owner"]

# The level of the x86-64 page table that is shared decides: a PUD page, a PMD page or a PTE page.
QUANTA = {"512G": 512 << 30, "1G": 1 << 30, "2M": 2 << 20}
KEYS = {
    "quantum": "/".join(QUANTA),
    "state": "DIR",
    "size": "SIZE",
    "huge": "/".join(home.HUGE),
    "owner": "/".join(get_args(Owner)),
    "quirks": "v3",
    "window": "/".join(get_args(Window)),
    "charge": "/".join(get_args(Charge)),
    "fault_around": "PAGES",
    "faults": "/".join(get_args(Faults)),
    "passthrough": "yes/no",
    "budget": "SIZE",
    "regions": "COUNT",
    "user_regions": "COUNT",
    "vmas": "COUNT",
    "clients": "COUNT",
    "connections": "COUNT",
    "memory": "SIZE",
    "nice": "-20 to 0",
}
# Those of mount(8) for any file system. Given to libfuse, which has the kernel enforce them, each
# with the one that takes it back;
FLAGS = {
    "ro": "rw", "noexec": "exec", "nosuid": "suid", "nodev": "dev", "noatime": "atime",
    "nodiratime": "diratime", "sync": "async", "dirsync": "",
}  # fmt: skip
# what holds in any case;
HELD = ("defaults", "default_permissions", "relatime", "norelatime", "strictatime",
        "nostrictatime", "lazytime", "nolazytime", "silent", "loud", "iversion", "noiversion",
        "mand", "nomand", "symfollow", "nosymfollow")  # fmt: skip
# and what only mount(8) itself asks for in fstab(5), besides x-NAME and X-NAME.
FSTAB = ("auto", "noauto", "nofail", "_netdev", "_rnetdev", "user", "nouser", "users", "nousers",
         "owner", "noowner", "group", "nogroup")  # fmt: skip
# What Linux shows of a mount of ours in /proc/mounts, which mount(8) gives back at a remount.
SHOWN = ("user_id", "group_id", "rootmode", "max_read", "fsname", "subtype")
# The options that can change while it is mounted.
CHANGEABLE = ("regions", "user_regions", "vmas", "clients", "connections", "memory", "size")
_BACK = {back: flag for flag, back in FLAGS.items() if back}
_PLAIN = {"allow_other", *FLAGS, *_BACK, *HELD, *FSTAB}
# In pages. With 256 KiB the two context switches of a fault hardly count. A PTE page has 512.
FAULT_AROUND = 64
FAULT_AROUND_MAX = 512
# native/core/layout.h: as much as a single instruction needs, in each of a few threads.
BUDGET_MIN = 128 << 10
# native/core/layout.h: more do not fit.
VMAS_MAX = 65530
COUNT_MAX = (1 << 31) - 1
# Nine times the weight of a program that has not asked for any.
NICE = -10
NICE_MIN = -20


class BadOptionError(ValueError):
    """A value of -o that has no meaning; the text says which ones have."""


@dataclass(frozen=True, kw_only=True)
class MountOptions:
    """One mount. `quantum` is in bytes; both paths are absolute and free of symbolic links."""

    directory: Path
    state: Path
    quantum: int = QUANTA["512G"]
    size: int = 0
    """Bytes that the server's own tmpfs may have; 0: any number."""
    huge: str = ""
    """When that tmpfs uses transparent huge pages, of home.HUGE; empty: as the kernel does."""
    owner: Owner = "file"
    """Whose end is the region's end: the file's, or that of the process or thread that made it."""
    quirks: Quirks = ""
    """"v3": the series to the letter, its harmless defects included."""
    window: Window = "refuse"
    """What ordinary calls on a window do, under the preload library: v3's answers, or the verbs."""
    charge: Charge = "toucher"
    """Whose memory cgroup is charged for pages: that of who touches first, or the owner's."""
    fault_around: int = FAULT_AROUND
    """Pages that a sequential first touch may fill together; 1: only touched pages."""
    faults: Faults = "linux"
    """Who takes first touches of memory that all may read and write: Linux, or we each of them."""
    passthrough: bool = True
    """A plain mmap(2) of a region maps its memory, if the server may do that, or fails: ENODEV."""
    budget: int = 0
    """Bytes of its own page tables that each attachment is to keep; 0: any."""
    regions: int = 0
    user_regions: int = 0
    """The limits of a mount, see quotas.py; 0: the default."""
    vmas: int = 0
    clients: int = 0
    connections: int = 0
    memory: int = 0
    nice: int = NICE
    """The server's nice value, where it may have it; 0: its scheduling is left as it is."""
    flags: frozenset[str] = frozenset()
    """Of FLAGS: those that are on."""
    allow_other: bool = False
    """Asked for; where it is possible other users may use the mount in any case."""
    source: str = "msharefs"
    """What mount(8) and /proc/mounts call the device, of which there is none."""
    foreground: bool = False
    debug: bool = False


def words(given: Iterable[str]) -> list[str]:
    """The options in the arguments of ``-o``, each a comma-separated list."""
    return [item for item in ",".join(given).split(",") if item]


def is_known(item: str) -> bool:
    """Whether there is such an option, whatever its value."""
    key = item.partition("=")[0]
    return key in KEYS or key in _PLAIN or _is_remark(key)


def is_flag(item: str) -> bool:
    """Whether an option is one of any mount, which Linux itself can change."""
    return item in FLAGS or item in _BACK or item in HELD[2:]


def _is_remark(key: str) -> bool:
    """Whether an option is for others than us: remarks of fstab(5), or the user who may unmount."""
    return key.startswith(("x-", "X-")) or key in ("comment", "user")


def parse(
    given: Iterable[str],
    directory: Path,
    *,
    foreground: bool = False,
    debug: bool = False,
    source: str = "msharefs",
) -> MountOptions:
    """Options from the arguments of ``-o``, each a comma-separated list.

    The last of equal keys counts. Raises BadOptionError.
    """
    values: dict[str, str] = {}
    flags: set[str] = set()
    allow_other = False
    for item in words(given):
        key, equals, value = item.partition("=")
        if key in KEYS and (equals or key not in FSTAB):  # `owner` alone is fstab's
            values[key] = value
        elif _is_remark(key):
            pass
        elif key not in _PLAIN:
            known = ", ".join(f"{name}={what}" for name, what in KEYS.items())
            raise BadOptionError(
                f"-o {item}: there is no such option; there are {known}, allow_other, "
                f"{', '.join(FLAGS)} and what they take back"
            )
        elif item != key:
            raise BadOptionError(f"-o {item}: {key} takes no value")
        else:
            _switch(flags, key)
            allow_other |= key == "allow_other"

    quirks = _choice(values, "quirks", get_args(Quirks)[1:], "")
    # The series knows no owner but the creating thread.
    owner = _choice(values, "owner", get_args(Owner), "thread" if quirks else "file")
    charge = _choice(values, "charge", get_args(Charge), "toucher")
    usual = "watched" if charge == "owner" else "linux"
    faults = _choice(values, "faults", get_args(Faults), usual)
    if charge == "owner" and faults == "linux":
        raise BadOptionError(
            "-o charge=owner,faults=linux: the pages that Linux makes are charged to whoever "
            "touches them; leave faults=linux out"
        )
    quantum = QUANTA[_choice(values, "quantum", tuple(QUANTA), "512G")]
    state = _state(values, directory)
    return MountOptions(
        directory=directory,
        state=state,
        quantum=quantum,
        size=_size(_own(values, "size", state), "size"),
        huge=_choice(_own(values, "huge", state), "huge", home.HUGE, ""),
        owner=owner,  # type: ignore[arg-type]  # _choice has checked it
        quirks=quirks,  # type: ignore[arg-type]
        window=_choice(values, "window", get_args(Window), "refuse"),  # type: ignore[arg-type]
        charge="owner" if charge == "owner" else "toucher",
        faults="linux" if faults == "linux" else "watched",
        fault_around=_pages(values),
        passthrough=_choice(values, "passthrough", ("yes", "no"), "yes") == "yes",
        budget=_budget(values),
        regions=_count(values, "regions"),
        user_regions=_count(values, "user_regions"),
        vmas=_count(values, "vmas", VMAS_MAX),
        clients=_count(values, "clients"),
        connections=_count(values, "connections"),
        memory=_size(values, "memory"),
        nice=_nice(values),
        flags=frozenset(flags),
        allow_other=allow_other,
        source=source,
        foreground=foreground,
        debug=debug,
    )


def remounted(now: MountOptions, given: Iterable[str]) -> MountOptions:
    """The options after ``-o remount``. BadOptionError: what cannot change while it is mounted."""
    items = words(given)
    wanted = parse([f"state={now.state}", *items], now.directory)
    changes = {}
    for key in (item.partition("=")[0] for item in items if "=" in item):
        if key not in KEYS or getattr(wanted, key) == getattr(now, key):
            continue
        if key not in CHANGEABLE:
            raise BadOptionError(
                f"-o {key}: cannot change while it is mounted, as {', '.join(CHANGEABLE)} and the "
                "flags of any mount can; unmount, and mount again"
            )
        changes[key] = getattr(wanted, key)
    return replace(now, **changes)


def _switch(flags: set[str], key: str) -> None:
    """One of FLAGS, on or off: as with mount(8) the last counts."""
    if key in FLAGS:
        flags.add(key)
    flags.discard(_BACK.get(key, ""))


def _choice(values: dict[str, str], key: str, choices: tuple[str, ...], default: str) -> str:
    value = values.get(key, default)
    if key in values and value not in choices:
        raise BadOptionError(f"-o {key}={value}: must be one of {', '.join(choices)}")
    return value


def _pages(values: dict[str, str]) -> int:
    value = values.get("fault_around", str(FAULT_AROUND))
    if not value.isdecimal() or int(value) > FAULT_AROUND_MAX:
        raise BadOptionError(f"-o fault_around={value}: must be 0 to {FAULT_AROUND_MAX} pages")
    return int(value)


def _count(values: dict[str, str], key: str, most: int = COUNT_MAX) -> int:
    """A limit; 0 where none is given."""
    value = values.get(key, "0")
    if key in values and not (value.isdecimal() and 1 <= int(value) <= most):
        raise BadOptionError(f"-o {key}={value}: must be a number from 1 to {most}")
    return int(value)


def _nice(values: dict[str, str]) -> int:
    value = values.get("nice", str(NICE))
    if value != "0" and not (value[:1] == "-" and value[1:].isdecimal() and int(value) >= NICE_MIN):
        raise BadOptionError(f"-o nice={value}: must be a number from {NICE_MIN} to 0")
    return int(value)


def _size(values: dict[str, str], key: str) -> int:
    value = values.get(key, "0")
    try:
        return units.parse_size(value)
    except ValueError as error:
        raise BadOptionError(f"-o {key}={value}: {error}") from None


def _own(values: dict[str, str], key: str, state: Path) -> dict[str, str]:
    """The values, after a look whether `key` means anything there."""
    if key in values and not home.is_own(state):
        raise BadOptionError(
            f"-o {key}={values[key]}: is for the tmpfs that a root server mounts for itself; here "
            f"regions are in {state}, whose file system decides"
        )
    return values


def _budget(values: dict[str, str]) -> int:
    budget, value = _size(values, "budget"), values.get("budget", "0")
    if 0 < budget < BUDGET_MIN:
        raise BadOptionError(f"-o budget={value}: must be {BUDGET_MIN >> 10}K or more, or 0")
    return budget


def _state(values: dict[str, str], directory: Path) -> Path:
    if "state" not in values:
        return home.default_state(directory)
    if not values["state"]:
        raise BadOptionError(
            "-o state=: name a directory on tmpfs, for example state=/dev/shm/msharefs"
        )
    state = Path(values["state"]).resolve()
    if state == directory or directory in state.parents:
        raise BadOptionError(f"-o state={state}: must not be inside the mount point {directory}")
    return state
