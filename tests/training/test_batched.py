"""Trainings as one program beside each of them alone; and the graph of a step, on a stand-in for CUDA."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from denetdm_cli.config.schema import DataConfig, DistillConfig, MlpConfig, ModelConfig, StageConfig, TrainPoeConfig
from denetdm_cli.data.batches import Batches, Pool
from denetdm_cli.data.store import Split
from denetdm_cli.methods.base import Method
from denetdm_cli.methods.denetdm.distill import Distillation
from denetdm_cli.methods.denetdm.models import ProductOfExperts, TargetModel
from denetdm_cli.methods.denetdm.poe import ProductOfExpertsTraining
from denetdm_cli.training import batched
from denetdm_cli.training.batched import Stack
from denetdm_cli.training.events import EpochEnd
from denetdm_cli.training.trainer import Training
from denetdm_cli.utils.errors import ConfigError

SHAPE, CLASSES, IMAGES, BATCH = (3, 5, 4), 6, 50, 8
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
RUNS = 3
"""Seeds 0, 1 and 2; the first two share their images."""

BRANCH = {depth: MlpConfig(name="mlp", depth=depth, width=8) for depth in (3, 4, 5)}
MODEL = ModelConfig(shallow=BRANCH[3], deep=BRANCH[5], target=BRANCH[4])
POE = TrainPoeConfig(
    epochs=3, batch_size=BATCH, learning_rate=1e-3, weight_decay=1e-3, drop_last=False,
    selection_metric="shallow.conflicting",
)  # fmt: skip
DISTILL = DistillConfig(
    epochs=3, batch_size=BATCH, learning_rate=1e-3, weight_decay=0.0, drop_last=False,
    selection_metric="target.unbiased", teacher="last", w_poe=0.7, w_dist=1.3, tau=2.0,
)  # fmt: skip


@pytest.fixture
def in_float64() -> Iterator[None]:
    """Rounding in float32 can turn a ReLU round, which Adam makes a full step of; in float64 that has not been seen."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def split(seed: int) -> Split:
    random = np.random.RandomState(seed)
    images = random.randint(0, 256, (IMAGES, *SHAPE[1:], 3)).astype(np.uint8)
    return Split(images, random.randint(0, CLASSES, IMAGES).astype(np.uint8), None)


def method(stage: StageConfig, seed: int, batches: Batches) -> Method:
    experts = ProductOfExperts(MODEL, SHAPE, CLASSES, seed)
    if isinstance(stage, TrainPoeConfig):
        return ProductOfExpertsTraining(experts.to(batches.device))
    target = TargetModel(MODEL, SHAPE, CLASSES, seed)
    target.start_from(experts)
    distillation = Distillation(target.to(batches.device), experts.to(batches.device), DISTILL)
    distillation.precompute(batches)
    return distillation


def trainings(stage: StageConfig, device: str = "cpu") -> list[Training]:
    images = [Batches(split(number), torch.device(device)) for number in (0, 1)]
    batches = [images[0], images[0], images[1]]
    return [Training(method(stage, seed, batches[seed]), batches[seed], stage, seed=seed) for seed in range(RUNS)]


def weights(training: Training) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in training.method.model.state_dict().items()}


def train_together(stack: Stack, alike: list[Training]) -> list[list[EpochEnd]]:
    ends: list[list[EpochEnd]] = [[] for _ in alike]
    while not alike[0].done:
        for _ in stack.epoch():
            pass
        for training, found in zip(alike, ends, strict=True):
            found.append(training.end_epoch())
            training.next_epoch()
    return ends


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("stage", [POE, DISTILL, POE.model_copy(update={"drop_last": True})], ids=["1", "2", "full"])
def test_each_training_is_what_it_is_alone(stage: StageConfig, device: str, in_float64: None) -> None:
    """Weights before the first step are the same, and all that follows is but for rounding."""
    alone, alike = trainings(stage, device), trainings(stage, device)
    before = [weights(training) for training in alike]
    for training in alike:
        training.method.model.eval()
    stack = Stack(alike)
    for training, start in zip(alike, before, strict=True):
        assert all(torch.equal(tensor, start[name]) for name, tensor in weights(training).items())
    ends = train_together(stack, alike)
    for number, training in enumerate(alone):
        expected = [event for event in training.run() if isinstance(event, EpochEnd)]
        for found, wanted in zip(ends[number], expected, strict=True):
            assert (found.epoch, found.images) == (wanted.epoch, wanted.images)
            assert found.losses == pytest.approx(wanted.losses, rel=1e-9)
        final = weights(training)
        for name, tensor in weights(alike[number]).items():
            torch.testing.assert_close(tensor, final[name], rtol=1e-9, atol=1e-9)
        assert any((final[name] - start).abs().max() > 1e-3 for name, start in before[number].items())
        assert alike[number].method.model.training
        state, alone_state = alike[number].state()[0], training.state()[0]
        assert state.keys() == alone_state.keys()
        assert torch.equal(state["optimizer.step"], alone_state["optimizer.step"])


def plain_loss(training: Training, parameters: dict[str, Tensor], x: Tensor, y: Tensor, index: Tensor) -> Tensor:
    """The sum of the losses from plain layers, in float64."""

    def features(branch: str) -> Tensor:
        found = x.flatten(1)
        for number in range(len(getattr(training.method.model, branch).layers)):
            layer = f"{branch}.layers.{number}"
            found = F.linear(found, parameters[f"{layer}.weight"], parameters[f"{layer}.bias"]).relu()
        return found

    def head(found: Tensor) -> Tensor:
        return F.linear(found, parameters["head.weight"], parameters["head.bias"])

    if training.stage is POE:
        return F.cross_entropy(head(features("shallow") + features("deep")), y)
    deep, teacher = (part[index].double() for part in training.method.known)
    target = features("target")
    taught = -(teacher * (head(target) / DISTILL.tau).log_softmax(dim=1)).sum(dim=1).mean()
    return DISTILL.w_poe * F.cross_entropy(head(deep + target), y) + DISTILL.w_dist * DISTILL.tau**2 * taught


@pytest.mark.parametrize("stage", [POE, DISTILL], ids=["1", "2"])
def test_the_gradients_of_a_step_are_those_of_separate_ones(stage: StageConfig) -> None:
    alike = trainings(stage)
    before = [weights(training) for training in alike]
    stack = Stack(alike)
    index = torch.stack([torch.randperm(IMAGES, generator=torch.Generator().manual_seed(r))[:5] for r in range(RUNS)])
    losses = stack.step(index)
    for number, training in enumerate(alike):
        names = [name for name, p in training.method.model.named_parameters() if p.requires_grad]
        parameters = {name: tensor.double().requires_grad_() for name, tensor in before[number].items()}
        images = split(0 if number < 2 else 1)
        x = torch.from_numpy(images.images[index[number]]).permute(0, 3, 1, 2).double() / 255
        loss = plain_loss(training, parameters, x, torch.from_numpy(images.target[index[number]]).long(), index[number])
        assert losses[number].sum().item() == pytest.approx(loss.item(), rel=1e-5)
        expected = torch.autograd.grad(loss, [parameters[name] for name in names])
        for stacked, wanted in zip(stack._optimizer.parameters, expected, strict=True):
            torch.testing.assert_close(stacked.grad[number].double(), wanted, rtol=1e-4, atol=1e-7)


def test_each_sees_its_own_images_in_its_own_order(monkeypatch: pytest.MonkeyPatch) -> None:
    alone, alike = trainings(POE), trainings(POE)
    seen: list[Any] = []
    take = Pool.take

    def taking(pool: Pool, index: Tensor) -> Any:
        seen.append(take(pool, index))
        return seen[-1]

    monkeypatch.setattr(Pool, "take", taking)
    train_together(Stack(alike), alike)
    for number, training in enumerate(alone):
        expected = []
        while not training.done:
            expected += training.batches.shuffled(BATCH, training.order(), drop_last=False)
            training.next_epoch()
        assert len(expected) == len(seen) == 3 * 7
        for batch, own in zip(seen, expected, strict=True):
            for name in ("x", "y", "index"):
                assert torch.equal(getattr(batch, name)[number], getattr(own, name))


def test_a_run_that_is_not_finite_spoils_no_other() -> None:
    clean, alike = trainings(POE), trainings(POE)
    with torch.no_grad():
        alike[1].method.model.head.bias[0] = float("nan")
    for some in (clean, alike):
        for _ in Stack(some).epoch():
            pass
    for number, finite in enumerate((True, False, True)):
        found, expected = weights(alike[number]), weights(clean[number])
        assert all(torch.equal(found[name], expected[name]) for name in found) is finite
    assert alike[0].end_epoch().losses == clean[0].end_epoch().losses


class NothingRead(TorchDispatchMode):
    """Refuses to bring a value to Python, or a tensor from one device to another: a graph cannot hold that."""

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = op(*args, **(kwargs or {}))
        assert "_local_scalar_dense" not in str(op)
        made = [one for one in (*args, result) if isinstance(one, Tensor) and one.dim()]
        assert {one.device.type for one in made} <= {"meta"}, op
        return result


@pytest.mark.parametrize("stage", [POE, DISTILL], ids=["1", "2"])
def test_a_step_can_be_captured(stage: StageConfig) -> None:
    """On a device without values, a step that looked at one, or mixed devices, would fail."""
    stack = Stack(trainings(stage, "meta"))
    with NothingRead():
        losses = stack.step(torch.zeros((RUNS, BATCH), dtype=torch.int64, device="meta"))
    assert losses.shape == (RUNS, 1 if stage is POE else 2)


def test_images_kept_elsewhere_are_refused() -> None:
    plain: dict[str, Any] = {"mean": None, "std": None, "random_crop_padding": 0, "random_resized_crop": None}
    config = DataConfig(cache="stream", horizontal_flip=False, **plain)
    batches = Batches(split(0), torch.device("cpu"), config)
    with pytest.raises(ConfigError, match=r"data\.cache: .*stream"):
        Pool([batches], [()])


class FakeCuda:
    """Notes what a capture does. What a real graph keeps in memory, this one computes again at a replay."""

    def __init__(self) -> None:
        self.aside = self.captures = 0
        self.capturing = False
        self.replayed: Callable[[], None] = lambda: None

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stream = SimpleNamespace(wait_stream=lambda other: None)
        graph = SimpleNamespace(replay=lambda: self.replayed())
        for name, made in {
            "Stream": lambda _: stream, "current_stream": lambda: stream, "CUDAGraph": lambda: graph,
            "stream": self._aside, "graph": self._capture, "device": lambda _: nullcontext(),
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, made)

    @contextmanager
    def _aside(self, _: object) -> Iterator[None]:
        self.aside += 1
        yield

    @contextmanager
    def _capture(self, _: object) -> Iterator[None]:
        self.captures += 1
        self.capturing = True
        yield
        self.capturing = False

    def step(self, index: Tensor) -> Tensor:
        """Ten times the indices; in a capture nothing is computed yet."""
        if not self.capturing:
            return index * 10.0
        result = torch.full(index.shape, -1.0)
        self.replayed = lambda: result.copy_(index * 10.0)
        return result


def test_the_graph_of_a_step_is_captured_once_and_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda()
    cuda.install(monkeypatch)
    step = batched._Captured(cuda.step, torch.device("cpu"))
    sizes = [4, 4, 4, 4, 4, 2, 4, 4]
    given = [torch.full((3, size), number) for number, size in enumerate(sizes)]
    found = [step(index) for index in given]
    assert all(torch.equal(result, index * 10.0) for result, index in zip(found, given, strict=True))
    assert (cuda.aside, cuda.captures) == (batched._WARM_UP_STEPS + 1, 1)


def test_what_is_frozen_is_not_stacked() -> None:
    alike = trainings(DISTILL)
    stack = Stack(alike)
    assert len(stack._parameters) == len([*alike[0].method.model.target.parameters()]) + 2
    assert not any(parameter.requires_grad for parameter in alike[0].method.model.deep.parameters())
