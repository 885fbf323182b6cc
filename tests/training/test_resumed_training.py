"""A training taken up after any step is, to the last bit, the one that was never stopped."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from denetdm_cli.config.schema import ComputeConfig, DataConfig
from denetdm_cli.data.batches import Batch, Batches
from denetdm_cli.data.store import Split
from denetdm_cli.methods.base import Method
from denetdm_cli.methods.denetdm.poe import TrainPoeSettings
from denetdm_cli.training import checkpoint
from denetdm_cli.training.events import EpochTrained, StepProgress
from denetdm_cli.training.trainer import Trainer
from denetdm_cli.utils.errors import CheckpointError

STEPS = 5
EPOCHS = 2


class Moody(Method):
    """A network with everything that has a state of its own: normalisation that moves, noise, a tensor per image."""

    name, predictors, Settings = "moody", ("model",), TrainPoeSettings

    @classmethod
    def build(cls, *_: object) -> "Moody":
        return cls()

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"seen": self.seen}

    def load_state_dict(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.seen = tensors["seen"].clone()

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.seen = torch.zeros(36)
        self.model = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 3)
        )

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        logits = self.model(batch.x)
        self.seen[batch.index] = 0.7 * self.seen[batch.index] + logits.detach().float().std(dim=1)
        weight = 1 + self.seen[batch.index]  # so that what is not restored shows in the weights
        per_image = nn.functional.cross_entropy(logits, batch.y, reduction="none")
        return {"class": weight * per_image, "size": 0.01 * logits.square().mean(dim=1)}

    def predict(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"model": self.model(x)}


def training(batch_size: int = 8, compute: ComputeConfig | None = None) -> tuple[Moody, Trainer]:
    random = np.random.RandomState(0)
    split = Split(random.randint(0, 256, (36, 8, 8, 3)).astype(np.uint8), (np.arange(36) % 3).astype(np.uint8), None)
    data = DataConfig(
        cache="auto", mean=[0.5] * 3, std=[0.2] * 3, random_crop_padding=2, random_resized_crop=None,
        horizontal_flip=True,
    )  # fmt: skip
    settings = TrainPoeSettings(
        epochs=EPOCHS, batch_size=batch_size, learning_rate=0.01, weight_decay=1e-3, drop_last=False,
        selection_metric="shallow.accuracy",
    )  # fmt: skip
    method = Moody()
    batches = Batches(split, torch.device("cpu"), data, augment=True)
    return method, Trainer(method, batches, settings, seed=5, compute=compute)


def outcome(method: Moody, ends: list[EpochTrained]) -> tuple[list[bytes], list[tuple[int, dict[str, float], int]]]:
    tensors = [tensor.numpy().tobytes() for tensor in method.model.state_dict().values()]
    return tensors, [(end.epoch, end.losses, end.images) for end in ends]


@pytest.mark.parametrize("stop", range(1, EPOCHS * STEPS + 1))
def test_after_any_step(stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("denetdm_cli.training.trainer._SECONDS_BETWEEN_EVENTS", 0.0)
    method, straight = training()
    expected = outcome(method, [event for event in straight.run() if isinstance(event, EpochTrained)])

    path, ends, steps = tmp_path / "state.safetensors", [], 0
    _, first = training()
    for event in first.run():
        steps += isinstance(event, StepProgress)
        if steps == stop:
            checkpoint.save(path, *first.state_dict())
            break
        if isinstance(event, EpochTrained):
            ends.append(event)

    torch.manual_seed(stop)  # what another process would have there
    method, second = training()
    second.load_state_dict(*checkpoint.load(path), path)
    completed, before = divmod(stop - 1, STEPS)
    assert (second.completed, second.steps) == (completed, before + 1)
    ends += [event for event in second.run() if isinstance(event, EpochTrained)]
    assert outcome(method, ends) == expected


@pytest.mark.parametrize("missing", ["sizes", "terms", "seconds", "epoch"])
def test_a_damaged_state_is_refused(missing: str, tmp_path: Path) -> None:
    _, first = training()
    next(event for event in first.run() if isinstance(event, EpochTrained))
    tensors, facts = first.state_dict()
    del facts[missing]
    with pytest.raises(CheckpointError, match=r"state\.safetensors is damaged"):
        training()[1].load_state_dict(tensors, facts, tmp_path / "state.safetensors")


def test_low_precision_trains_in_it_and_keeps_full_weights() -> None:
    full, low = (
        training(compute=ComputeConfig(precision=precision, compile=False, sync_batchnorm=False))
        for precision in ("fp32", "bf16")
    )
    seen = []
    low[0].model[5].register_forward_hook(lambda *found: seen.append(found[2].dtype))
    ends = [[event for event in one.run() if isinstance(event, EpochTrained)][-1] for _, one in (full, low)]
    assert set(seen) == {torch.bfloat16}
    assert {tensor.dtype for tensor in low[0].model.parameters()} == {torch.float32}
    assert ends[0].losses != ends[1].losses
    assert ends[0].losses["total"] == pytest.approx(ends[1].losses["total"], rel=0.05)
