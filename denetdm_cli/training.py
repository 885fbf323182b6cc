"""The only training loop. It yields events and prints nothing."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from denetdm_cli.config import StageConfig
from denetdm_cli.data.batches import Batches
from denetdm_cli.errors import NumericError
from denetdm_cli.methods.base import Method
from denetdm_cli.runtime import generator

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


def make_optimizer(method: Method, stage: StageConfig) -> torch.optim.Optimizer:
    """Adam with coupled weight decay over everything that is not frozen (paper.md section 4)."""
    trainable = [parameter for parameter in method.model.parameters() if parameter.requires_grad]
    return torch.optim.Adam(trainable, lr=stage.learning_rate, weight_decay=stage.weight_decay, fused=True)


def fit(
    method: Method,
    batches: Batches,
    stage: StageConfig,
    optimizer: torch.optim.Optimizer,
    *,
    seed: int,
    first_epoch: int = 1,
) -> Iterator[Progress | EpochEnd]:
    """Train from `first_epoch` to the last, one event at a time.

    The order of epoch e depends on `seed` and e alone, so a resumed run sees what an uninterrupted one sees.

    Raises:
        NumericError: a loss is not finite; says epoch and step.
    """
    for epoch in range(first_epoch, stage.epochs + 1):
        method.model.train()
        yield from _epoch(method, batches, stage, optimizer, generator(seed, "order", epoch), epoch)


def _epoch(
    method: Method,
    batches: Batches,
    stage: StageConfig,
    optimizer: torch.optim.Optimizer,
    order: torch.Generator,
    epoch: int,
) -> Iterator[Progress | EpochEnd]:
    began = told = time.perf_counter()
    images = step = 0
    names: list[str] = []
    history: torch.Tensor | None = (
        None  # (steps, terms), kept on the device: reading a loss at every step would wait for it
    )
    sizes: list[int] = []
    for batch in batches.shuffled(stage.batch_size, order, drop_last=stage.drop_last):
        terms = method.losses(batch)
        values = torch.stack(list(terms.values()))
        optimizer.zero_grad(set_to_none=True)
        values.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()

        if history is None:
            names = list(terms)
            history = values.new_zeros((-(-len(batches) // stage.batch_size), len(names)))
        history[step] = values.detach()
        sizes.append(len(batch.y))
        images += len(batch.y)
        step += 1
        if time.perf_counter() - told > _SECONDS_BETWEEN_EVENTS:
            _require_finite(history[:step], names, epoch)
            yield Progress(epoch, images, float(history[step - 1].sum()))
            told = time.perf_counter()
    assert history is not None  # noqa: S101 - the caller refuses a batch larger than the data
    _require_finite(history[:step], names, epoch)
    weights = torch.tensor(sizes, dtype=torch.float64) / images
    means = (history[:step].cpu().to(torch.float64) * weights[:, None]).sum(dim=0).tolist()
    losses = {**dict(zip(names, means, strict=True)), "total": sum(means)}
    yield EpochEnd(epoch, losses, images, time.perf_counter() - began)


def _require_finite(history: torch.Tensor, names: list[str], epoch: int) -> None:
    finite = history.isfinite()
    if bool(finite.all()):
        return
    step, term = torch.nonzero(~finite)[0].tolist()
    raise NumericError(
        f"the loss {names[term]!r} became {float(history[step, term])} in epoch {epoch}, step {step + 1}",
        "The last completed epoch is kept. Lower the learning rate (--set train_poe.learning_rate=... or "
        "distill.learning_rate=...) and start anew with --force.",
    )
