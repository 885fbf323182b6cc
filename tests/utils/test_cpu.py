"""How many CPU threads a process may use, told from made-up control groups, bindings and environments."""

import os
from pathlib import Path

import pytest

from denetdm_cli.utils import cpu as allotment
from denetdm_cli.utils.cpu import limit_library_threads, thread_limit


@pytest.fixture(autouse=True)
def _bound_to_sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)


def _write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 16),
        ({"proc/self/cgroup": "0::/job/step\n"}, 16),
        ({"proc/self/cgroup": "0::/job/step\n", "sys/fs/cgroup/job/step/cpu.max": "max 100000\n"}, 16),
        ({"proc/self/cgroup": "0::/job/step\n", "sys/fs/cgroup/job/step/cpu.max": "300000 100000\n"}, 3),
        # The quota of a group around that of the process holds as well.
        (
            {
                "proc/self/cgroup": "0::/job/step\n",
                "sys/fs/cgroup/job/cpu.max": "250000 100000\n",
                "sys/fs/cgroup/job/step/cpu.max": "800000 100000\n",
            },
            2,
        ),
        # A quota below one CPU still leaves a thread.
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        # In a container without a namespace of its own, the path is the host's and the mounted root is the group.
        ({"proc/self/cgroup": "0::/docker/1f2e\n", "sys/fs/cgroup/cpu.max": "400000 100000\n"}, 4),
        (
            {
                "proc/self/cgroup": "5:memory:/job\n4:cpu,cpuacct:/job\n0::/\n",
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "500000\n",
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/memory/job/cpu.cfs_quota_us": "100000\n",
                "sys/fs/cgroup/memory/job/cpu.cfs_period_us": "100000\n",
            },
            5,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/job\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "700000\n",
                "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000\n",
            },
            7,
        ),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "what is this\n"}, 16),
    ],
)
def test_quotas_of_control_groups(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    _write(tmp_path, files)
    assert thread_limit({}, tmp_path) == expected


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"SLURM_CPUS_PER_TASK": "4"}, 4),
        ({"OMP_NUM_THREADS": "2"}, 2),
        ({"OMP_NUM_THREADS": "6,2"}, 6),
        ({"SLURM_CPUS_PER_TASK": "4", "OMP_NUM_THREADS": "8"}, 4),
        ({"SLURM_CPUS_PER_TASK": "64"}, 16),
        ({"SLURM_CPUS_PER_TASK": "", "OMP_NUM_THREADS": "many"}, 16),
        ({"OMP_NUM_THREADS": "0"}, 16),
    ],
)
def test_what_the_environment_says(tmp_path: Path, environment: dict[str, str], expected: int) -> None:
    assert thread_limit(environment, tmp_path) == expected


def test_what_the_process_is_bound_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 8})
    assert thread_limit({}, tmp_path) == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert thread_limit({}, tmp_path) == 12


def test_libraries_are_told_before_they_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    monkeypatch.setattr(allotment, "thread_limit", lambda: 3)
    limit_library_threads()
    assert os.environ["OMP_NUM_THREADS"] == "3"
