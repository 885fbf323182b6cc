import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from denetdm_cli.models.convnets import CNN, CifarResNet


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _published_cnn3() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 32, 5), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 5), nn.BatchNorm2d(64), nn.ReLU(), nn.Flatten(),
    )  # fmt: skip


def _published_cnn4() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 64, 7), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 128, 3), nn.BatchNorm2d(128), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(128, 512, 3), nn.MaxPool2d(2), nn.BatchNorm2d(512), nn.ReLU(),
        nn.Conv2d(512, 512, 3), nn.BatchNorm2d(512), nn.ReLU(), nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("depth", "width", "size", "published", "parameters"),
    [(3, 64, 32, _published_cnn3, 156_480), (4, 512, 64, _published_cnn4, 3_035_904)],
)
def test_a_cnn_is_the_published_one_bit_for_bit(
    depth: int, width: int, size: int, published: type, parameters: int
) -> None:
    torch.manual_seed(0)
    ours = CNN(depth, width, (3, size, size))
    torch.manual_seed(0)
    theirs = published()
    assert _parameters(ours) == _parameters(theirs) == parameters
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
    x, weights = torch.rand(4, 3, size, size), torch.rand(4, width)
    for net in (ours, theirs):
        (net(x) * weights).sum().backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))  # the running statistics, too
    assert ours(x).shape == (4, width)


def test_32_pixels_leave_the_three_layers_as_one_without_pooling() -> None:
    assert not any(isinstance(module, nn.AdaptiveAvgPool2d) for module in CNN(3, 64, (3, 32, 32)))
    larger = CNN(3, 8, (3, 48, 40)).eval()
    layers = nn.Sequential(*list(larger)[:-2])
    x = torch.rand(2, 3, 48, 40)
    assert layers(x).shape == (2, 8, 5, 3)
    torch.testing.assert_close(larger(x), layers(x).mean(dim=(2, 3)))


@pytest.mark.parametrize(("depth", "least"), [(3, 32), (4, 42)])
def test_smaller_images_get_a_margin_of_zeros(depth: int, least: int) -> None:
    whole = CNN(depth, 4, (3, least, least)).eval()
    assert not any(isinstance(module, nn.ZeroPad2d) for module in whole)
    small = CNN(depth, 4, (3, least - 3, least)).eval()
    small.load_state_dict(whole.state_dict())
    x = torch.rand(2, 3, least - 3, least)
    torch.testing.assert_close(small(x), whole(nn.functional.pad(x, (0, 0, 1, 2))))
    assert CNN(depth, 4, (3, 8, 8)).eval()(torch.rand(2, 3, 8, 8)).shape == (2, 4)


def _published_resnet(x: Tensor, state: dict[str, Tensor], blocks: int) -> Tensor:
    """In training mode, written down from the paper and the official code's listing; statistics are not kept."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.batch_norm(x, None, None, state[f"{name}.weight"], state[f"{name}.bias"], training=True)

    x = F.relu(norm(F.conv2d(x, state["conv1.weight"], padding=1), "bn1"))
    for stage, planes in ((1, 16), (2, 32), (3, 64)):
        for block in range(blocks):
            at, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            out = F.relu(norm(F.conv2d(x, state[f"{at}.conv1.weight"], stride=stride, padding=1), f"{at}.bn1"))
            out = norm(F.conv2d(out, state[f"{at}.conv2.weight"], padding=1), f"{at}.bn2")
            if stride == 2:
                x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, planes // 4, planes // 4), "constant", 0)
            x = F.relu(out + x)
    x = F.avg_pool2d(x, 8)
    return x.view(x.size(0), -1)


@pytest.mark.parametrize("depth", [8, 20])
def test_a_cifar_resnet_is_the_published_one_bit_for_bit(depth: int) -> None:
    torch.manual_seed(depth)
    net = CifarResNet(3, depth)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    x, weights = torch.rand(4, 3, 32, 32), torch.rand(4, 64)
    parameters = dict(net.named_parameters())
    expected = _published_resnet(x, parameters, (depth - 2) // 6)
    found = net(x)
    assert torch.equal(found, expected)
    wanted = torch.autograd.grad((expected * weights).sum(), list(parameters.values()))
    for a, b in zip(torch.autograd.grad((found * weights).sum(), list(parameters.values())), wanted, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("depth", "published"), [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)]
)
def test_parameters_of_the_cifar_resnets_are_the_published_ones_but_for_the_linear_layer(
    depth: int, published: int
) -> None:
    net = CifarResNet(3, depth)
    assert _parameters(net) == published - (64 * 10 + 10)
    convolutions = sum(isinstance(module, nn.Conv2d) for module in net.modules())
    assert convolutions + 1 == depth


def test_all_convolutions_of_a_cifar_resnet_start_kaiming_normal() -> None:
    torch.manual_seed(0)
    net = CifarResNet(3, 20)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is None
            std = math.sqrt(2 / (module.in_channels * 9))
            weights = module.weight.detach().flatten()
            tolerance = 4 / math.sqrt(2 * weights.numel())  # four standard errors of a standard deviation
            assert abs(weights.std().item() / std - 1) < tolerance
            assert abs(weights.mean().item() / std) < 4 / math.sqrt(weights.numel())
            assert weights.abs().max() > 2.5 * std  # a uniform distribution would end at 1.73


def test_a_shortcut_takes_every_second_pixel_and_pads_planes_on_both_sides() -> None:
    block = CifarResNet(3, 8).layer2[0].eval()
    nn.init.zeros_(block.conv2.weight)  # what is left is the shortcut
    x = torch.arange(16 * 5 * 4, dtype=torch.float32).reshape(1, 16, 5, 4)
    out = block(x)
    assert out.shape == (1, 32, 3, 2)
    assert not out[:, :8].any()
    assert not out[:, 24:].any()
    for plane in range(16):
        assert out[0, 8 + plane].tolist() == [
            [x[0, plane, row, column].item() for column in (0, 2)] for row in (0, 2, 4)
        ]


@pytest.mark.parametrize("size", [(32, 32), (28, 28), (33, 47), (64, 64), (1, 1)])
def test_a_cifar_resnet_averages_the_whole_map_at_any_size(size: tuple[int, int]) -> None:
    net = CifarResNet(3, 8).eval()
    maps: list[Tensor] = []
    net.layer3.register_forward_hook(lambda module, inputs, output: maps.append(output))
    features = net(torch.rand(2, 3, *size))
    assert features.shape == (2, 64)
    torch.testing.assert_close(features, maps[0].mean(dim=(2, 3)))
