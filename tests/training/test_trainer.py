from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from denetdm_cli.data.batches import Batch, Batches
from denetdm_cli.data.store import Split
from denetdm_cli.methods.base import Method
from denetdm_cli.methods.denetdm.poe import TrainPoeSettings
from denetdm_cli.training.events import EpochTrained, StepProgress
from denetdm_cli.training.trainer import Trainer
from denetdm_cli.utils.errors import NumericError

IMAGES = 50


class Recorder(Method):
    """A method of one weight that notes which images it sees and in which mode."""

    name, predictors, Settings = "recorder", ("model",), TrainPoeSettings

    @classmethod
    def build(cls, *_: object) -> "Recorder":
        return cls()

    def __init__(self, spoil_at: int | None = None) -> None:
        self.model = nn.Linear(12, 3)
        self.seen: list[list[int]] = []
        self.spoil_at = spoil_at

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        assert self.model.training
        self.seen.append(batch.index.tolist())
        term = self.model(batch.x.flatten(1)).square().mean(dim=1)
        factor = float("nan") if len(self.seen) == self.spoil_at else 1.0
        return {"first": term * factor, "second": 0 * term + batch.index.float()}

    def predict(self, x: Tensor) -> dict[str, Tensor]:
        return {"model": self.model(x.flatten(1))}


def _batches() -> Batches:
    random = np.random.RandomState(0)
    labels = random.randint(0, 3, (2, IMAGES)).astype(np.uint8)
    return Batches(Split(random.randint(0, 256, (IMAGES, 2, 2, 3)).astype(np.uint8), *labels), torch.device("cpu"))


def _settings(**changes: object) -> TrainPoeSettings:
    settings = TrainPoeSettings(
        epochs=3,
        batch_size=8,
        learning_rate=1e-3,
        weight_decay=0.0,
        drop_last=True,
        selection_metric="shallow.conflicting",
    )
    return settings.model_copy(update=changes)


def _run(method: Recorder, settings: TrainPoeSettings, *, seed: int = 0, first_epoch: int = 1) -> list[EpochTrained]:
    training = Trainer(method, _batches(), settings, seed=seed)
    while training.completed < first_epoch - 1:
        training.next_epoch()
    return [event for event in training.run() if isinstance(event, EpochTrained)]


@pytest.mark.parametrize(("drop_last", "steps", "images"), [(True, 6, 48), (False, 7, 50)])
def test_an_epoch_sees_every_image_once_in_an_order_of_its_own(drop_last: bool, steps: int, images: int) -> None:
    method = Recorder()
    ends = _run(method, _settings(drop_last=drop_last))
    epochs = [[i for batch in method.seen[s : s + steps] for i in batch] for s in range(0, 3 * steps, steps)]
    assert len(method.seen) == 3 * steps
    assert [end.images for end in ends] == [images] * 3
    assert all(len(set(epoch)) == images for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != sorted(epochs[0])


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    whole, later, other = Recorder(), Recorder(), Recorder()
    _run(whole, _settings())
    torch.manual_seed(99)
    _run(later, _settings(), first_epoch=3)
    _run(other, _settings(), seed=1)
    assert later.seen == whole.seen[12:]
    assert other.seen != whole.seen


def test_the_global_stream_is_neither_read_nor_moved() -> None:
    torch.manual_seed(5)
    method = Recorder()
    before = torch.get_rng_state()
    _run(method, _settings())
    assert torch.equal(torch.get_rng_state(), before)


def test_losses_are_means_over_the_images_of_the_epoch() -> None:
    method = Recorder()
    (end,) = _run(method, _settings(epochs=1, drop_last=False))
    # `second` is the mean index of a batch, so its mean over all images is (0 + ... + 49) / 50, short batch included.
    assert end.losses["second"] == pytest.approx(24.5)
    assert end.losses["total"] == pytest.approx(end.losses["first"] + 24.5)


@pytest.mark.parametrize(("spoil_at", "epoch", "step"), [(1, 1, 1), (9, 2, 3)])
def test_a_loss_that_is_not_finite_stops_with_epoch_and_step(spoil_at: int, epoch: int, step: int) -> None:
    with pytest.raises(NumericError, match=rf"'first' became nan in epoch {epoch}, step {step}") as caught:
        _run(Recorder(spoil_at), _settings())
    assert caught.value.exit_code == 6
    assert "--set recorder.learning_rate=" in caught.value.fix


def test_a_loss_that_is_not_finite_is_found_within_a_long_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("denetdm_cli.training.trainer._SECONDS_BETWEEN_EVENTS", 0.0)
    method = Recorder(spoil_at=2)
    with pytest.raises(NumericError, match="epoch 1, step 2"):
        _run(method, _settings())
    assert len(method.seen) == 2


def test_progress_within_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("denetdm_cli.training.trainer._SECONDS_BETWEEN_EVENTS", 0.0)
    method = Recorder()
    settings = _settings(epochs=1)
    events = list(Trainer(method, _batches(), settings, seed=0).run())
    assert [event.images for event in events if isinstance(event, StepProgress)] == [8, 16, 24, 32, 40, 48]
    assert isinstance(events[-1], EpochTrained)


def test_what_comes_between_two_epochs_is_no_training_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("denetdm_cli.training.trainer.time", SimpleNamespace(perf_counter=lambda: now[0]))
    training = Trainer(Recorder(), _batches(), _settings(), seed=0)
    for event in training.run():
        now[0] += 100
        if isinstance(event, EpochTrained):
            break
    training.next_epoch()
    assert training.state_dict()[1]["seconds"] == 0


def test_every_unfrozen_parameter_is_trained_and_no_other() -> None:
    method = Recorder()
    method.model.bias.requires_grad_(False)
    before = {name: value.clone() for name, value in method.model.state_dict().items()}
    _run(method, _settings())
    assert torch.equal(method.model.bias, before["bias"])
    assert not torch.equal(method.model.weight, before["weight"])


def test_batches_are_pixels_over_255_channels_first() -> None:
    split = Split(np.arange(2 * 2 * 3 * 3, dtype=np.uint8).reshape(2, 2, 3, 3), *np.array([[1, 2], [0, 1]], np.uint8))
    batches = Batches(split, torch.device("cpu"))
    batch = batches.take(torch.tensor([1, 0]))
    expected = torch.from_numpy(split.images[[1, 0]]).permute(0, 3, 1, 2).float() / 255
    assert torch.equal(batch.x, expected)
    assert batch.y.tolist() == [2, 1]
    assert (batches.target.tolist(), batches.bias.tolist()) == ([1, 2], [0, 1])
    (whole,) = batches.in_order(10)
    assert torch.equal(whole.x, expected[[1, 0]])
    assert batches.shape == (3, 2, 3)


def test_dropout_depends_on_the_seed_alone_and_leaves_the_callers_stream_where_it_was() -> None:
    random = np.random.RandomState(0)
    split = Split(random.randint(0, 256, (40, 4, 4, 3)).astype(np.uint8), (np.arange(40) % 3).astype(np.uint8), None)

    class Dropping(Recorder):
        def __init__(self) -> None:
            torch.manual_seed(0)
            self.model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(48, 3))

        def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
            return {"loss": nn.functional.cross_entropy(self.model(batch.x), batch.y, reduction="none")}

        def predict(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"model": self.model(x)}

    def trained(noise: int, *epochs: int) -> torch.Tensor:
        method = Dropping()
        settings = TrainPoeSettings(
            epochs=epochs[-1], batch_size=10, learning_rate=0.01, weight_decay=0.0, drop_last=False,
            selection_metric="shallow.accuracy",
        )  # fmt: skip
        training = Trainer(method, Batches(split, torch.device("cpu")), settings, seed=5)
        for epoch in epochs:
            torch.manual_seed(noise + epoch)
            before = torch.get_rng_state()
            events = training.run()
            next(event for event in events if isinstance(event, EpochTrained))
            training.next_epoch()
            events.close()
            assert torch.equal(torch.get_rng_state(), before)
        return method.model[2].weight.detach().clone()

    assert torch.equal(trained(1, 1, 2), trained(100, 1, 2))
    method = Dropping()
    settings = TrainPoeSettings(
        epochs=2, batch_size=10, learning_rate=0.01, weight_decay=0.0, drop_last=False,
        selection_metric="shallow.accuracy",
    )  # fmt: skip
    list(Trainer(method, Batches(split, torch.device("cpu")), settings, seed=5).run())
    assert torch.equal(method.model[2].weight, trained(1, 1, 2)), "stopped in between or not"


def test_dropout_differs_from_epoch_to_epoch_and_from_seed_to_seed() -> None:
    class Dropping(Recorder):
        def losses(self, batch: Batch) -> dict[str, Tensor]:
            kept.append(nn.functional.dropout(torch.ones(64)).tolist())
            return super().losses(batch)

    kept: list[list[float]] = []
    for seed in (1, 2):
        _run(Dropping(), _settings(epochs=2, batch_size=IMAGES), seed=seed)
    assert len({tuple(mask) for mask in kept}) == 4
