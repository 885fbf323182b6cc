"""How much memory a process may use. A job on a shared machine rarely has all that the machine has."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from denetdm_cli.utils.cpu import control_groups

_PROCESSES, _PER_DEVICE = "DENETDM_PROCESSES", "DENETDM_PROCESSES_PER_DEVICE"
_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Limit, usage and the file cache in it that the kernel gives back first: control groups of version 2 and 1."""


def announce_processes(processes: int, devices: int) -> None:
    """Note for this process and its children that `processes` run side by side and share `devices` devices."""
    os.environ[_PROCESSES] = str(processes)
    os.environ[_PER_DEVICE] = str(-(-processes // devices))


def processes_per_device(environment: Mapping[str, str] = os.environ) -> int:
    """Number of processes that share the GPU of this one, as `announce_processes` noted it."""
    return _count(environment, _PER_DEVICE)


def available_memory(environment: Mapping[str, str] = os.environ, root: Path = Path("/")) -> int | None:
    """Bytes of memory that this process may still use, None where the system does not say.

    That is what is available on the machine, or in the tightest control group around this process, divided by the
    processes that run side by side on the machine: ranks of one run, or workers with a run each.

    Args:
        environment: where LOCAL_WORLD_SIZE (torchrun) and what `announce_processes` noted are looked up.
        root: of the file system with /proc and /sys/fs/cgroup.
    """
    machine = _machine(root / "proc/meminfo")
    found = [*([] if machine is None else [machine]), *_groups(root)]
    processes = max(_count(environment, _PROCESSES), _count(environment, "LOCAL_WORLD_SIZE"))
    return min(found) // processes if found else None


def _count(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    return max(1, int(text)) if text.isdecimal() else 1


def _machine(meminfo: Path) -> int | None:
    """Bytes available on the machine, or all that it has where no more is known."""
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf, other systems not these names
        return None


def _groups(root: Path) -> Iterator[int]:
    """Bytes available in each control group around this process that has a limit."""
    for group in control_groups(root, "memory"):
        for limit, usage, cache in _FILES:
            try:
                most, used = (int((group / name).read_text(encoding="utf-8")) for name in (limit, usage))
                stat = (line.split() for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines())
                yield max(0, most - used + min(used, int(dict(stat).get(cache, 0))))
            except (OSError, ValueError):  # no such group, of the other version, or without a limit ("max")
                continue
