"""Weights a branch of torchvision starts from: what is taken from a file, and what is refused."""

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from start_weights import SMALL, State, build, refused, saved, section
from torch import nn
from torchvision import models

from denetdm_cli.models.factory import build_branch
from denetdm_cli.utils.errors import CheckpointError


@pytest.mark.parametrize("file", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("width", [64, 512])
def test_all_but_the_last_layer_comes_from_the_file(tmp_path: Path, file: str, width: int) -> None:
    path = saved(tmp_path / file, "resnet18")
    branch, drawn = build(path, "resnet18", width), build(None, "resnet18", width)
    torch.manual_seed(1)
    source = models.resnet18()
    state = branch.state_dict()
    expected = {name: tensor for name, tensor in source.state_dict().items() if not name.startswith("fc.")}
    assert {name for name in state if not name.startswith("fc.")} == expected.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    source.fc = drawn.fc  # the new last layer has the weights it would have without a file
    x = torch.rand(2, 3, 64, 64)
    assert torch.equal(branch(x), source(x))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert branch.started_from == {"file": file, "sha256": digest}


def test_nothing_is_looked_for_unless_asked(tmp_path: Path) -> None:
    for weights in ("imagenet", tmp_path / "missing.pth", None):
        branch = build(weights, start_weights=False)
        assert branch.started_from is None
        drawn = build(None).state_dict()
        assert all(torch.equal(drawn[name], tensor) for name, tensor in branch.state_dict().items())


def _drop(*names: str) -> Callable[[State], object]:
    return lambda state: [state.pop(name) for name in names]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("change", "what"),
    [
        (_drop("conv1.0.weight"), "missing: conv1.0.weight"),
        (lambda state: state.update({"more.weight": torch.ones(1)}), "extra: more.weight"),
        (
            lambda state: state.update({"conv1.0.weight": torch.ones(2)}),
            r"type: conv1.0.weight is float32\[2\], not float32\[24, 3, 3, 3\]",
        ),
        (
            lambda state: [state.update({f"net.{name}": state.pop(name)}) for name in list(state)],
            r"missing: conv1.0.weight, conv1.1.weight, conv1.1.bias, conv1.1.running_mean, conv1.1.running_var "
            r"and \d+ more; "
            r"extra: net\.[^,]+, .* and \d+ more",
        ),
        (lambda state: state.update({"conv1.1.bias": torch.ones(24).long()}), "bias is int64.* not float32"),
    ],
)
def test_a_file_of_another_network_is_refused(
    tmp_path: Path, suffix: str, change: Callable[[State], object], what: str
) -> None:
    path = saved(tmp_path / f"weights{suffix}", SMALL, change)
    with pytest.raises(CheckpointError, match=what) as error:
        build(path)
    assert error.value.what.startswith(f"model.target.weights: {path} does not hold the tensors of {SMALL}; ")


def test_a_larger_network_of_the_family_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "resnet34.pth", "resnet34")
    assert "extra: layer1.2." in refused(CheckpointError, path, "resnet18").what


@pytest.mark.parametrize("change", [_drop("fc.weight", "fc.bias"), lambda s: s.update({"fc.weight": torch.ones(3, 5)})])
def test_the_last_layer_of_the_file_may_be_anything(tmp_path: Path, change: Callable[[State], object]) -> None:
    assert build(saved(tmp_path / "weights.pth", SMALL, change)).started_from


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, suffix: str, value: float) -> None:
    def spoil(*names: str) -> Callable[[State], object]:
        return lambda state: [state[name].view(-1)[-1:].fill_(value) for name in names]

    path = saved(tmp_path / f"weights{suffix}", SMALL, spoil("fc.weight", "conv5.0.weight", "conv1.1.running_var"))
    error = refused(CheckpointError, path)
    assert error.what == (
        f"model.target.weights: {path} holds what is no finite number in conv1.1.running_var, conv5.0.weight"
    )
    assert build(saved(tmp_path / f"head{suffix}", SMALL, spoil("fc.weight"))).started_from, "that is left out"


@pytest.mark.parametrize("wrap", [lambda s: {"epoch": 3, "state_dict": s}, lambda s: {f"module.{k}": s[k] for k in s}])
def test_other_ways_to_save_a_state_dict(tmp_path: Path, wrap: Callable[[State], object]) -> None:
    state = torch.load(saved(tmp_path / "plain.pth"))
    torch.save(wrap(state), tmp_path / "wrapped.pth")
    assert torch.equal(build(tmp_path / "wrapped.pth").state_dict()["conv5.0.weight"], state["conv5.0.weight"])


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.safetensors").rename(tmp_path / "a.pth")
    assert build(path).started_from


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "missing.pth"
    error = refused(CheckpointError, path)
    assert error.what == f"model.target.weights: no file {path}"
    assert error.fix == (
        f"Check the path, or give a state dict of torchvision's {SMALL} (.pth or .safetensors), imagenet or null."
    )


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 7, 1000, -100])
def test_a_damaged_file_is_refused(tmp_path: Path, suffix: str, keep: int) -> None:
    path = saved(tmp_path / f"weights{suffix}")
    path.write_bytes(path.read_bytes()[:keep])
    error = refused(CheckpointError, path)
    said = {0: "is empty", 7: "is no file of weights" if "safe" in suffix else "is cut short or damaged: "}
    assert error.what.startswith(f"model.target.weights: {path} {said.get(keep, 'is cut short or damaged: ')}")
    assert error.what.isprintable()


def test_a_file_that_is_not_what_its_name_promises_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "weights.pth")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    good = path.rename(tmp_path / f"some-net-{digest[:8]}.pth")
    assert build(good).started_from == {"file": good.name, "sha256": digest}
    bad = good.rename(tmp_path / "some-net-0123abcd.pth")
    assert f"its SHA-256 begins with {digest[:8]}, but should with 0123abcd" in refused(CheckpointError, bad).what


class _Code:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("ran"),))


def test_no_code_in_a_file_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"conv1.0.weight": _Code()}, tmp_path / "torch.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(_Code(), protocol=2))
    assert "holds more than tensors" in refused(CheckpointError, tmp_path / "torch.pth").what
    refused(CheckpointError, tmp_path / "plain.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ({"epoch": 3, "model": {}}, "more than plain tensors, such as 'epoch'"),
        ({"epoch": 3, "state_dict": {}}, "an empty state dict"),
        ([torch.ones(1)], "a list, not a state dict"),
        ({3: torch.ones(1)}, "more than plain tensors, such as 3"),
    ],
)
def test_more_than_a_state_dict_is_refused(tmp_path: Path, content: object, what: str) -> None:
    torch.save(content, tmp_path / "weights.pth")
    assert refused(CheckpointError, tmp_path / "weights.pth").what.endswith(f" holds {what}")


@pytest.mark.slow
def test_the_old_names_of_densenets_are_understood(tmp_path: Path) -> None:
    def age(state: State) -> None:
        for name in list(state):
            tensor = state.pop(name)
            if not name.endswith("num_batches_tracked"):
                state[name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2.")] = tensor
        state._metadata = None  # type: ignore[attr-defined]

    path = saved(tmp_path / "old.pth", "densenet121", age)
    assert "features.denseblock1.denselayer1.norm.1.weight" in torch.load(path)
    torch.manual_seed(1)
    expected = models.densenet121().features.denseblock4.denselayer16.conv2.weight
    assert torch.equal(build(path, "densenet121").features.denseblock4.denselayer16.conv2.weight, expected)


def test_the_auxiliary_heads_of_a_googlenet_are_left_out(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = models.googlenet(aux_logits=True, init_weights=False)
    torch.save(source.state_dict(), tmp_path / "googlenet.pth")
    branch = build(tmp_path / "googlenet.pth", "googlenet")
    assert torch.equal(branch.inception5b.branch4[1].conv.weight, source.inception5b.branch4[1].conv.weight)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "width"), [("googlenet", 1024), ("inception_v3", 2048)])
def test_networks_whose_input_is_changed_for_their_weights_are_torchvisions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, width: int
) -> None:
    monkeypatch.setattr(nn.init, "trunc_normal_", lambda tensor, *_, **__: tensor)  # it takes seconds
    torch.manual_seed(1)
    state = models.get_model(name, weights=None, init_weights=False).state_dict()
    torch.save(state, tmp_path / "weights.pth")
    monkeypatch.setattr(models.WeightsEnum, "get_state_dict", lambda *_, **__: state)
    theirs = models.get_model(name, weights="IMAGENET1K_V1").eval()
    theirs.fc = nn.Identity()
    config = section(tmp_path / "weights.pth", name, width)
    x = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        ours = build_branch(config, (3, 96, 96), start_weights=True).eval()
        assert torch.equal(ours(x), theirs(x))
        rebuilt = build_branch(config, (3, 96, 96)).eval()  # as from a checkpoint
        rebuilt.load_state_dict(ours.state_dict())
        assert torch.equal(rebuilt(x), theirs(x))
        unchanged = build_branch(section(None, name, width), (3, 96, 96)).eval()
        unchanged.load_state_dict(ours.state_dict())
        assert not torch.equal(unchanged(x), theirs(x))


@pytest.fixture
def small_vit(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], models.VisionTransformer]:
    """A vision transformer for images of this size, in the place of torchvision's vit_b_16."""

    def vit_b_16(image_size: int, weights: None = None) -> models.VisionTransformer:
        return models.VisionTransformer(image_size, 16, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=12)

    vit_b_16.__module__ = models.vision_transformer.__name__
    monkeypatch.setitem(models._api.BUILTIN_MODELS, "vit_b_16", vit_b_16)
    return vit_b_16


@pytest.mark.parametrize("old_names", [False, True])
@pytest.mark.parametrize("size", [32, 64, 96])
def test_the_positions_of_a_vision_transformer_are_interpolated(
    tmp_path: Path, small_vit: Callable[[int], models.VisionTransformer], size: int, old_names: bool
) -> None:
    source = small_vit(64)
    nn.init.normal_(source.encoder.pos_embedding)
    state = source.state_dict()
    if old_names:  # those of the published files
        state = {k.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): state[k] for k in state}
    torch.save(state, tmp_path / "weights.pth")
    theirs = small_vit(size)
    theirs.load_state_dict(models.vision_transformer.interpolate_embeddings(size, 16, source.state_dict()))
    theirs.heads.head = nn.Identity()
    config = section(tmp_path / "weights.pth", "vit_b_16", 8)
    ours = build_branch(config, (3, size, size), start_weights=True)
    x = torch.rand(2, 3, size, size)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))
    sides = {32: "2x2", 96: "6x6"}
    note = {} if size == 64 else {"position_embedding": f"interpolated from 4x4 to {sides[size]} patches"}
    assert {key: ours.started_from[key] for key in ours.started_from.keys() - {"file", "sha256"}} == note


@pytest.mark.parametrize("shape", [(1, 6, 8), (2, 5, 8), (5, 8), (1, 1, 8), (1, 0, 8), (1, 5, 9)])
def test_positions_that_are_no_square_of_patches_are_refused(
    tmp_path: Path, small_vit: Callable[[int], models.VisionTransformer], shape: tuple[int, ...]
) -> None:
    state = small_vit(32).state_dict()
    state["encoder.pos_embedding"] = torch.ones(shape)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"another shape or type: encoder\.pos_embedding is"):
        build_branch(section(tmp_path / "weights.pth", "vit_b_16", 8), (3, 64, 64), start_weights=True)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sizes"), [("swin_t", (224, 45)), ("swin_v2_t", (224, 64)), ("maxvit_t", (224, 448))])
def test_other_transformers_have_the_same_tensors_at_every_size(name: str, sizes: tuple[int, int]) -> None:
    one, other = (build_branch(section(None, name), (3, size, size)).state_dict() for size in sizes)
    assert {key: tensor.shape for key, tensor in one.items()} == {key: tensor.shape for key, tensor in other.items()}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_mnasnet_starts_from_a_file(tmp_path: Path, suffix: str) -> None:
    assert build(saved(tmp_path / f"weights{suffix}", "mnasnet0_5"), "mnasnet0_5").started_from
