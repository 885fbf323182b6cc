"""The optimizer of a method: one of torch.optim, by name, with its state as named tensors."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from denetdm_cli.config.schema import MethodSettings

_FUSED = ("Adam", "AdamW", "SGD")


def build_optimizer(settings: MethodSettings, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer that the settings name, with those of their values that it takes.

    Args:
        settings: `optimizer`, `learning_rate`, `momentum` and `weight_decay` of a method.
        parameters: what is trained.
    """
    kind: type[torch.optim.Optimizer] = getattr(torch.optim, settings.optimizer)
    values = {"lr": settings.learning_rate, "momentum": settings.momentum, "weight_decay": settings.weight_decay}
    accepted = inspect.signature(kind).parameters
    options: dict[str, Any] = {name: value for name, value in values.items() if name in accepted}
    if settings.optimizer in _FUSED:
        options["fused"] = True  # one kernel for all parameters
    return kind(parameters, **options)


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What the optimizer remembers, as `<number of the parameter>.<torch's name>`; empty before the first step."""
    states: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": value
        for number, state in states.items()
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def load_optimizer_state(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_state`; also reads the names that version 0.1 wrote for Adam.

    Raises:
        ValueError: names or shapes are not those of this optimizer.
    """
    parameters = optimizer.param_groups[0]["params"]
    tensors = _renamed(tensors, len(parameters))
    scalars = {"step", "mu_product", "eta", "mu"}
    expected = {f"{number}.{name}" for number in range(len(parameters)) for name in _state_names(optimizer)}
    if tensors and tensors.keys() != expected:
        raise ValueError(f"the state of the optimizer has other tensors: {sorted(tensors.keys() ^ expected)[:4]}")
    states: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        if name not in scalars and tensor.shape != parameters[int(number)].shape:
            raise ValueError(f"{key} of the optimizer has the shape {list(tensor.shape)}")
        states.setdefault(int(number), {})[name] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})


def _state_names(optimizer: torch.optim.Optimizer) -> set[str]:
    """Names of the tensors it keeps for a parameter, found by a step on a parameter of one number."""
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    accepted = inspect.signature(type(optimizer)).parameters
    options = {name: value for name, value in optimizer.defaults.items() if name in accepted}
    trial = type(optimizer)([parameter], **options)
    trial.step()
    return {name for name, value in trial.state[parameter].items() if isinstance(value, Tensor)}


def _renamed(tensors: Mapping[str, Tensor], parameters: int) -> dict[str, Tensor]:
    """The names of today for a state of version 0.1: one `step`, and `mean.<k>` and `square.<k>`."""
    if "step" not in tensors:
        return dict(tensors)
    today = {"mean": "exp_avg", "square": "exp_avg_sq"}
    moments = (key.split(".") for key in tensors if key != "step")
    found = {f"{number}.{today.get(name, name)}": tensors[f"{name}.{number}"] for name, number in moments}
    return found | {f"{number}.step": tensors["step"].clone() for number in range(parameters)}
