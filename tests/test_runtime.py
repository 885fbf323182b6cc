import os

import pytest
import torch

from denetdm_cli.errors import ConfigError
from denetdm_cli.runtime import derive_seed, generator, resolve_device, use_threads


def test_threads_are_never_more_than_cores() -> None:
    before = torch.get_num_threads()
    try:
        use_threads(1000)
        assert torch.get_num_threads() == os.cpu_count()
        use_threads(1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_each_purpose_has_a_seed_of_its_own() -> None:
    seeds = {derive_seed(seed, *names) for seed in (0, 1) for names in (("a",), ("b",), ("a", 1), ("a", 2))}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert torch.equal(torch.randperm(9, generator=generator(3, "x")), torch.randperm(9, generator=generator(3, "x")))


def test_a_device_that_is_not_here() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="'cuda:99' is not on this machine"):
        resolve_device("cuda:99")
