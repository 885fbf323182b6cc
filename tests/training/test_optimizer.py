import pytest
import torch
from torch import nn

from denetdm_cli.training.optimizer import Adam


def _parameters() -> list[nn.Parameter]:
    random = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=random)) for shape in ((30, 20), (30,), (3, 3))]


def _train(parameters: list[nn.Parameter], optimizer: Adam | torch.optim.Adam, steps: range) -> None:
    for step in steps:
        random = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=random)
        optimizer.step()


@pytest.mark.parametrize("weight_decay", [0.0, 1e-3, 0.5])
def test_it_computes_what_torch_adam_computes(weight_decay: float) -> None:
    ours, theirs = _parameters(), _parameters()
    _train(ours, Adam(ours, 1e-2, weight_decay), range(60))
    _train(theirs, torch.optim.Adam(theirs, lr=1e-2, weight_decay=weight_decay), range(60))
    for found, expected, start in zip(ours, theirs, _parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        assert (found - start).abs().max() > 0.05


def test_state_brings_back_the_same_bits() -> None:
    straight, stopped = _parameters(), _parameters()
    _train(straight, Adam(straight, 1e-2, 1e-3), range(20))
    first = Adam(stopped, 1e-2, 1e-3)
    _train(stopped, first, range(9))
    state = {name: tensor.clone() for name, tensor in first.state().items()}
    second = Adam(stopped, 1e-2, 1e-3)
    second.load_state(state)
    _train(stopped, second, range(9, 20))
    assert all(torch.equal(a, b) for a, b in zip(straight, stopped, strict=True))
