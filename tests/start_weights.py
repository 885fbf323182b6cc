"""Branches that start from files of weights, for the tests of what is taken and refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from denetdm_cli.config.schema import TorchvisionConfig
from denetdm_cli.models.factory import build_branch
from denetdm_cli.utils.errors import UserError

SMALL = "shufflenet_v2_x0_5"


State = dict[str, Tensor]


def section(weights: object, name: str = SMALL, width: int = 7) -> TorchvisionConfig:
    return TorchvisionConfig(name=name, weights=None if weights is None else str(weights), width=width)


def build(weights: object, name: str = SMALL, width: int = 7, *, start_weights: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return build_branch(section(weights, name, width), (3, 64, 64), start_weights=start_weights)


def refused(kind: type[UserError], weights: object, name: str = SMALL) -> UserError:
    with pytest.raises(UserError) as error:
        build(weights, name)
    assert type(error.value) is kind
    return error.value


def saved(path: Path, name: str = SMALL, change: Callable[[State], object] = lambda state: None) -> Path:
    torch.manual_seed(1)
    state = models.get_model(name, weights=None).state_dict()
    change(state)
    if path.suffix == ".safetensors":
        save_file(dict(state), path)
    else:
        torch.save(state, path)
    return path
