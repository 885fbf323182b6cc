"""The contract of a method: what the training loop, evaluation, checkpoints and commands know of it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from typing_extensions import Self

from denetdm_cli.config.schema import MethodSettings, ModelConfig
from denetdm_cli.data.batches import Batch, Batches
from denetdm_cli.models.classifier import Classifier
from denetdm_cli.utils.distributed import SINGLE_PROCESS, Ranks


@dataclass(frozen=True)
class Task:
    """What a method is built for; N training images, C classes.

    Attributes:
        networks: the branches by name.
        image_shape: (channels, height, width).
        classes: number of target classes.
        biases: number of bias values.
        seed: determines every initial weight.
        device: where the networks go.
        start_weights: load the weights that branches start from; for a new run only.
        target: (N,) int64 on the CPU, classes of the training images; empty where a checkpoint is only read.
        bias: (N,) int64 on the CPU, their bias values; None unless the method needs them.
        ranks: the processes that train together.
    """

    networks: ModelConfig
    image_shape: tuple[int, int, int]
    classes: int
    biases: int
    seed: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    start_weights: bool = False
    target: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    bias: Tensor | None = None
    ranks: Ranks = SINGLE_PROCESS


class Loaders(Protocol):
    """The images of a run."""

    @property
    def train(self) -> Batches:
        """The training split."""

    @property
    def reported(self) -> Batches:
        """The split that results are reported on."""


def warnings_in(record: Mapping[str, Any]) -> list[str]:
    """The warnings of all diagnostics in a record, the metadata of a checkpoint, or a rule of results.json."""
    found = (value.get("warnings", []) for value in record.values() if isinstance(value, Mapping))
    return [warning for warnings in found for warning in warnings]


class Method(ABC):
    """A way to train a classifier. A subclass is one file; `METHODS` lists them.

    Class attributes:
        name: of the command, the run folder and, with underscores, the section of the configuration.
        title: one line for help and docs.
        paper: where the method was published, in Markdown; "" for nowhere.
        Settings: the section of the configuration.
        predictors: names of what `predict` gives; the first is reported and exported.
        branches: the networks of the section `model` that it trains.
        starts_from: the method whose finished run it starts from.
        needs_bias: whether it trains on bias labels; `Batch.bias` is there then.
        exports: whether its first predictor is a model to ship.
        diagnostics: keys of what `diagnose` gives.
    Attributes:
        model: everything that goes into a checkpoint; frozen parts need no gradient and ignore `train()`.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str] = ""
    Settings: ClassVar[type[MethodSettings]]
    predictors: ClassVar[tuple[str, ...]]
    branches: ClassVar[tuple[str, ...]] = ("target",)
    starts_from: ClassVar[str | None] = None
    needs_bias: ClassVar[bool] = False
    exports: ClassVar[bool] = True
    diagnostics: ClassVar[tuple[str, ...]] = ()
    model: nn.Module

    @classmethod
    @abstractmethod
    def build(cls, task: Task, settings: Any, previous: "Method | None" = None) -> Self:
        """A method with fresh weights, on the device of the task.

        Args:
            task: the data and the networks.
            settings: of the type `Settings`.
            previous: what `starts_from` trained; None where a checkpoint is only read.
        """

    @abstractmethod
    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Loss terms by name, weighted, (B,) each: one value an image. The loop minimizes the sum of their means."""

    @abstractmethod
    def predict(self, x: Tensor) -> dict[str, Tensor]:
        """Logits (B, classes) by predictor for images (B, C, H, W)."""

    def predict_all(self, x: Tensor) -> dict[str, Tensor]:
        """As `predict`, with predictors besides that `evaluate` shows."""
        return self.predict(x)

    def classifier(self) -> Classifier:
        """Network and head of the first predictor, as exported; they share their weights with `model`."""
        raise NotImplementedError(f"{self.name} is not exported")

    def prepare(self, train: Batches) -> None:  # noqa: B027 - most methods need nothing
        """Compute what the method needs of the training images before the first step, also of a resumed run."""

    def sample_weights(self) -> Tensor | None:
        """(N,) on the CPU, how often an image is drawn in an epoch.

        int64: exactly so many times. Floating point: N draws with replacement, in proportion. None: each once.
        """
        return None

    def state_dict(self) -> dict[str, Tensor]:
        """Per-image tensors that an exact resume needs; they are in the resume state, never in a checkpoint."""
        return {}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:  # noqa: B027 - most have no such tensors
        """The inverse of `state_dict`.

        Raises:
            KeyError: a tensor is missing.
        """

    def diagnose(self, loaders: Loaders) -> dict[str, Any]:  # noqa: ARG002 - for methods that look at images
        """Findings after an epoch by the keys of `diagnostics`; the entry `warnings` of each is shown to the user."""
        return {}
