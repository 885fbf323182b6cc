"""Optimizers by name, and their state as named tensors."""

import pytest
import torch
from torch import Tensor, nn

from denetdm_cli.config.schema import MethodSettings
from denetdm_cli.training.optimizer import build_optimizer, load_optimizer_state, optimizer_state

NAMES = ["Adam", "AdamW", "NAdam", "RAdam", "RMSprop", "SGD", "Adagrad", "Adadelta", "Adamax"]


def settings(name: str = "Adam", **changes: float) -> MethodSettings:
    values = {"learning_rate": 1e-2, "weight_decay": 1e-3, "momentum": 0.9, **changes}
    return MethodSettings(optimizer=name, selection_metric="target.unbiased", **values)


def parameters() -> list[nn.Parameter]:
    random = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=random)) for shape in ((30, 20), (30,), (3, 3))]


def train(some: list[nn.Parameter], optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        random = torch.Generator().manual_seed(step)
        for parameter in some:
            parameter.grad = torch.randn(parameter.shape, generator=random)
        optimizer.step()


@pytest.mark.parametrize("weight_decay", [0.0, 1e-3, 0.5])
def test_adam_has_the_published_settings(weight_decay: float) -> None:
    ours, theirs = parameters(), parameters()
    train(ours, build_optimizer(settings(weight_decay=weight_decay), ours), range(60))
    plain = torch.optim.Adam(theirs, lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=weight_decay, foreach=False)
    train(theirs, plain, range(60))
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_sgd_has_the_momentum_of_the_settings() -> None:
    (group,) = build_optimizer(settings("SGD", momentum=0.8), parameters()).param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (1e-2, 0.8, 1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_state_brings_back_the_same_bits(name: str) -> None:
    straight, stopped = parameters(), parameters()
    train(straight, build_optimizer(settings(name), straight), range(20))
    first = build_optimizer(settings(name), stopped)
    train(stopped, first, range(9))
    state = {key: tensor.clone() for key, tensor in optimizer_state(first).items()}
    second = build_optimizer(settings(name), stopped)
    load_optimizer_state(second, state)
    train(stopped, second, range(9, 20))
    assert all(torch.equal(a, b) for a, b in zip(straight, stopped, strict=True))


def trained_state() -> dict[str, Tensor]:
    some = parameters()
    optimizer = build_optimizer(settings(), some)
    train(some, optimizer, range(3))
    return optimizer_state(optimizer)


def test_a_state_of_version_0_1_is_read() -> None:
    today = trained_state()
    old = {"step": today["0.step"]}
    old |= {f"mean.{k}": today[f"{k}.exp_avg"] for k in range(3)}
    old |= {f"square.{k}": today[f"{k}.exp_avg_sq"] for k in range(3)}
    optimizer = build_optimizer(settings(), parameters())
    load_optimizer_state(optimizer, old)
    found = optimizer_state(optimizer)
    assert found.keys() == today.keys()
    assert all(torch.equal(found[key], today[key]) for key in today)


@pytest.mark.parametrize("spoil", ["missing", "extra", "shape"])
def test_a_state_of_another_optimizer_is_refused(spoil: str) -> None:
    state = trained_state()
    if spoil == "missing":
        del state["1.exp_avg"]
    elif spoil == "extra":
        state["3.exp_avg"] = torch.zeros(2)
    else:
        state["1.exp_avg"] = torch.zeros(2)
    with pytest.raises(ValueError, match="exp_avg"):
        load_optimizer_state(build_optimizer(settings(), parameters()), state)
