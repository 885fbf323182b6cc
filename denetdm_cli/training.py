"""The only training loop. It yields events and prints nothing."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from denetdm_cli.data.batches import Batches
from denetdm_cli.errors import NumericError
from denetdm_cli.methods.base import Method
from denetdm_cli.optimizer import Adam
from denetdm_cli.runtime import derive_seed, generator
from denetdm_cli.schema import StageConfig

_SECONDS_BETWEEN_EVENTS = 0.2


@dataclass(frozen=True)
class Progress:
    """Within an epoch, a few times a second.

    Attributes:
        epoch: from 1.
        images: seen in this epoch.
        loss: of the newest step.
    """

    epoch: int
    images: int
    loss: float


@dataclass(frozen=True)
class EpochEnd:
    """After the last step of an epoch.

    Attributes:
        epoch: from 1.
        losses: mean over the images of the epoch, by term, and their sum as `total`.
        images: seen in this epoch.
        seconds: wall time of the epoch's training.
    """

    epoch: int
    losses: dict[str, float]
    images: int
    seconds: float


def make_optimizer(method: Method, stage: StageConfig) -> Adam:
    """Adam over everything that is not frozen (as in DeNetDM's code)."""
    trainable = (parameter for parameter in method.model.parameters() if parameter.requires_grad)
    return Adam(trainable, stage.learning_rate, stage.weight_decay)


def fit(
    method: Method,
    batches: Batches,
    stage: StageConfig,
    optimizer: Adam,
    *,
    seed: int,
    first_epoch: int = 1,
) -> Iterator[Progress | EpochEnd]:
    """Train from `first_epoch` to the last, one event at a time.

    The order of epoch e depends on `seed` and e alone, so a resumed run sees what an uninterrupted one sees.

    Raises:
        NumericError: a loss is not finite; says epoch and step.
    """
    # Dropout and stochastic depth can only draw from torch's own streams; the caller's are put back at the end.
    with torch.random.fork_rng(devices=[batches.device] if batches.device.type == "cuda" else []):
        for epoch in range(first_epoch, stage.epochs + 1):
            torch.manual_seed(derive_seed(seed, "noise", epoch))
            method.model.train()
            yield from _epoch(method, batches, stage, optimizer, generator(seed, "order", epoch), epoch)


def _epoch(
    method: Method,
    batches: Batches,
    stage: StageConfig,
    optimizer: Adam,
    order: torch.Generator,
    epoch: int,
) -> Iterator[Progress | EpochEnd]:
    began = told = time.perf_counter()
    images = 0
    names: list[str] = []
    sizes: list[int] = []
    history: list[torch.Tensor] = []  # of every step, on the device: reading a loss at every step would wait for it
    checked = 0
    for batch in batches.shuffled(stage.batch_size, order, drop_last=stage.drop_last):
        terms = method.losses(batch)
        optimizer.zero_grad()
        torch.autograd.backward(list(terms.values()))  # the gradient of their sum
        optimizer.step()

        names = list(terms)
        sizes.append(len(batch.y))
        history.extend(term.detach() for term in terms.values())
        images += len(batch.y)
        if time.perf_counter() - told > _SECONDS_BETWEEN_EVENTS:
            newest = _finite(history[checked:], names, epoch, checked)
            checked = len(history)
            yield Progress(epoch, images, float(newest[-1].sum()))
            told = time.perf_counter()
    losses = _finite(history, names, epoch, 0)
    means = (losses.T @ torch.tensor(sizes, dtype=torch.float64) / images).tolist()
    by_name = {**dict(zip(names, means, strict=True)), "total": sum(means)}
    yield EpochEnd(epoch, by_name, images, time.perf_counter() - began)


def _finite(history: list[torch.Tensor], names: list[str], epoch: int, skipped: int) -> torch.Tensor:
    """The losses as a (steps, terms) float64 table on the CPU.

    Raises:
        NumericError: one is not finite; `skipped` losses came before the first.
    """
    losses = torch.stack(history).to("cpu", torch.float64).view(-1, len(names))
    if bool(losses.isfinite().all()):
        return losses
    step, term = torch.nonzero(~losses.isfinite())[0].tolist()
    raise NumericError(
        f"the loss {names[term]!r} became {float(losses[step, term])} in epoch {epoch}, "
        f"step {skipped // len(names) + step + 1}"
    )
