"""CPU cores and threads of this process: a job on a shared machine rarely has all cores that it can see."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath


def available_cores(environment: Mapping[str, str] = os.environ, root: Path = Path("/")) -> int:
    """Cores that this process and others of its job share: the least of its affinity, its quotas and SLURM's number.

    Args:
        environment: where SLURM_CPUS_PER_TASK is looked up.
        root: of the file system with the control groups.
    Returns:
        At least 1; a quota of 1.5 CPUs counts as 1.
    """
    return max(1, int(min([_affinity(), *_quotas(root), *_positive_number(environment, "SLURM_CPUS_PER_TASK")])))


def thread_limit(environment: Mapping[str, str] = os.environ, root: Path = Path("/")) -> int:
    """CPU threads this process may use: one a core, at most OMP_NUM_THREADS."""
    return min([available_cores(environment, root), *_positive_number(environment, "OMP_NUM_THREADS")])


def limit_library_threads() -> None:
    """Set OMP_NUM_THREADS, which OpenMP and numpy's libraries read when they are imported, to `thread_limit`."""
    os.environ["OMP_NUM_THREADS"] = str(thread_limit())


def _positive_number(environment: Mapping[str, str], name: str) -> list[int]:
    text = environment.get(name, "").split(",")[0]
    return [int(text)] if text.isdecimal() and int(text) > 0 else []


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS and Windows


def control_groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the control groups around this process, of version 1 or 2; some may not be there.

    Args:
        root: of the file system with /proc and /sys/fs/cgroup.
        controller: "cpu" or "memory".
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        # In a container the path can be that of the host: then only the container's own group is there, as the root.
        groups = [path, *map(str, PurePosixPath(path).parents)]
        for mount in (controllers, controller) if controllers else ("", "unified"):
            for group in groups:
                yield root / "sys/fs/cgroup" / mount / group.lstrip("/")


def _quotas(root: Path) -> Iterator[float]:
    """CPUs' worth of time that each control group around this process gets, of those with a quota."""
    for group in control_groups(root, "cpu"):
        yield from _quota(group)


def _quota(group: Path) -> Iterator[float]:
    try:
        if (group / "cpu.max").is_file():
            quota, period = (group / "cpu.max").read_text(encoding="utf-8").split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text(encoding="utf-8") for name in ("quota", "period"))
        if quota != "max" and int(quota) > 0:  # -1 is version 1's word for no quota
            yield int(quota) / int(period)
    except (OSError, ValueError):  # no such group, or none with a quota
        return
