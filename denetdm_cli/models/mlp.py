"""The multi-layer perceptrons of Colored MNIST."""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F


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
        for layer in self.layers:
            features = F.relu(layer(features))
        return features
