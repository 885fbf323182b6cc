import copy
import os
import warnings

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from torchvision import models

from denetdm_cli.config.schema import BranchConfig, TorchvisionConfig
from denetdm_cli.models.factory import build_branch
from denetdm_cli.utils.errors import ConfigError

EVERY_NAME = models.list_models(module=models)
ONE_OF_A_FAMILY = [
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3",
    "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet50",
    "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11", "vit_b_32",
]  # fmt: skip
NAMES = EVERY_NAME if os.environ.get("DENETDM_TEST_EVERY_NETWORK") else ONE_OF_A_FAMILY
"""All 80 take three minutes."""
QUICK = ("alexnet", "mnasnet0_5", "mobilenet_v3_small", "regnet_x_400mf", "shufflenet_v2_x0_5", "squeezenet1_1")


def _build(name: str, width: int, size: int | tuple[int, int] = 224) -> nn.Module:
    shape = (size, size) if isinstance(size, int) else size
    return build_branch(TorchvisionConfig(name=name, weights=None, width=width), (3, *shape))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in NAMES]
)
def test_every_classifier_ends_in_a_projection(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        branch = _build(name, 7)
    assert branch.training
    assert branch.out_features == 7
    assert branch.started_from is None
    assert not any(tensor.is_meta for tensor in [*branch.parameters(), *branch.buffers()])
    with torch.no_grad():
        features = branch.eval()(torch.rand(2, 3, 224, 224))
    assert isinstance(features, Tensor)
    assert features.shape == (2, 7)
    assert features.isfinite().all()
    assert not any(1000 in tensor.shape[:1] for tensor in branch.parameters())
    branch.load_state_dict(dict(branch.state_dict()))  # as from a checkpoint, without torch's version marks


@pytest.mark.parametrize("name", EVERY_NAME)
def test_the_configuration_knows_every_classifier(name: str) -> None:
    section = {"name": name, "weights": None, "width": 512}
    assert TypeAdapter(BranchConfig).validate_python(section) == TorchvisionConfig(**section)


@pytest.mark.parametrize(
    ("name", "width", "head"),
    [
        ("resnet18", 512, "fc"),
        ("squeezenet1_1", 512, "classifier.1"),
        pytest.param("densenet121", 1024, "classifier", marks=pytest.mark.slow),
    ],
)
def test_nothing_takes_the_place_of_a_last_layer_that_reads_the_width_already(name: str, width: int, head: str) -> None:
    branch = _build(name, width, 64)
    assert isinstance(branch.get_submodule(head), nn.Identity)
    assert not any(key.startswith(f"{head}.") for key in branch.state_dict())
    assert branch(torch.rand(2, 3, 64, 64)).shape == (2, width)


@pytest.mark.parametrize(("size", "width"), [(32, 64), pytest.param(224, 512, marks=pytest.mark.slow)])
def test_a_resnet18_branch_is_torchvisions_with_another_last_layer_bit_for_bit(size: int, width: int) -> None:
    torch.manual_seed(3)
    ours = _build("resnet18", width, size)
    torch.manual_seed(3)
    theirs = models.resnet18()
    theirs.fc = nn.Identity() if width == 512 else nn.Linear(512, width)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    x = torch.rand(2, 3, size, size)
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours.eval()(x), theirs.eval()(x))
    assert sum(parameter.numel() for parameter in ours.parameters()) == 11_176_512 + (513 * 64 if width == 64 else 0)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("vit_b_32", 64), ("maxvit_t", 448), ("swin_t", 45)])
def test_networks_that_must_know_the_size_are_told(name: str, size: int | tuple[int, int]) -> None:
    shape = (size, size) if isinstance(size, int) else size
    with torch.no_grad():
        assert _build(name, 5, size).eval()(torch.rand(2, 3, *shape)).shape == (2, 5)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("alexnet", 32),
        ("inception_v3", 32),
        ("vit_b_32", 45),
        ("vit_b_32", (64, 32)),
        ("maxvit_t", 64),
        ("maxvit_t", (224, 448)),
    ],
)
def test_images_a_network_cannot_take_are_refused_when_it_is_built(name: str, size: int | tuple[int, int]) -> None:
    height, width = (size, size) if isinstance(size, int) else size
    with pytest.raises(ConfigError) as error:
        _build(name, 5, size)
    assert error.value.what.startswith(f"model.target: {name} cannot take images of {width}x{height} pixels: ")
    assert "\n" not in error.value.what
    assert "--set model.target.name=" in error.value.fix


def test_an_unknown_name_is_refused_with_the_names_near_it() -> None:
    with pytest.raises(ConfigError, match=r"model\.target\.name: torchvision has no classifier 'resnet19'") as error:
        _build("resnet19", 5)
    assert "resnet18" in error.value.fix


def test_the_trial_leaves_statistics_and_random_numbers_alone() -> None:
    torch.manual_seed(0)
    branch = _build("mnasnet0_5", 5, 64)
    drawn = torch.rand(3)
    torch.manual_seed(0)
    models.mnasnet0_5()
    nn.Linear(1280, 5)
    assert torch.equal(torch.rand(3), drawn)
    for module in branch.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.num_batches_tracked == 0
            assert not module.running_mean.any()


def test_a_mnasnet_can_be_copied_and_filled() -> None:
    branch, other = _build("mnasnet0_5", 5, 64), _build("mnasnet0_5", 5, 64)
    twin = copy.deepcopy(branch)
    twin.load_state_dict(dict(other.state_dict()))
    assert torch.equal(twin.classifier[1].weight, other.classifier[1].weight)
    assert not torch.equal(branch.classifier[1].weight, other.classifier[1].weight)
