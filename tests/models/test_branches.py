import pytest
import torch
from torch import nn
from torch.nn import functional as F

from denetdm_cli.config import BranchConfig, ModelConfig
from denetdm_cli.models.branches import MLP, build_branch
from denetdm_cli.models.experts import ProductOfExperts, TargetModel
from denetdm_cli.runtime import seeded


def model_config(shallow: int = 3, deep: int = 5, width: int = 100) -> ModelConfig:
    def branch(depth: int) -> BranchConfig:
        return BranchConfig(name="mlp", depth=depth, width=width)

    return ModelConfig(shallow=branch(shallow), deep=branch(deep), target=branch(deep))


@pytest.mark.parametrize(("depth", "layers"), [(2, 1), (3, 2), (5, 4), (8, 7)])
def test_depth_counts_the_linear_layers_with_the_head(depth: int, layers: int) -> None:
    branch = build_branch(BranchConfig(name="mlp", depth=depth, width=100), (3, 28, 28))
    shapes = [tuple(layer.weight.shape) for layer in branch.layers]
    assert shapes == [(100, 2352)] + [(100, 100)] * (layers - 1)
    assert branch(torch.rand(2, 3, 28, 28)).shape == (2, 100)


def test_colored_mnist_parameters_are_those_of_the_paper() -> None:
    experts = ProductOfExperts(model_config(), (3, 28, 28), 10, seed=0)
    first, hidden, head = 2352 * 100 + 100, 100 * 100 + 100, 100 * 10 + 10
    assert sum(p.numel() for p in experts.shallow.parameters()) == first + hidden
    assert sum(p.numel() for p in experts.deep.parameters()) == first + 3 * hidden
    assert sum(p.numel() for p in experts.head.parameters()) == head


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


def test_one_seed_determines_the_initial_weights_and_leaves_the_global_stream_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = (ProductOfExperts(model_config(), (3, 4, 4), 10, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    for a, b, c in zip(one.parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_initial_weights_are_those_of_torch_linear() -> None:
    with seeded(3, "train-poe", "initial weights"):
        expected = nn.Linear(48, 100)
    experts = ProductOfExperts(model_config(), (3, 4, 4), 10, seed=3)
    assert torch.equal(experts.shallow.layers[0].weight, expected.weight)


def test_an_expert_alone_is_the_head_on_its_features_with_the_bias_once() -> None:
    experts = ProductOfExperts(model_config(), (3, 4, 4), 10, seed=0)
    x = torch.rand(6, 3, 4, 4)
    with torch.no_grad():
        phi_d, phi_b = experts.shallow(x), experts.deep(x)
        weight, bias = experts.head.weight, experts.head.bias
        expected = {
            "shallow": phi_d @ weight.T + bias,
            "deep": phi_b @ weight.T + bias,
            "product": (phi_d + phi_b) @ weight.T + bias,
        }
        found = experts.predict(x)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(experts(x), expected["product"])
        # A product of experts: log-probabilities of the two add up, the head's bias counted once, up to normalisation.
        together = F.log_softmax(found["shallow"] + found["deep"] - bias, dim=1)
        torch.testing.assert_close(F.log_softmax(found["product"], dim=1), together)


def test_the_target_model_starts_from_the_deep_branch_and_head_of_stage_1() -> None:
    experts = ProductOfExperts(model_config(), (3, 4, 4), 10, seed=0)
    model = TargetModel(model_config(), (3, 4, 4), 10, seed=0)
    model.start_from(experts)
    copied = [*model.deep.parameters(), *model.head.parameters()]
    originals = [*experts.deep.parameters(), *experts.head.parameters()]
    for ours, theirs in zip(copied, originals, strict=True):
        assert torch.equal(ours, theirs)
        assert ours.data_ptr() != theirs.data_ptr()
    assert not torch.equal(model.target.layers[0].weight, experts.deep.layers[0].weight)
