"""The convolutional networks of the paper that torchvision does not have."""

from torch import Tensor, nn
from torch.nn import functional as F

_LAYERS: dict[int, tuple[tuple[int, int, str], ...]] = {
    3: ((32, 5, "bn relu pool"), (64, 5, "bn relu pool"), (0, 5, "bn relu")),
    4: ((64, 7, "bn relu pool"), (128, 3, "bn relu pool"), (512, 3, "pool bn relu"), (0, 3, "bn relu")),
}
"""By depth: filters (0: the width asked for), kernel size, and what follows the convolution, in the published order."""


class CNN(nn.Sequential):
    """The shallow branches of Corrupted CIFAR-10 (3 layers) and BFFHQ (4 layers); official code, and paper, appendix.

    Convolutions without padding, batch normalisation, ReLU and max-pooling by 2; in the third of four layers the
    pooling comes before the normalisation, as published. What is left of the image is averaged; 32x32 pixels leave the
    three layers as one, as published. Images too small to leave anything (below 32x32, or 42x42 for four layers) get a
    margin of zeros that makes them just large enough.

    Args:
        depth: 3 or 4.
        width: filters of the last layer.
        image_shape: (C, H, W).
    """

    def __init__(self, depth: int, width: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.out_features = width
        channels, rows, columns = image_shape
        missing_rows, missing_columns = (max(0, _least_size(depth) - size) for size in (rows, columns))
        if missing_rows or missing_columns:
            left, above = missing_columns // 2, missing_rows // 2
            self.add_module("margin", nn.ZeroPad2d((left, missing_columns - left, above, missing_rows - above)))
            rows, columns = rows + missing_rows, columns + missing_columns
        for number, (filters, kernel, steps) in enumerate(_LAYERS[depth], start=1):
            filters = filters or width
            self.add_module(f"conv{number}", nn.Conv2d(channels, filters, kernel))
            channels, rows, columns = filters, rows - kernel + 1, columns - kernel + 1
            for step in steps.split():
                if step == "bn":
                    self.add_module(f"bn{number}", nn.BatchNorm2d(channels))
                elif step == "relu":
                    self.add_module(f"relu{number}", nn.ReLU(inplace=True))
                else:
                    self.add_module(f"pool{number}", nn.MaxPool2d(2))
                    rows, columns = rows // 2, columns // 2
        if (rows, columns) != (1, 1):
            self.add_module("average", nn.AdaptiveAvgPool2d(1))
        self.add_module("flatten", nn.Flatten())


class CifarResNet(nn.Module):
    """A residual network for CIFAR of depth 6 n + 2, as in He et al., CVPR 2016, section 4.2; without its linear layer.

    The deep branch of Corrupted CIFAR-10 is the one of depth 20. Shortcuts are of option A; convolutions start
    Kaiming-normal, as in the official code.

    Args:
        channels: of the images.
        depth: layers with weights, the linear layer it does not have included.
    """

    out_features = 64

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = _conv3x3(channels, 16)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks)
        self.layer2 = _stage(16, 32, blocks)
        self.layer3 = _stage(32, 64, blocks)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, 64) of images (B, C, H, W) float32."""
        x = self.bn1(self.conv1(x)).relu_()
        x = self.layer3(self.layer2(self.layer1(x)))
        return F.avg_pool2d(x, x.shape[-2:]).flatten(1)  # the whole map; 8x8, as published, for 32x32 pixels


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut without weights; where the planes double, the map is halved."""

    def __init__(self, planes_in: int, planes: int) -> None:
        super().__init__()
        self.stride = planes // planes_in
        self.padding = (0, 0, 0, 0, planes // 4, planes // 4)
        self.conv1 = _conv3x3(planes_in, planes, self.stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = _conv3x3(planes, planes)
        self.bn2 = nn.BatchNorm2d(planes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu_()))
        if self.stride != 1:  # option A: every second pixel, and planes of zeros on each side
            x = F.pad(x[:, :, ::2, ::2], self.padding)
        return out.add_(x).relu_()


def _stage(planes_in: int, planes: int, blocks: int) -> nn.Sequential:
    rest = (_BasicBlock(planes, planes) for _ in range(blocks - 1))
    return nn.Sequential(_BasicBlock(planes_in, planes), *rest)


def _conv3x3(planes_in: int, planes: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(planes_in, planes, 3, stride=stride, padding=1, bias=False)


def _least_size(depth: int) -> int:
    """Pixels a side of the smallest images that leave something of themselves after all layers."""
    needed = 1
    for _, kernel, steps in reversed(_LAYERS[depth]):
        needed = needed * (2 if "pool" in steps else 1) + kernel - 1
    return needed
