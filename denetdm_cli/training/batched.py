"""Many trainings as one program: stacked weights, batched products of matrices, and on CUDA a captured graph a step."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.func import functional_call

from denetdm_cli.data.batches import Batch, Pool
from denetdm_cli.training.optimizer import stacked
from denetdm_cli.training.trainer import Clock, Losses, Training

_WARM_UP_STEPS = 3


class Stack:
    """R trainings that go on together, each as if it were alone but for rounding.

    What each of them trains, and its optimiser's moments, become views of stacked tensors: models, evaluation and
    states of the trainings stay their own, and may be read at any time.

    Args:
        trainings: after the same step, with networks of one architecture that draw no random numbers, equal settings
            of the stage, and as many training images of one shape, which are not augmented.
    Raises:
        ConfigError: the images are not kept on the device.
    """

    def __init__(self, trainings: Sequence[Training]) -> None:
        self._trainings = trainings
        first = trainings[0]
        self._device = first.batches.device
        self._pool = Pool([one.batches for one in trainings], [one.method.known for one in trainings])
        self._optimizer = stacked([one.optimizer for one in trainings])
        module = Losses(first.method, first.method.losses)
        names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
        self._parameters = dict(zip(names, self._optimizer.parameters, strict=True))
        self._terms: list[str] = []

        def losses(parameters: dict[str, Tensor], *batch: Tensor) -> dict[str, Tensor]:
            x, y, index, *known = batch
            terms: dict[str, Tensor] = functional_call(module, parameters, (Batch(x, y, index, tuple(known)),))
            return terms

        self._losses = torch.vmap(losses)
        self._step = _Captured(self.step, self._device) if self._device.type == "cuda" else self.step

    def epoch(self) -> Iterator[None]:
        """Take the steps of the epoch that are not behind.

        It yields a few times a second; then, and after the last step, the trainings know of every step.
        """
        first, trainings = self._trainings[0], self._trainings
        size, drop_last = first.stage.batch_size, first.stage.drop_last
        for one in trainings:
            one.begin_epoch()
        orders = [one.batches.order(size, one.order(), drop_last=drop_last) for one in trainings]
        order = torch.stack(orders).to(self._device)
        clock = Clock()
        losses: list[Tensor] = []
        sizes: list[int] = []
        for start in range(first.steps * size, order.shape[1], size):
            index = order[:, start : start + size]
            losses.append(self._step(index))
            sizes.append(index.shape[1])
            if clock.due():
                self._tell(losses, sizes)
                yield
                losses, sizes = [], []
                clock.restart()
        if losses:
            self._tell(losses, sizes)

    def step(self, index: Tensor) -> Tensor:
        """One step of every training.

        Args:
            index: (R, B) int64 on the device, the images of each.
        Returns:
            (R, terms) on the device, the losses.
        """
        batch = self._pool.take(index)
        terms = self._losses(self._parameters, batch.x, batch.y, batch.index, *batch.known)
        self._optimizer.zero_grad()
        # No run has a part in the loss of another, so the gradient of the sum holds that of each, finite or not.
        torch.autograd.backward([term.sum() for term in terms.values()])
        self._optimizer.step()
        self._terms = list(terms)
        return torch.stack(list(terms.values()), dim=1).detach()

    def _tell(self, losses: list[Tensor], sizes: list[int]) -> None:
        for one, own in zip(self._trainings, torch.stack(losses, dim=1), strict=True):
            one.add(self._terms, own, sizes)


class _Captured:
    """A step as a CUDA graph, which is replayed: no time goes by between its kernels.

    The first steps are taken one by one on a stream of their own, as torch asks before a capture, and so is every batch
    of another size. WRITTEN WITHOUT A GPU AT HAND: neither run nor measured.

    Args:
        step: takes (R, B) int64 and returns a tensor; reads no value on the CPU, and finds all else where it was.
        device: of all that the step touches.
    """

    def __init__(self, step: Callable[[Tensor], Tensor], device: torch.device) -> None:
        self._step = step
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call] # torch has no types there
        self._taken = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, index: Tensor) -> Tensor:
        with torch.cuda.device(self._device):
            return self._take(index)

    def _take(self, index: Tensor) -> Tensor:
        if self._taken < _WARM_UP_STEPS:
            self._taken += 1
            return self._aside(index)
        if self._graph is None:
            self._graph, self._index = torch.cuda.CUDAGraph(), index.clone()
            with torch.cuda.graph(self._graph):
                self._result = self._step(self._index)
        elif index.shape != self._index.shape:
            return self._aside(index)
        self._index.copy_(index)
        self._graph.replay()
        return self._result.clone()  # the next replay writes there again

    def _aside(self, index: Tensor) -> Tensor:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            result = self._step(index)
        torch.cuda.current_stream().wait_stream(self._stream)
        return result
