import pytest
import torch

from denetdm_cli.config.schema import Config
from denetdm_cli.data.store import StoredDataset
from denetdm_cli.training import stages
from denetdm_cli.utils import device as runtime
from denetdm_cli.utils.device import resolve_device, use_threads
from denetdm_cli.utils.errors import ConfigError
from denetdm_cli.utils.seed import derive_seed, generator


@pytest.mark.parametrize(("count", "used"), [(0, 3), (1, 1), (2, 2), (3, 3), (1000, 3)])
def test_threads_are_never_more_than_the_allotment(monkeypatch: pytest.MonkeyPatch, count: int, used: int) -> None:
    monkeypatch.setattr(runtime, "thread_limit", lambda: 3)
    monkeypatch.setattr(runtime, "available_cores", lambda: 4)
    before = torch.get_num_threads()
    try:
        use_threads(count)
        assert torch.get_num_threads() == used
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


def test_only_visible_gpus_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,7")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)  # what torch makes of it where there are that many
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ConfigError, match=r"cpu, cuda:0, cuda:1\b.* CUDA_VISIBLE_DEVICES is '6,7'") as refused:
        resolve_device("cuda:7")
    assert "'cuda:7'" in refused.value.what


def test_a_training_takes_deterministic_kernels(
    tiny_config: Config, tiny_dataset: StoredDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    next(iter(stages.train("train-poe", tiny_config, tiny_dataset)))
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark
