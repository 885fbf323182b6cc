"""Ranks: what goes over which group, and that rank 0 alone reads and writes the run folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import distributed
from two_ranks import run_two_ranks

from denetdm_cli.utils.distributed import Ranks, from_environment, process_group
from denetdm_cli.utils.errors import ConfigError

BOTH_RANKS = """
import torch
from torch import nn
from denetdm_cli.utils.distributed import from_environment, process_group
from denetdm_cli.utils.errors import DataError

ranks = from_environment()
with process_group(ranks, torch.device("cpu")):
"""


def on_two_ranks(body: str) -> list[str]:
    """What each of two Gloo ranks prints; `body` has `ranks`."""
    program = BOTH_RANKS + "".join(f"    {line}\n" for line in body.strip().splitlines())
    ranks = run_two_ranks(program)
    assert [code for code, _, _ in ranks] == [0, 0], ranks
    return [out.strip() for _, out, _ in ranks]


class Calls:
    """Stands in for torch.distributed where there is no GPU, and records what is called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[tuple[str, Any]] = []
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: self.made.append(("set_device", device)))
        for name in ("init_process_group", "new_group", "destroy_process_group", "all_reduce", "broadcast_object_list"):
            monkeypatch.setattr(distributed, name, self._recorder(name))

    def _recorder(self, name: str) -> Any:
        def record(*arguments: Any, **options: Any) -> str:
            options.pop("timeout", None)
            self.made.append((name, [*(a for a in arguments if isinstance(a, str)), options]))
            return "the control group"

        return record


class TestOnGpus:
    DEVICE = torch.device("cuda:1")

    @contextmanager
    def connected(self, calls: Calls) -> Iterator[Ranks]:
        ranks = Ranks(1, 2, 1, 2)
        with process_group(ranks, self.DEVICE):
            yield ranks
        assert calls.made.pop() == ("destroy_process_group", [{}])

    def test_nccl_is_bound_to_the_gpu_of_the_rank(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = Calls(monkeypatch)
        with self.connected(calls):
            assert calls.made == [
                ("set_device", self.DEVICE),
                ("init_process_group", ["nccl", {"device_id": self.DEVICE}]),
                ("new_group", [{"backend": "gloo"}]),
            ]

    def test_control_messages_go_over_gloo_and_gradients_over_nccl(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = Calls(monkeypatch)
        with self.connected(calls) as ranks:
            del calls.made[:]
            ranks.all_reduce_max(1.0)
            ranks.run_on_main(lambda: None)
            ranks.all_reduce_sum(torch.zeros(1))
            assert [arguments[-1]["group"] for _, arguments in calls.made] == ["the control group"] * 3

            class OnGpu(torch.Tensor):
                is_cuda = True

            del calls.made[:]
            ranks.all_reduce_sum(torch.zeros(1).as_subclass(OnGpu))
            assert calls.made == [("all_reduce", [{"group": None}])], "the default group, which is NCCL"

    def test_a_single_process_takes_its_gpu_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = Calls(monkeypatch)
        with process_group(Ranks(0, 1, 0, 1), self.DEVICE):
            assert calls.made == [("set_device", self.DEVICE)]


@pytest.mark.slow
def test_on_the_cpu_both_groups_are_gloo() -> None:
    body = """
from torch import distributed as d
from denetdm_cli.utils import distributed as ours
print(d.get_backend(), d.get_backend(ours._control), ours._control is not d.group.WORLD)
ranks.all_reduce_max(0)
"""
    assert on_two_ranks(body) == ["gloo gloo True"] * 2


@pytest.mark.slow
def test_messages_of_two_ranks() -> None:
    body = """
work = []
print(ranks.all_reduce_max(ranks.rank * 2.5), ranks.all_reduce_mean(torch.tensor([1.0 + ranks.rank])).tolist())
print(ranks.run_on_main(lambda: work.append(1) or ("seen by", ranks.rank)), len(work))
module = nn.BatchNorm1d(2)
module.running_mean += 1 + ranks.rank
module.num_batches_tracked += 1 + ranks.rank
ranks.broadcast_buffers(module)
print(module.running_mean.tolist(), int(module.num_batches_tracked))
def fail(): raise DataError("wrong", "mend it")
try: ranks.run_on_main(fail)
except DataError as error: print(error.what, error.reported)
def missing(): raise FileNotFoundError(2, "No such file", "there")
try: ranks.run_on_main(missing)
except Exception as error: print(type(error).__name__, error.what)
"""
    main, other = on_two_ranks(body)
    assert main.splitlines() == [
        "2.5 [1.5]", "('seen by', 0) 1", "[1.0, 1.0] 1", "wrong False", "StorageError there: No such file",
    ]  # fmt: skip
    assert other.splitlines() == [
        "2.5 [1.5]", "('seen by', 0) 0", "[1.0, 1.0] 1", "wrong True", "StorageError there: No such file",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "variables",
    [{"RANK": "0"}, {"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}, {"WORLD_SIZE": "x"}],
)
def test_variables_that_contradict_each_other(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="not as torchrun does"):
        from_environment()


def test_variables_as_torchrun_sets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert from_environment() == Ranks(0, 1, 0, 1)
    for name, value in {"RANK": 3, "WORLD_SIZE": 4, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    assert from_environment() == Ranks(3, 4, 1, 2)
    assert not from_environment().is_main


@pytest.mark.slow
def test_values_of_single_images_are_gathered_from_both_ranks() -> None:
    printed = on_two_ranks("""
index = torch.arange(3 - ranks.rank) * 2 + ranks.rank
loss = index.float()[:, None].repeat(1, 2) / 10
print(ranks.all_gather(index).tolist(), ranks.all_gather(loss)[:, 1].mul(10).round().int().tolist())
""")
    assert printed == ["[0, 2, 4, 1, 3] [0, 2, 4, 1, 3]"] * 2
