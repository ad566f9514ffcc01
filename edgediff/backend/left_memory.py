"""The memory that this process may still take: limits of its cgroups, its own limit, and free
memory (Linux)."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_NO_LIMIT = 2**60
"""Above this, a cgroup's limit means that there is none; version 1 writes 2⁶³ less a page."""


@dataclass(frozen=True, kw_only=True)
class Left:
    """left: bytes. limit: the name of the limit that leaves them. hard: whether the system refuses
    more, or ends the process; free memory can be got by swapping."""

    left: int
    limit: str
    hard: bool


def left_memory(proc: Path = Path("/proc")) -> Left | None:
    """The least that any limit leaves; None if the system reports none. Files that cannot be read
    count as no limit."""
    found = [
        *(Left(left=left, limit="memory cgroup", hard=True) for left in _cgroups(proc)),
        *_address_space(proc),
        *_free(proc),
    ]
    return min(found, key=lambda one: one.left, default=None)


def _cgroups(proc: Path) -> Iterator[int]:
    """The bytes that each of this process's memory cgroups leaves, up to the root of its mount."""
    for mount, root, version in _mounts(proc):
        for line in _lines(proc / "self" / "cgroup"):
            _, controllers, path = [*line.split(":", 2), "", ""][:3]
            if (version == 2 and not controllers) or "memory" in controllers.split(","):
                folder = mount / _below(path, root)
                yield from _lefts(folder, mount, version)


def _lefts(folder: Path, mount: Path, version: int) -> Iterator[int]:
    limit, used = (
        ("memory.max", "memory.current")
        if version == 2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    )
    while True:
        with contextlib.suppress(OSError, ValueError):
            most = int((folder / limit).read_text())  # "max" is no number: no limit
            if most < _NO_LIMIT:
                taken = int((folder / used).read_text()) - _reclaimable(folder, version)
                yield max(0, most - max(0, taken))
        if folder == mount or mount not in folder.parents:
            return
        folder = folder.parent


def _reclaimable(folder: Path, version: int) -> int:
    """Bytes of the page cache: the system drops them before it refuses memory."""
    prefix = "" if version == 2 else "total_"
    names = {f"{prefix}inactive_file", f"{prefix}active_file"}
    fields = (line.split() for line in _lines(folder / "memory.stat"))
    return sum(int(f[1]) for f in fields if len(f) == 2 and f[0] in names and f[1].isdigit())


def _mounts(proc: Path) -> Iterator[tuple[Path, str, int]]:
    """(mount point, its root in the hierarchy, version) of each hierarchy that counts memory."""
    for line in _lines(proc / "self" / "mountinfo"):
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        if kind[0] == "cgroup2":
            yield Path(fields[4]), fields[3], 2
        elif kind[0] == "cgroup" and "memory" in kind[2].split(","):
            yield Path(fields[4]), fields[3], 1


def _below(path: str, root: str) -> PurePosixPath:
    """A cgroup's path below a mount's root. In a container that shows only its own cgroup, that is
    the mount itself."""
    try:
        return PurePosixPath(path).relative_to(root)
    except ValueError:
        return PurePosixPath()


def _address_space(proc: Path) -> Iterator[Left]:
    try:
        import resource
    except ImportError:  # Windows
        return
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most == resource.RLIM_INFINITY:
        return
    with contextlib.suppress(OSError, ValueError, IndexError):
        pages = int((proc / "self" / "statm").read_text().split()[0])
        left = max(0, most - pages * resource.getpagesize())
        yield Left(left=left, limit="address space limit (ulimit -v)", hard=True)


def _free(proc: Path) -> Iterator[Left]:
    for line in _lines(proc / "meminfo"):
        name, _, rest = line.partition(":")
        fields = rest.split()
        if name == "MemAvailable" and fields and fields[0].isdigit():
            yield Left(left=int(fields[0]) * 1024, limit="free memory", hard=False)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
