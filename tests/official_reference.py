"""The networks of the official code built anew from their names, which are those of paper.md, section 6."""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet18

CLASSES = {"coloredmnist": 10, "corruptedcifar10": 10, "bffhq": 2}
SIZES = {"coloredmnist": 28, "corruptedcifar10": 32, "bffhq": 224}
SIX = [(dataset, stage) for dataset in CLASSES for stage in ("train-poe", "distill")]


class Hidden(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.hidden_layers = nn.ModuleList(nn.Linear(100, 100) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.hidden_layers:
            x = F.relu(layer(x))
        return x


class Block(nn.Module):
    def __init__(self, planes_in: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(planes_in, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride == 2:
            zeros = torch.zeros(len(x), x.shape[1] // 2, *out.shape[2:])
            x = torch.cat([zeros, x[:, :, ::2, ::2], zeros], dim=1)
        return F.relu(out + x)


class ResNet20(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x))).mean(dim=(2, 3))


class Reference(nn.Module):
    """One of the six networks, with random weights and random moving statistics."""

    def __init__(self, dataset: str, stage: str, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            getattr(self, f"_{dataset}")(stage == "train-poe")
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    nn.init.uniform_(module.weight, 0.5, 1.5)
                    nn.init.normal_(module.bias, std=0.3)
                    module.running_mean.normal_(std=0.3)
                    module.running_var.uniform_(0.5, 2)
                    module.num_batches_tracked.random_(1, 1000)
        self.eval()

    def _coloredmnist(self, stage_1: bool) -> None:
        first, number = nn.Linear(3 * 28 * 28, 100), 1 if stage_1 else 2
        layers = [(f"c{number}", first), (f"r{number}", nn.ReLU()), (f"s{number}", Hidden(1 if stage_1 else 3))]
        self.debias_branch = nn.Sequential(OrderedDict(layers))
        self.bias_branch = nn.Sequential(nn.Linear(3 * 28 * 28, 100), nn.ReLU(), Hidden(3))
        self.classifier = nn.Linear(100, 10)

    def _corruptedcifar10(self, stage_1: bool) -> None:
        self.bias_branch = ResNet20()
        if stage_1:
            self.debias_branch = _layers("c1:3,32,5 b1:32 r1 p1 c2:32,64,5 b2:64 r2 p2 c3:64,64,5 b3:64 r3")
        else:
            self.debias_backbone = _resnet18()
            branch = OrderedDict(b1=self.debias_backbone, l1=nn.Linear(512, 64))
            self.debias_branch = nn.Sequential(branch)
        self.classifier = nn.Linear(64, 10)

    def _bffhq(self, stage_1: bool) -> None:
        self.bias_branch = _resnet18()
        shallow = "c1:3,64,7 b1:64 r1 p1 c2:64,128,3 b2:128 r2 p2 c3:128,512,3 p3 b3:512 r3 c4:512,512,3 b4:512 r4 a1"
        self.debias_branch = _layers(shallow) if stage_1 else _resnet18()
        self.classifier = nn.Linear(512, 2)

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(self.bias_branch, nn.Sequential):
            x = x.flatten(1)
        return self.debias_branch(x).flatten(1), self.bias_branch(x)

    def forward(self, x: Tensor, debias_weight: float = 1, bias_weight: float = 1) -> Tensor:
        debias, bias = self.features(x)
        return self.classifier(debias_weight * debias + bias_weight * bias)


def images(size: int, count: int = 3) -> Tensor:
    """Random images, as after normalising."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def _layers(text: str) -> nn.Sequential:
    kinds = {
        "c": nn.Conv2d,
        "b": nn.BatchNorm2d,
        "r": nn.ReLU,
        "p": lambda: nn.MaxPool2d(2, 2),
        "a": lambda: nn.AdaptiveAvgPool2d(1),
    }
    layers = [layer.partition(":") for layer in text.split()]
    return nn.Sequential(
        OrderedDict((name, kinds[name[0]](*map(int, filter(None, sizes.split(","))))) for name, _, sizes in layers)
    )


def _resnet18() -> nn.Module:
    net = resnet18(weights=None)
    net.fc = nn.Identity()
    return net
