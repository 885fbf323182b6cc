"""Adam, one fused call a step."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


class Adam:
    """Adam with coupled (L2) weight decay and a constant learning rate, as torch.optim.Adam computes it.

    torch.optim.Adam spends as long in Python, and on a step counter for each parameter, as the update of a small
    network takes; this calls the same fused kernel with one counter for all. Every parameter needs a gradient at
    every step.

    Args:
        parameters: what to train.
        learning_rate: above 0.
        weight_decay: at least 0, added to the gradient as weight_decay * parameter.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float) -> None:
        self.parameters: list[Tensor] = list(parameters)
        self._learning_rate = learning_rate
        self._weight_decay = weight_decay
        self._step = torch.zeros((), device=self.parameters[0].device)
        self._mean = [torch.zeros_like(parameter) for parameter in self.parameters]
        self._square = [torch.zeros_like(parameter) for parameter in self.parameters]

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter from its gradient."""
        self._step += 1
        torch._fused_adam_(
            self.parameters,
            [parameter.grad for parameter in self.parameters],  # type: ignore[misc] # backward has just set all of them
            self._mean,
            self._square,
            [],
            [self._step] * len(self.parameters),
            lr=self._learning_rate,
            beta1=0.9,
            beta2=0.999,
            weight_decay=self._weight_decay,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )

    def state(self) -> dict[str, Tensor]:
        """The moments and the step counter, by name."""
        named = {"step": self._step}
        for index, (mean, square) in enumerate(zip(self._mean, self._square, strict=True)):
            named |= {f"mean.{index}": mean, f"square.{index}": square}
        return named

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state`; the tensors must have its names and shapes."""
        for name, tensor in self.state().items():
            tensor.copy_(tensors[name])
