import pytest
import torch
from torch import nn

from denetdm_cli.models.mlp import MLP


@pytest.mark.parametrize(("depth", "layers"), [(2, 1), (3, 2), (5, 4), (8, 7)])
def test_depth_counts_the_linear_layers_with_the_head(depth: int, layers: int) -> None:
    branch = MLP(2352, depth, 100)
    shapes = [tuple(layer.weight.shape) for layer in branch.layers]
    assert shapes == [(100, 2352)] + [(100, 100)] * (layers - 1)
    assert branch(torch.rand(2, 3, 28, 28)).shape == (2, 100)


def test_images_are_flattened_channel_by_channel() -> None:
    branch = MLP(3 * 2 * 2, 2, 12)
    branch.layers[0].weight.data.copy_(torch.eye(12))
    branch.layers[0].bias.data.zero_()
    x = torch.arange(12.0).reshape(1, 3, 2, 2)
    assert branch(x).tolist() == [list(range(12))]


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_the_fused_step_has_the_outputs_and_gradients_of_plain_layers(depth: int) -> None:
    torch.manual_seed(depth)
    branch, x = MLP(12, depth, 7).double(), torch.randn(5, 3, 2, 2, dtype=torch.float64)
    plain = nn.Sequential(nn.Flatten(), *(m for layer in branch.layers for m in (layer, nn.ReLU())))
    weights = torch.randn(5, 7, dtype=torch.float64)
    expected = torch.autograd.grad((plain(x) * weights).sum(), list(branch.parameters()))
    found = torch.autograd.grad((branch(x) * weights).sum(), list(branch.parameters()))
    torch.testing.assert_close(found, expected)
    with torch.no_grad():
        torch.testing.assert_close(branch(x), plain(x))
