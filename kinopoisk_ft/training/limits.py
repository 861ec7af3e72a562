"""How much memory a process can still take before the system refuses it or ends the process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
UNLIMITED = 2**60  # version 1 writes a number near 2**63 for none


@dataclass(frozen=True)
class _Files:
    """Names in a cgroup's folder (Documentation/admin-guide, cgroup-v2 and cgroup-v1/memory)."""

    limit: str
    used: str
    reclaimable: str  # a line of memory.stat


_V1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Files("memory.max", "memory.current", "inactive_file")


def available_memory(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> int:
    """Return the bytes that are left by the machine, the process's cgroups and its own limit.

    Args:
        cgroups: where the cgroup file systems are mounted.
        membership: the file that names the process's cgroups, in the form of /proc/self/cgroup.
    """
    left = [psutil.virtual_memory().available, *_left_by_cgroups(cgroups, membership)]
    return max(0, min([*left, *_left_by_process()]))


def _left_by_process() -> Iterator[int]:
    """Yield the bytes of address space that the process's own limit leaves; none on Windows."""
    try:
        import resource
    except ImportError:
        return
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if space != resource.RLIM_INFINITY:
        yield space - psutil.Process().memory_info().vms


def _left_by_cgroups(cgroups: Path, membership: Path) -> Iterator[int]:
    """Yield what is left to each cgroup that holds the process, those above it included."""
    if not membership.is_file():
        return
    for line in membership.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            root, files = cgroups / "memory", _V1
        elif not controllers:
            root, files = cgroups, _V2
        else:
            continue
        # Inside a container the path may be the host's, whose upper folders are not to be seen.
        parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
        for depth in range(len(parts), -1, -1):
            yield from _left(root.joinpath(*parts[:depth]), files)


def _left(folder: Path, files: _Files) -> Iterator[int]:
    """Yield a cgroup's limit less what it uses; pages of files give way and do not count."""
    try:
        limit, used = ((folder / name).read_text().strip() for name in (files.limit, files.used))
        stat = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return
    if limit == "max" or int(limit) >= UNLIMITED:
        return
    reclaimable = dict(line.split() for line in stat).get(files.reclaimable, "0")
    yield int(limit) - int(used) + int(reclaimable)
