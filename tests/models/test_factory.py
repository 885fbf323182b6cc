import pytest
import torch

from denetdm_cli.config.schema import BranchConfig, CifarResnetConfig, CnnConfig, MlpConfig, TorchvisionConfig
from denetdm_cli.models.convnets import CNN, CifarResNet
from denetdm_cli.models.factory import build_branch, learns_from_one_image
from denetdm_cli.models.mlp import MLP

BRANCHES = [
    (MlpConfig(name="mlp", depth=3, width=24), MLP, 24),
    (CnnConfig(name="cnn", depth=3, width=48), CNN, 48),
    (CnnConfig(name="cnn", depth=4, width=48), CNN, 48),
    (CifarResnetConfig(name="cifar_resnet", depth=8), CifarResNet, 64),
    (TorchvisionConfig(name="resnet18", weights=None, width=48), torch.nn.Module, 48),
    (TorchvisionConfig(name="resnet18", weights=None, width=512), torch.nn.Module, 512),
]


@pytest.mark.parametrize(("config", "kind", "width"), BRANCHES)
@pytest.mark.parametrize("size", [(48, 48), (64, 45)])
def test_every_branch_makes_features_of_its_width(
    config: BranchConfig, kind: type, width: int, size: tuple[int, int]
) -> None:
    branch = build_branch(config, (3, *size))
    assert isinstance(branch, kind)
    assert branch.training
    assert branch.out_features == config.feature_width == width
    features = branch(torch.rand(2, 3, *size))
    assert features.shape == (2, width)
    assert features.dtype == torch.float32
    features.sum().backward()
    assert all(parameter.grad is not None for parameter in branch.parameters())


@pytest.mark.parametrize(("config", "kind", "width"), BRANCHES)
def test_initial_weights_come_from_the_global_stream_alone(config: BranchConfig, kind: type, width: int) -> None:
    def built(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        return build_branch(config, (3, 48, 48)).state_dict()

    one, same, other = built(1), built(1), built(2)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_the_branches_of_bffhq_take_its_images() -> None:
    x = torch.rand(2, 3, 224, 224)
    for config in (
        CnnConfig(name="cnn", depth=4, width=512),
        TorchvisionConfig(name="resnet18", weights=None, width=512),
    ):
        with torch.no_grad():
            assert build_branch(config, (3, 224, 224))(x).shape == (2, 512)


def _net(name: str) -> BranchConfig:
    return TorchvisionConfig(name=name, weights=None, width=7)


@pytest.mark.parametrize(
    ("config", "size", "learns"),
    [
        (MlpConfig(name="mlp", depth=3, width=4), 8, True),
        (CnnConfig(name="cnn", depth=3, width=4), 32, False),
        (CnnConfig(name="cnn", depth=3, width=4), 36, True),
        (CifarResnetConfig(name="cifar_resnet", depth=8), 4, False),
        (CifarResnetConfig(name="cifar_resnet", depth=8), 5, True),
        (_net("resnet18"), 32, False),
        (_net("resnet18"), 33, True),
        (_net("squeezenet1_1"), 32, True),
        pytest.param(_net("vit_b_32"), 32, True, marks=pytest.mark.slow),
        (_net("regnet_x_400mf"), 32, False),
    ],
)
def test_a_branch_learns_from_one_image_where_torch_says_so(config: BranchConfig, size: int, learns: bool) -> None:
    shape = (3, size, size)
    branch = build_branch(config, shape)
    before = {name: tensor.clone() for name, tensor in branch.state_dict().items()}
    drawn = torch.get_rng_state()
    assert learns_from_one_image(branch, shape) == learns
    assert branch.training
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(tensor, before[name]) for name, tensor in branch.state_dict().items())
    if learns:
        branch(torch.rand(1, *shape)).sum().backward()
    else:
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            branch(torch.rand(1, *shape))
