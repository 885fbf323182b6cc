"""The multi-layer perceptrons of Colored MNIST."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class MLP(nn.Module):
    """Flatten, then `depth - 1` linear layers of `width` units with ReLU; the head is the last layer of the depth.

    With depth 3 this is the shallow and with depth 5 the deep and target branch of Colored MNIST (paper, appendix).

    Args:
        in_features: channels * height * width of an image.
        depth: linear layers up to and including the head, at least 2.
        width: units of each hidden layer.
    """

    def __init__(self, in_features: int, depth: int, width: int) -> None:
        super().__init__()
        self.out_features = width
        sizes = [in_features] + [width] * (depth - 1)
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, width) of images (B, C, H, W) float32."""
        features = x.flatten(1)
        if torch.is_grad_enabled():
            parameters = tuple(self.layers.parameters())  # weight, bias, weight, bias, ...
            # Under torch.vmap nothing requires a gradient: what it stacks does, beneath.
            layers = _LinearReluLayers if parameters[0].requires_grad else _UnderVmap
            result: Tensor = layers.apply(features, *parameters)
            return result
        for layer in self.layers:
            features = layer(features).relu_()
        return features


class _LinearReluLayers(torch.autograd.Function):
    """Linear layers with ReLU as one step of autograd, which at these sizes costs as much as the small matrix products.

    Images (B, in) and parameters, or R stacked of each: (R, B, in), (R, out, in), (R, out). The images get no gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        outputs = [x]
        for weight, bias in zip(parameters[::2], parameters[1::2], strict=True):
            x, transposed = outputs[-1], weight.mT
            product = torch.addmm(bias, x, transposed) if x.dim() == 2 else torch.baddbmm(bias[:, None], x, transposed)
            outputs.append(product.relu_())
        ctx.save_for_backward(*outputs, *parameters[::2])
        return outputs[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        layers = len(ctx.saved_tensors) // 2
        outputs, weights = ctx.saved_tensors[: layers + 1], ctx.saved_tensors[layers + 1 :]
        gradients: list[Tensor] = []
        for layer in reversed(range(layers)):
            gradient = torch.ops.aten.threshold_backward(gradient, outputs[layer + 1], 0)
            gradients[:0] = [gradient.mT @ outputs[layer], gradient.sum(dim=-2)]
            if layer:
                gradient = gradient @ weights[layer]
        return (None, *gradients)


class _UnderVmap(torch.autograd.Function):
    """Lets torch.vmap hand all that it stacks to `_LinearReluLayers` at once; without it, layers that are frozen."""

    @staticmethod
    def forward(x: Tensor, *parameters: Tensor) -> Tensor:
        for weight, bias in zip(parameters[::2], parameters[1::2], strict=True):
            x = torch.addmm(bias, x, weight.mT).relu_()
        return x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        pass  # torch.vmap takes only functions that have one

    @staticmethod
    def vmap(_info: Any, _in_dims: tuple[int, ...], *stacked: Tensor) -> tuple[Tensor, int]:
        return _LinearReluLayers.apply(*stacked), 0
