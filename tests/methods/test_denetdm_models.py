import pytest
import torch
from torch import nn
from torch.nn import functional as F

from denetdm_cli.config.schema import (
    BranchConfig,
    CifarResnetConfig,
    CnnConfig,
    MlpConfig,
    ModelConfig,
    TorchvisionConfig,
)
from denetdm_cli.methods.denetdm.distill import Distill, DistillSettings
from denetdm_cli.methods.denetdm.models import ProductOfExperts, TargetModel
from denetdm_cli.utils.errors import ConfigError
from denetdm_cli.utils.seed import seeded


def model_config(shallow: int = 3, deep: int = 5, width: int = 100) -> ModelConfig:
    def branch(depth: int) -> BranchConfig:
        return MlpConfig(name="mlp", depth=depth, width=width)

    return ModelConfig(shallow=branch(shallow), deep=branch(deep), target=branch(deep))


def corrupted_cifar10() -> ModelConfig:
    return ModelConfig(
        shallow=CnnConfig(name="cnn", depth=3, width=64),
        deep=CifarResnetConfig(name="cifar_resnet", depth=20),
        target=TorchvisionConfig(name="resnet18", weights=None, width=64),
    )


def test_colored_mnist_parameters_are_those_of_the_paper() -> None:
    experts = ProductOfExperts(model_config(), (3, 28, 28), 10, seed=0)
    first, hidden, head = 2352 * 100 + 100, 100 * 100 + 100, 100 * 10 + 10
    assert sum(p.numel() for p in experts.shallow.parameters()) == first + hidden
    assert sum(p.numel() for p in experts.deep.parameters()) == first + 3 * hidden
    assert sum(p.numel() for p in experts.head.parameters()) == head


@pytest.mark.parametrize("kind", [ProductOfExperts, TargetModel])
def test_one_seed_determines_the_initial_weights_and_leaves_the_global_stream_alone(
    kind: type[ProductOfExperts] | type[TargetModel],
) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = (kind(model_config(), (3, 4, 4), 10, seed=seed) for seed in (1, 1, 2))
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


def test_the_models_of_corrupted_cifar10_have_the_tensors_of_the_official_layout() -> None:
    experts = ProductOfExperts(corrupted_cifar10(), (3, 32, 32), 10, seed=0)
    deep = {name.partition(".")[2] for name in experts.state_dict() if name.startswith("deep.")}
    blocks = [f"layer{stage}.{block}." for stage in (1, 2, 3) for block in (0, 1, 2)]
    statistics = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    expected = {f"{at}conv{i}.weight" for at in blocks for i in (1, 2)} | {"conv1.weight"}
    expected |= {f"{at}bn{i}.{what}" for at in blocks for i in (1, 2) for what in statistics}
    assert deep == expected | {f"bn1.{what}" for what in statistics}
    model = TargetModel(corrupted_cifar10(), (3, 32, 32), 10, seed=0)
    assert model.target.fc.weight.shape == (64, 512)
    assert model.head.weight.shape == experts.head.weight.shape == (10, 64)
    assert model(torch.rand(2, 3, 32, 32)).shape == experts(torch.rand(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("seed", [1, 2])
def test_one_seed_determines_every_branch_of_corrupted_cifar10(seed: int) -> None:
    for kind in (ProductOfExperts, TargetModel):
        one, same = (kind(corrupted_cifar10(), (3, 32, 32), 10, seed=seed) for _ in range(2))
        assert one.state_dict().keys() == same.state_dict().keys()
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))


def test_training_the_target_leaves_weights_and_statistics_of_the_frozen_deep_branch_alone() -> None:
    experts = ProductOfExperts(corrupted_cifar10(), (3, 32, 32), 10, seed=0)
    model = TargetModel(corrupted_cifar10(), (3, 32, 32), 10, seed=0)
    model.start_from(experts)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    assert model.target.training
    assert not any(module.training for module in model.deep.modules())
    x, y = torch.rand(4, 3, 32, 32), torch.arange(4)
    features = model.deep(x)
    assert not features.requires_grad
    assert features.grad_fn is None
    F.cross_entropy(model.head(features + model.target(x)), y).backward()
    after = model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {f"target.{name}" for name, _ in model.target.named_buffers()}
    assert all(parameter.grad is None for parameter in model.deep.parameters())
    assert all(parameter.grad is not None for parameter in [*model.target.parameters(), *model.head.parameters()])


def test_a_step_of_distillation_moves_no_statistics_of_teacher_and_deep_branch() -> None:
    from denetdm_cli.data.batches import Batch

    experts = ProductOfExperts(corrupted_cifar10(), (3, 32, 32), 10, seed=0)
    model = TargetModel(corrupted_cifar10(), (3, 32, 32), 10, seed=0)
    model.start_from(experts)
    settings = DistillSettings(
        epochs=1, batch_size=4, learning_rate=1e-3, weight_decay=0.0, drop_last=False, w_poe=1.0, w_dist=1.0, tau=2.0,
        selection_metric="target.unbiased", teacher="last",
    )  # fmt: skip
    method = Distill(model, experts, settings)
    frozen = {"teacher": experts, "deep": model.deep}
    before = {key: {n: t.clone() for n, t in module.state_dict().items()} for key, module in frozen.items()}
    model.train()
    batch = Batch(x=torch.rand(4, 3, 32, 32), y=torch.arange(4), index=torch.arange(4))
    sum(method.losses(batch).values()).mean().backward()
    for key, module in frozen.items():
        assert all(torch.equal(before[key][name], tensor) for name, tensor in module.state_dict().items())


def test_branches_of_different_widths_are_refused_in_the_configuration_and_when_built() -> None:
    with pytest.raises(ValueError, match="same width"):
        model_config().model_validate({**model_config().model_dump(), "target": {"name": "cifar_resnet", "depth": 8}})
    unchecked = model_config().model_copy(update={"deep": MlpConfig(name="mlp", depth=3, width=7)})
    for kind in (ProductOfExperts, TargetModel):
        with pytest.raises(ConfigError, match="share one head"):
            kind(unchecked, (3, 4, 4), 10, seed=0)


def test_a_branch_that_cannot_take_the_images_is_named() -> None:
    config = corrupted_cifar10()
    alexnet = TorchvisionConfig(name="alexnet", weights=None, width=64)
    with pytest.raises(ConfigError, match=r"model\.shallow: alexnet cannot take images of 28x28 pixels"):
        ProductOfExperts(config.model_copy(update={"shallow": alexnet}), (3, 28, 28), 10, seed=0)
    with pytest.raises(ConfigError, match=r"model\.deep: "):
        TargetModel(config.model_copy(update={"deep": alexnet}), (3, 28, 28), 10, seed=0)
