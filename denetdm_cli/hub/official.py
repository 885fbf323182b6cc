"""The state dicts of the official code: recognition, and renaming to the names of denetdm and back."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from denetdm_cli.config.schema import (
    BranchConfig,
    CifarResnetConfig,
    CnnConfig,
    MlpConfig,
    ModelConfig,
    TorchvisionConfig,
)
from denetdm_cli.methods.denetdm.models import ProductOfExperts, TargetModel
from denetdm_cli.models.state_dict import COUNTER, describe_differences, tensor_differences
from denetdm_cli.utils.errors import CheckpointError

Dataset: TypeAlias = Literal["coloredmnist", "corruptedcifar10", "bffhq"]
Stage: TypeAlias = Literal["train-poe", "distill"]


@dataclass(frozen=True)
class Official:
    """A kind of state dict that the official code writes; there are six."""

    dataset: Dataset
    stage: Stage

    def __str__(self) -> str:
        return f"{self.dataset}, stage {1 if self.stage == 'train-poe' else 2} ({self.stage})"


@dataclass(frozen=True)
class Architecture:
    """The networks of the official code for a data set.

    Attributes:
        model: the branches, without start weights.
        image_shape: (H, W, C).
        classes: number of target classes.
    """

    model: ModelConfig
    image_shape: tuple[int, int, int]
    classes: int


def _mlp(depth: int) -> BranchConfig:
    return MlpConfig(name="mlp", depth=depth, width=100)


def _resnet18(width: int) -> BranchConfig:
    return TorchvisionConfig(name="resnet18", weights=None, width=width)


ARCHITECTURES: dict[Dataset, Architecture] = {
    "coloredmnist": Architecture(ModelConfig(shallow=_mlp(3), deep=_mlp(5), target=_mlp(5)), (28, 28, 3), 10),
    "corruptedcifar10": Architecture(
        ModelConfig(
            shallow=CnnConfig(name="cnn", depth=3, width=64),
            deep=CifarResnetConfig(name="cifar_resnet", depth=20),
            target=_resnet18(64),
        ),
        (32, 32, 3),
        10,
    ),
    "bffhq": Architecture(
        ModelConfig(
            shallow=CnnConfig(name="cnn", depth=4, width=512),
            deep=_resnet18(512),
            target=_resnet18(512),
        ),
        (224, 224, 3),
        2,
    ),
}
"""Official code, and paper, appendix."""


_Prefixes: TypeAlias = dict[str, tuple[str, ...]]


def _mlp_names(ours: str, first: str, hidden: str, depth: int) -> _Prefixes:
    rest = {f"{ours}.layers.{i + 1}": (f"{hidden}.hidden_layers.{i}",) for i in range(depth - 2)}
    return {f"{ours}.layers.0": (first,), **rest}


def _cnn_names(depth: int) -> _Prefixes:
    layers = range(1, depth + 1)
    return {
        f"shallow.{ours}{i}": (f"debias_branch.{theirs}{i}",)
        for i in layers
        for ours, theirs in (("conv", "c"), ("bn", "b"))
    }


_MLP_DEEP = _mlp_names("deep", "bias_branch.0", "bias_branch.2", 5)
_DEEP: _Prefixes = {"deep": ("bias_branch",)}
_PREFIXES: dict[Official, _Prefixes] = {
    Official("coloredmnist", "train-poe"): {
        **_mlp_names("shallow", "debias_branch.c1", "debias_branch.s1", 3),
        **_MLP_DEEP,
    },
    Official("coloredmnist", "distill"): {
        **_mlp_names("target", "debias_branch.c2", "debias_branch.s2", 5),
        **_MLP_DEEP,
    },
    Official("corruptedcifar10", "train-poe"): {**_cnn_names(3), **_DEEP},
    Official("corruptedcifar10", "distill"): {
        "target.fc": ("debias_branch.l1",),
        "target": ("debias_backbone", "debias_branch.b1"),
        **_DEEP,
    },
    Official("bffhq", "train-poe"): {**_cnn_names(4), **_DEEP},
    Official("bffhq", "distill"): {"target": ("debias_branch",), **_DEEP},
}
"""Modules of denetdm to those of the official code; a module with several names is stored once under each."""
OFFICIAL_MODELS = tuple(_PREFIXES)


def recognise(state: Mapping[str, Tensor], origin: str = "the state dict") -> Official:
    """The kind of an official state dict, by the names and shapes of its tensors.

    All counters of batch normalisation may be missing, as in files of torch before 0.4.1.

    Args:
        state: tensors, by the names of the official code.
        origin: the name of the state dict in messages.
    Raises:
        CheckpointError: it is none of the six; the message names the nearest and the differences.
    """
    found = {kind: tensor_differences(state, _expected(state, kind)) for kind in OFFICIAL_MODELS}
    for kind, different in found.items():
        if not any(different.values()):
            return kind

    def likeness(kind: Official) -> float:
        names, expected = state.keys(), _official_tensors(kind).keys()
        return (len(names & expected) - len(found[kind]["of another shape or type"]) / 2) / len(names | expected)

    nearest = max(OFFICIAL_MODELS, key=likeness)
    raise CheckpointError(
        f"{origin} is none of the official code's models; the nearest is {nearest}; "
        f"{describe_differences(found[nearest])}",
        "Give a model made by the official code for Colored MNIST, Corrupted CIFAR-10 or BFFHQ, stage 1 or 2.",
    )


def to_ours(state: Mapping[str, Tensor], kind: Official, origin: str = "the state dict") -> dict[str, Tensor]:
    """Rename the tensors of an official state dict to the names of denetdm, as new float32 tensors (counters int64).

    16-bit tensors are widened, which is exact. Missing counters (see `recognise`) are set to 0, as torch does.

    Args:
        state: as for `recognise`.
        kind: the kind of `state`.
        origin: the name of the state dict in messages.
    Raises:
        CheckpointError: tensors are missing, extra or of another shape, two copies of one tensor differ, or a value
            is not finite.
    """
    _require(state, _expected(state, kind), kind, origin)
    ours: dict[str, Tensor] = {}
    for name, (first, *others) in _names(kind).items():
        if first not in state:
            ours[name] = torch.zeros((), dtype=torch.int64)
            continue
        for other in others:
            if not torch.equal(state[first], state[other]):
                raise CheckpointError(
                    f"{origin}: {first} and {other} are one tensor in the official model, but differ here",
                    "Give the file as the official code wrote it.",
                )
        tensor = state[first].detach().clone(memory_format=torch.contiguous_format)
        if not tensor.isfinite().all():
            raise CheckpointError(
                f"{origin}: {first} holds values that are not finite", "Give a model whose training did not diverge."
            )
        ours[name] = tensor.float() if tensor.is_floating_point() else tensor
    return ours


def to_official(tensors: Mapping[str, Tensor], kind: Official, origin: str = "the model") -> dict[str, Tensor]:
    """Rename the tensors of a model to a state dict that the official module loads with strict=True.

    Args:
        tensors: by the names of denetdm.
        kind: the official state dict to make.
        origin: the name of the model in messages.
    Raises:
        CheckpointError: tensors are missing, extra or of another shape.
    """
    _require(tensors, _our_tensors(kind), kind, origin)
    return {theirs: tensors[ours] for ours, names in _names(kind).items() for theirs in names}


@functools.cache
def _our_tensors(kind: Official) -> dict[str, Tensor]:
    """The state dict of the model of denetdm, on the meta device."""
    architecture = ARCHITECTURES[kind.dataset]
    height, width, channels = architecture.image_shape
    build = ProductOfExperts if kind.stage == "train-poe" else TargetModel
    with torch.device("meta"):
        model = build(architecture.model, (channels, height, width), architecture.classes, seed=0)
    return dict(model.state_dict())


@functools.cache
def _names(kind: Official) -> dict[str, tuple[str, ...]]:
    """The name of each tensor in denetdm to its names in the official state dict."""
    prefixes = {**_PREFIXES[kind], "head": ("classifier",)}
    names: dict[str, tuple[str, ...]] = {}
    for name in _our_tensors(kind):
        prefix = next(prefix for prefix in prefixes if name.startswith(f"{prefix}."))  # target.fc before target
        names[name] = tuple(theirs + name.removeprefix(prefix) for theirs in prefixes[prefix])
    return names


@functools.cache
def _official_tensors(kind: Official) -> dict[str, Tensor]:
    tensors = _our_tensors(kind)
    return {theirs: tensors[ours] for ours, names in _names(kind).items() for theirs in names}


def _expected(state: Mapping[str, Tensor], kind: Official) -> dict[str, Tensor]:
    """The tensors that a state dict of this kind must hold; see `recognise` for the counters."""
    tensors = _official_tensors(kind)
    if any(name.endswith(COUNTER) for name in state):
        return tensors
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(COUNTER)}


def _require(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], kind: Official, origin: str) -> None:
    if different := describe_differences(tensor_differences(found, expected)):
        raise CheckpointError(
            f"{origin} is not {kind}; {different}", "Give an unaltered file of the model it is said to be."
        )
