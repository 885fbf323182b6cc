"""Losses and gradients of both stages beside a float64 computation by hand, which shares nothing with the program."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from denetdm_cli.config.schema import MlpConfig, ModelConfig
from denetdm_cli.data.batches import Batch, Batches
from denetdm_cli.data.store import Split
from denetdm_cli.methods.denetdm.distill import Distill, DistillSettings
from denetdm_cli.methods.denetdm.models import ProductOfExperts, TargetModel
from denetdm_cli.methods.denetdm.poe import TrainPoe

Array = NDArray[np.float64]
Layers = list[tuple[Array, Array]]

CLASSES, IMAGES, SHAPE = 10, 12, (3, 5, 4)


def _config(**changes: float) -> DistillSettings:
    values = {"w_poe": 1.0, "w_dist": 1.0, "tau": 2.0, "weight_decay": 0.0, "learning_rate": 1e-3, **changes}
    return DistillSettings(
        epochs=1, batch_size=4, drop_last=False, selection_metric="target.unbiased", teacher="selected", **values
    )


def _models() -> tuple[ProductOfExperts, TargetModel]:
    def branch(depth: int) -> MlpConfig:
        return MlpConfig(name="mlp", depth=depth, width=8)

    config = ModelConfig(shallow=branch(3), deep=branch(5), target=branch(4))
    experts = ProductOfExperts(config, SHAPE, CLASSES, seed=1)
    target = TargetModel(config, SHAPE, CLASSES, seed=1)
    target.start_from(experts)
    with torch.no_grad():  # apart from the teacher's, so that a mix-up of the two heads shows
        target.head.weight += 0.1 * torch.randn(target.head.weight.shape, generator=torch.Generator().manual_seed(2))
    return experts, target


def _split() -> Split:
    random = np.random.RandomState(0)
    images = random.randint(0, 256, (IMAGES, *SHAPE[1:], 3)).astype(np.uint8)
    labels = random.randint(0, CLASSES, (2, IMAGES)).astype(np.uint8)
    return Split(images, labels[0], labels[1])


def _whole(batches: Batches) -> Batch:
    return batches.take(torch.arange(IMAGES))


def _layers(branch: torch.nn.Module) -> Layers:
    return [(_array(layer.weight), _array(layer.bias)) for layer in branch.layers]


def _array(tensor: torch.Tensor) -> Array:
    return tensor.detach().numpy().astype(np.float64)


def _forward(layers: Layers, x: Array) -> list[Array]:
    outputs = [x]
    for weight, bias in layers:
        outputs.append(np.maximum(outputs[-1] @ weight.T + bias, 0))
    return outputs


def _backward(layers: Layers, outputs: list[Array], gradient: Array) -> list[Array]:
    found: list[Array] = []
    for (weight, _), before, after in reversed(list(zip(layers, outputs[:-1], outputs[1:], strict=True))):
        gradient = gradient * (after > 0)
        found = [gradient.T @ before, gradient.sum(axis=0), *found]
        gradient = gradient @ weight
    return found


def _softmax(logits: Array) -> Array:
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


def _inputs(split: Split) -> tuple[Array, Array]:
    x = split.images.transpose(0, 3, 1, 2).reshape(IMAGES, -1) / 255
    return x, np.eye(CLASSES)[split.target]


def _gradients(modules: list[torch.nn.Module]) -> list[Array]:
    return [_array(parameter.grad) for module in modules for parameter in module.parameters()]


def test_stage_1() -> None:
    experts, _ = _models()
    split = _split()
    method = TrainPoe(experts)
    losses = method.losses(_whole(Batches(split, torch.device("cpu"))))
    sum(losses.values()).mean().backward()

    x, truth = _inputs(split)
    shallow, deep, weight = _layers(experts.shallow), _layers(experts.deep), _array(experts.head.weight)
    a, b = _forward(shallow, x), _forward(deep, x)
    features = a[-1] + b[-1]
    probabilities = _softmax(features @ weight.T + _array(experts.head.bias))
    loss = -(truth * np.log(probabilities)).sum(axis=1).mean()
    signal = (probabilities - truth) / IMAGES
    expected = [
        *_backward(shallow, a, signal @ weight),
        *_backward(deep, b, signal @ weight),
        signal.T @ features,
        signal.sum(axis=0),
    ]
    assert list(losses) == ["poe"]
    assert losses["poe"].mean().item() == pytest.approx(loss, rel=1e-6)
    for found, wanted in zip(_gradients([experts.shallow, experts.deep, experts.head]), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=1e-7)


@pytest.mark.parametrize("precomputed", [False, True])
@pytest.mark.parametrize(("w_poe", "w_dist", "tau"), [(1.0, 1.0, 2.0), (0.3, 1.7, 2.0), (0.5, 1.0, 4.0)])
def test_stage_2(precomputed: bool, w_poe: float, w_dist: float, tau: float) -> None:
    teacher, model = _models()
    split = _split()
    batches = Batches(split, torch.device("cpu"))
    method = Distill(model, teacher, _config(w_poe=w_poe, w_dist=w_dist, tau=tau))
    if precomputed:
        method.prepare(batches)
    losses = method.losses(_whole(batches))
    sum(losses.values()).mean().backward()

    x, truth = _inputs(split)
    phi_b, phi_d = _forward(_layers(model.deep), x)[-1], _forward(_layers(teacher.shallow), x)[-1]
    target = _layers(model.target)
    outputs = _forward(target, x)
    phi_t, weight, bias = outputs[-1], _array(model.head.weight), _array(model.head.bias)
    product = _softmax((phi_b + phi_t) @ weight.T + bias)
    taught = _softmax((phi_d @ _array(teacher.head.weight).T + _array(teacher.head.bias)) / tau)
    student = _softmax((phi_t @ weight.T + bias) / tau)
    poe = w_poe * -(truth * np.log(product)).sum(axis=1).mean()
    dist = w_dist * tau**2 * -(taught * np.log(student)).sum(axis=1).mean()
    signal_poe = w_poe * (product - truth) / IMAGES
    signal_dist = w_dist * tau * (student - taught) / IMAGES
    expected = [
        *_backward(target, outputs, (signal_poe + signal_dist) @ weight),
        signal_poe.T @ (phi_b + phi_t) + signal_dist.T @ phi_t,
        (signal_poe + signal_dist).sum(axis=0),
    ]
    assert losses["poe"].mean().item() == pytest.approx(poe, rel=1e-6)
    assert losses["dist"].mean().item() == pytest.approx(dist, rel=1e-6)
    for found, wanted in zip(_gradients([model.target, model.head]), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=1e-7)
    frozen = [*model.deep.parameters(), *teacher.parameters()]
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in frozen)


@pytest.mark.parametrize(("w_poe", "w_dist", "terms"), [(1.0, 0.0, ["poe"]), (0.0, 1.0, ["dist"])])
def test_a_term_of_weight_0_is_left_out(w_poe: float, w_dist: float, terms: list[str]) -> None:
    teacher, model = _models()
    method = Distill(model, teacher, _config(w_poe=w_poe, w_dist=w_dist))
    assert list(method.losses(_whole(Batches(_split(), torch.device("cpu"))))) == terms


def test_precomputed_rows_belong_to_their_images() -> None:
    teacher, model = _models()
    batches = Batches(_split(), torch.device("cpu"))
    index = torch.tensor([7, 2, 11, 0])
    method = Distill(model, teacher, _config())
    fresh = method.losses(batches.take(index))
    method.prepare(batches)
    torch.testing.assert_close(method.losses(batches.take(index)), fresh)
