"""How much memory a process may use, from made-up control groups and environments."""

import os
from pathlib import Path

import pytest

from denetdm_cli.utils.memory import announce_processes, available_memory, processes_per_device

MACHINE = {"proc/meminfo": "MemTotal:  9000 kB\nMemFree:  3 kB\nMemAvailable:   4000 kB\n"}
KIB = 1024


def _group(folder: str, limit: object, used: int, cached: int) -> dict[str, str]:
    """A control group of version 2; sizes in KiB."""
    limit = limit * KIB if isinstance(limit, int) else limit
    stat = f"anon 1\ninactive_file {cached * KIB}\nactive_file 5"
    files = {"max": limit, "current": used * KIB, "stat": stat}
    return {f"sys/fs/cgroup/{folder}memory.{name}": f"{value}\n" for name, value in files.items()}


def _old_group(folder: str, limit: int, used: int, cached: int) -> dict[str, str]:
    """A control group of version 1."""
    files = {"limit_in_bytes": limit * KIB, "usage_in_bytes": used * KIB, "stat": f"total_inactive_file {cached * KIB}"}
    return {f"sys/fs/cgroup/{folder}memory.{name}": f"{value}\n" for name, value in files.items()}


def _write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (MACHINE, 4000),
        ({**MACHINE, "proc/self/cgroup": "0::/job\n"}, 4000),
        ({**MACHINE, "proc/self/cgroup": "0::/job\n", **_group("job/", "max", 100, 0)}, 4000),
        ({**MACHINE, "proc/self/cgroup": "0::/job\n", **_group("job/", 1000, 700, 0)}, 300),
        # The kernel gives unused file cache back before it runs out of memory.
        ({**MACHINE, "proc/self/cgroup": "0::/job\n", **_group("job/", 1000, 700, 500)}, 800),
        ({**MACHINE, "proc/self/cgroup": "0::/job\n", **_group("job/", 9000, 700, 500)}, 4000),
        ({**MACHINE, "proc/self/cgroup": "0::/job\n", **_group("job/", 600, 700, 0)}, 0),
        # The limit of a group around that of the process holds as well.
        (
            {
                **MACHINE,
                "proc/self/cgroup": "0::/job/step\n",
                **_group("job/", 1000, 900, 0),
                **_group("job/step/", 2000, 100, 0),
            },
            100,
        ),
        # In a container without a namespace of its own, the path is the host's and the mounted root is the group.
        ({**MACHINE, "proc/self/cgroup": "0::/docker/1f2e\n", **_group("", 1000, 100, 0)}, 900),
        (
            {
                **MACHINE,
                "proc/self/cgroup": "5:memory:/job\n4:cpu,cpuacct:/other\n0::/\n",
                **_old_group("memory/", 2**50, 0, 0),
                **_old_group("memory/job/", 1000, 800, 300),
                **_old_group("memory/other/", 10, 5, 0),
            },
            500,
        ),
        ({**MACHINE, "proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "what is this\n"}, 4000),
    ],
)
def test_limits_of_control_groups(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    _write(tmp_path, files)
    assert available_memory({}, tmp_path) == expected * KIB


@pytest.mark.parametrize(
    ("environment", "processes"),
    [
        ({"LOCAL_WORLD_SIZE": "4"}, 4),
        ({"DENETDM_PROCESSES": "8"}, 8),
        ({"LOCAL_WORLD_SIZE": "1", "DENETDM_PROCESSES": "2"}, 2),
        ({"LOCAL_WORLD_SIZE": "many", "DENETDM_PROCESSES": "0"}, 1),
    ],
)
def test_processes_side_by_side_share_the_memory(tmp_path: Path, environment: dict[str, str], processes: int) -> None:
    _write(tmp_path, MACHINE)
    assert available_memory(environment, tmp_path) == 4000 * KIB // processes


def test_what_workers_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DENETDM_PROCESSES", "DENETDM_PROCESSES_PER_DEVICE"):
        monkeypatch.setenv(name, "1")
    _write(tmp_path, MACHINE)
    announce_processes(5, 2)
    assert available_memory(root=tmp_path) == 800 * KIB
    assert processes_per_device() == 3


def test_systems_that_say_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PHYS_PAGES": 10, "SC_PAGE_SIZE": 4096}[name], raising=False)
    assert available_memory({}, tmp_path) == 40960
    _write(tmp_path, {"proc/meminfo": "MemTotal:  100 kB\n"})
    assert available_memory({}, tmp_path) == 40960
    monkeypatch.delattr(os, "sysconf")
    assert available_memory({}, tmp_path) is None
