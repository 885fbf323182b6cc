"""The branches by name. Depth is the paper's variable, so it is a parameter."""

from torch import Tensor, nn

from denetdm_cli.config import BranchConfig


class MLP(nn.Module):
    """Flatten, then `depth - 1` linear layers of `width` units, each followed by ReLU; the head is the last of the depth.

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
        self.layers = nn.Sequential()
        for inputs, outputs in zip(sizes[:-1], sizes[1:], strict=True):
            self.layers.extend([nn.Linear(inputs, outputs), nn.ReLU()])

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, width) of images (B, C, H, W) float32."""
        features: Tensor = self.layers(x.flatten(1))
        return features


def build_branch(config: BranchConfig, image_shape: tuple[int, int, int]) -> MLP:
    """A freshly initialised branch for images of shape (C, H, W); draws from torch's global CPU stream."""
    channels, height, width = image_shape
    return MLP(channels * height * width, config.depth, config.width)
