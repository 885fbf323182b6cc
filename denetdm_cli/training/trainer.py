"""The training loop, the only one: it yields events and prints nothing."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from denetdm_cli.config.schema import ComputeConfig, MethodSettings, section_of
from denetdm_cli.data.batches import Batch, Batches
from denetdm_cli.methods.base import Method
from denetdm_cli.training import checkpoint
from denetdm_cli.training.events import EpochTrained, StepProgress
from denetdm_cli.training.optimizer import build_optimizer
from denetdm_cli.utils.distributed import SINGLE_PROCESS, Ranks
from denetdm_cli.utils.errors import CheckpointError, NumericError
from denetdm_cli.utils.seed import derive_seed, generator

_SECONDS_BETWEEN_EVENTS = 0.2


@dataclass
class _History:
    """The steps of the running epoch taken so far.

    Attributes:
        terms: names of the losses.
        losses: of every step, on the device: reading a loss at every step would wait for it. One after the other by
            term, each the mean over a batch, in tensors of any shape.
        sizes: images of every step.
        seconds: of training before the run was resumed.
        checked: steps whose losses are known to be finite.
    """

    terms: list[str] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    seconds: float = 0.0
    checked: int = 0

    def table(self) -> Tensor:
        """The losses as (steps, terms) on the device."""
        self.losses = [torch.cat([part.reshape(-1) for part in self.losses])]
        return self.losses[0].view(-1, len(self.terms))


class Trainer:
    """A method in training: its model, the optimizer, and the steps taken so far.

    All that is not frozen is trained (as in DeNetDM's code).

    Args:
        method: what is trained.
        batches: the training images.
        settings: those of the method.
        seed: decides, with the number of an epoch, the order of its images and every other random number.
        compute: precision and compilation; None is fp32 and neither.
        ranks: the processes that train together; each computes its share of every batch.
    Attributes:
        method, batches, settings: the same.
        optimizer: of all that is trained.
    """

    def __init__(
        self,
        method: Method,
        batches: Batches,
        settings: MethodSettings,
        *,
        seed: int,
        compute: ComputeConfig | None = None,
        ranks: Ranks = SINGLE_PROCESS,
    ) -> None:
        self.method = method
        self.batches = batches
        self.settings = settings
        self._seed = seed
        self._ranks = ranks
        self._losses = _prepared(method, compute, ranks)
        self._low_precision = compute is not None and compute.precision == "bf16"
        trainable = (parameter for parameter in method.model.parameters() if parameter.requires_grad)
        self.optimizer = build_optimizer(settings, trainable)
        self._weights = method.sample_weights()
        self._images = batches.epoch_size(settings.batch_size, self._weights, drop_last=settings.drop_last)
        self._epoch = 1
        self._history = _History()
        self._rng_state: dict[str, Tensor] = {}
        self._started = time.perf_counter()

    @property
    def completed(self) -> int:
        """Completed epochs."""
        return self._epoch - 1

    @property
    def done(self) -> bool:
        """Whether all epochs are completed."""
        return self.completed >= self.settings.epochs

    @property
    def steps(self) -> int:
        """Steps of the running epoch taken so far."""
        return len(self._history.sizes)

    def run(self) -> Iterator[StepProgress | EpochTrained]:
        """Train to the last epoch, one event at a time.

        Raises:
            NumericError: a loss is not finite; says epoch and step.
        """
        device = self.batches.device
        # Dropout and stochastic depth can only draw from torch's own streams; the caller's are put back at the end.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            while not self.done:
                epoch = self._epoch
                self.seed_rng()
                self.method.model.train()
                self._started = time.perf_counter()
                yield from self._epoch_steps()
                yield self.end_epoch()
                if self._epoch == epoch:
                    self.next_epoch()

    def progress(self) -> StepProgress:
        """The running epoch after its newest step.

        Raises:
            NumericError: a loss is not finite; says epoch and step.
        """
        history = self._history
        loss = float(self._finite(history.checked)[-1].sum())
        history.checked = self.steps
        return StepProgress(self._epoch, sum(history.sizes), loss)

    def end_epoch(self) -> EpochTrained:
        """The epoch after its last step.

        Raises:
            NumericError: a loss is not finite; says epoch and step.
        """
        history = self._history
        losses, images = self._finite(0), sum(history.sizes)
        means = (losses.T @ torch.tensor(history.sizes, dtype=torch.float64) / images).tolist()
        by_name = {**dict(zip(history.terms, means, strict=True)), "total": sum(means)}
        history.seconds, self._started = self._seconds(), time.perf_counter()
        return EpochTrained(self._epoch, by_name, images, history.seconds)

    def next_epoch(self) -> None:
        """Count the epoch that has ended as completed; until then `state_dict` holds its last step."""
        self._epoch, self._history, self._rng_state = self._epoch + 1, _History(), {}
        self._started = time.perf_counter()

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything an exact resume needs after any step: tensors, and facts beside them.

        Of generators only torch's global ones, within an epoch: order and augmentation follow from seed and epoch.
        All ranks must call it together.
        """
        history = self._history
        tensors = checkpoint.training_state(self.method, self.optimizer)
        if history.sizes:
            tensors |= {f"rng.{name}": stream for name, stream in _get_rng_state(self.batches.device).items()}
            tensors["losses"] = self._ranks.all_reduce_mean(history.table().flatten())
        facts = {"terms": history.terms, "sizes": history.sizes, "seconds": self._seconds()}
        return tensors, {"epoch": self.completed, **facts}

    def load_state_dict(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], path: Path) -> None:
        """The inverse of `state_dict`, read from `path`.

        Raises:
            CheckpointError: the file is of another model or damaged.
        """
        checkpoint.restore_training_state(tensors, self.method, self.optimizer, path)
        self._rng_state = {
            name.partition(".")[2]: tensor
            for name, tensor in tensors.items()
            if name.startswith(("rng.", "noise."))  # `noise` in version 0.1
        }
        try:
            self._epoch = int(facts["epoch"]) + 1
            terms, sizes, seconds = list(facts["terms"]), list(facts["sizes"]), float(facts["seconds"])
            losses = [tensors["losses"].to(self.batches.device)] if sizes else []
            self._history = _History(terms, losses, sizes, seconds, checked=len(sizes))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} is damaged: {error}", "Start anew with --force.") from None

    def seed_rng(self) -> None:
        """Seed torch's global generators for the epoch, or restore them in an epoch that was stopped."""
        seed, ranks = (self._seed, "noise", self._epoch), self._ranks
        if ranks.size == 1:
            torch.manual_seed(derive_seed(*seed))
            _set_rng_state(self.batches.device, self._rng_state)
        else:  # every rank its own; and there may be another number of ranks than there was
            torch.manual_seed(derive_seed(*seed, ranks.rank, self.steps))

    def _epoch_steps(self) -> Iterator[StepProgress]:
        settings, ranks = self.settings, self._ranks
        batches = self.batches.shuffled(
            settings.batch_size,
            generator(self._seed, "order", self._epoch),  # decides order and augmentation
            drop_last=settings.drop_last,
            skip=self.steps,
            share=(ranks.rank, ranks.size),
            weights=self._weights,
        )
        clock = Clock(ranks)
        for batch in batches:
            self._step(batch)
            if clock.due():
                yield self.progress()
                clock.restart()

    def _step(self, batch: Batch) -> None:
        with torch.autocast(self.batches.device.type, torch.bfloat16, enabled=self._low_precision):
            terms = {name: term.float().mean() for name, term in self._losses(batch).items()}
        size = min(self.settings.batch_size, self._images - self.steps * self.settings.batch_size)
        if self._ranks.size > 1:  # the mean over all images is the mean of the ranks' means, each with this weight
            terms = {name: term * self._ranks.weight(size) for name, term in terms.items()}
        self.optimizer.zero_grad()
        torch.autograd.backward(list(terms.values()))  # the gradient of their sum
        self.optimizer.step()
        history = self._history
        history.terms = list(terms)
        history.sizes.append(size)
        history.losses.extend(term.detach() for term in terms.values())

    def _seconds(self) -> float:
        return self._history.seconds + time.perf_counter() - self._started

    def _finite(self, first: int) -> Tensor:
        """The losses from step `first` (from 0) on, as a (steps, terms) float64 table on the CPU.

        Raises:
            NumericError: one is not finite.
        """
        history = self._history
        losses = self._ranks.all_reduce_mean(history.table()[first:]).to("cpu", torch.float64)
        if bool(losses.isfinite().all()):
            return losses
        step, term = torch.nonzero(~losses.isfinite())[0].tolist()
        raise NumericError.of(
            f"the loss {history.terms[term]!r} became {float(losses[step, term])} in epoch {self._epoch}, "
            f"step {first + step + 1}",
            section_of(self.method.name),
        )


class Clock:
    """Tells when an event is due, at the same step on every rank."""

    def __init__(self, ranks: Ranks = SINGLE_PROCESS) -> None:
        self._ranks = ranks
        self._interval = 1
        self.restart()

    def restart(self) -> None:
        """Start to wait for the next event."""
        self._steps = 0
        self._last = time.perf_counter()

    def due(self) -> bool:
        """Count a step, and say whether an event is due."""
        self._steps += 1
        if self._steps < self._interval:
            return False
        seconds = self._ranks.all_reduce_max(time.perf_counter() - self._last)
        if self._ranks.size > 1:  # asking all ranks costs time, so not at every step
            self._interval = max(1, min(1000, int(self._steps * _SECONDS_BETWEEN_EVENTS / max(seconds, 1e-6))))
        return seconds > _SECONDS_BETWEEN_EVENTS


class _Losses(nn.Module):
    """The losses of a method as a module, for DistributedDataParallel; its parameters are those of `model`."""

    def __init__(self, method: Method, losses: Callable[[Batch], dict[str, Tensor]]) -> None:
        super().__init__()
        self.model = method.model
        self._losses = losses

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The loss terms by name."""
        return self._losses(batch)


def _prepared(method: Method, compute: ComputeConfig | None, ranks: Ranks) -> Callable[[Batch], dict[str, Tensor]]:
    """The losses of a method, compiled and in step with other ranks where that is asked for."""
    losses: Callable[[Batch], dict[str, Tensor]] = method.losses
    if compute is not None and compute.compile:
        losses = torch.compile(losses)
    if ranks.size == 1:
        return losses
    if compute is not None and compute.sync_batchnorm:
        nn.SyncBatchNorm.convert_sync_batchnorm(method.model)  # type: ignore[no-untyped-call] # torch has no types there
    return nn.parallel.DistributedDataParallel(_Losses(method, losses))


def _get_rng_state(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's global generators."""
    streams = {"cpu": torch.get_rng_state()}
    return streams | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def _set_rng_state(device: torch.device, streams: Mapping[str, Tensor]) -> None:
    """The inverse of `_get_rng_state`, for those that are given."""
    if "cpu" in streams:
        torch.set_rng_state(streams["cpu"])
    if "cuda" in streams and device.type == "cuda":
        torch.cuda.set_rng_state(streams["cuda"], device)
