"""What every method promises, and what the loop does for those that use more of the contract."""

import numpy as np
import pytest
import torch

from denetdm_cli.config.load import from_mapping
from denetdm_cli.config.schema import ComputeConfig, Config, MethodSettings
from denetdm_cli.data.batches import Batches
from denetdm_cli.data.store import Split, StoredDataset
from denetdm_cli.evaluation.metrics import METRICS
from denetdm_cli.methods import METHODS
from denetdm_cli.methods.base import Task
from denetdm_cli.methods.erm import Erm
from denetdm_cli.training.checks import require_bias_labels
from denetdm_cli.training.events import EpochTrained
from denetdm_cli.training.trainer import Trainer
from denetdm_cli.utils.errors import DataError

CPU = torch.device("cpu")


def test_the_registry_holds_the_methods_each_after_what_it_starts_from() -> None:
    assert {"erm", "train-poe", "distill"} <= METHODS.keys()
    names = list(METHODS)
    for name, method in METHODS.items():
        assert method.name == name
        assert method.starts_from is None or names.index(method.starts_from) < names.index(name)


@pytest.mark.parametrize("name", METHODS)
def test_each_has_settings_with_defaults_and_is_built_from_them(name: str) -> None:
    config = from_mapping({"dataset": {"name": "coloredmnist"}}, "here")
    kind, settings = METHODS[name], config.settings(name)
    assert isinstance(settings, MethodSettings)
    predictor, metric = settings.selection_metric.split(".")
    assert predictor in kind.predictors
    assert metric in METRICS
    method = kind.build(Task(config.model, (3, 4, 4), 5, 5, 0), settings)
    logits = method.predict(torch.rand(2, 3, 4, 4))
    assert tuple(logits) == kind.predictors
    assert all(part.shape == (2, 5) for part in logits.values())
    assert set(kind.predictors) <= set(method.predict_all(torch.rand(2, 3, 4, 4)))
    if kind.exports:
        x = torch.rand(3, 3, 4, 4)
        assert torch.equal(method.classifier()(x), method.predict(x)[kind.predictors[0]])


@pytest.mark.parametrize("name", METHODS)
def test_each_trains_perceptrons_in_bf16(name: str) -> None:
    config = from_mapping({"dataset": {"name": "coloredmnist"}}, "here")
    task = Task(config.model, (3, 2, 2), 3, 3, 0)
    before = METHODS[name].starts_from
    previous = METHODS[before].build(task, config.settings(before)) if before else None
    settings = config.settings(name).model_copy(update={"epochs": 1, "batch_size": 10})
    method = METHODS[name].build(task, settings, previous)
    weights = [parameter.clone() for parameter in method.model.parameters() if parameter.requires_grad]
    images = batches()
    method.prepare(images)
    compute = ComputeConfig(precision="bf16")
    *_, end = Trainer(method, images, settings, seed=0, compute=compute).run()
    assert isinstance(end, EpochTrained)
    trained = [parameter for parameter in method.model.parameters() if parameter.requires_grad]
    assert all(parameter.dtype == torch.float32 for parameter in trained)
    assert not any(torch.equal(new, old) for new, old in zip(trained, weights, strict=True))


def batches(count: int = 30, *, with_bias: bool = False) -> Batches:
    random = np.random.RandomState(0)
    labels = random.randint(0, 3, (2, count)).astype(np.uint8)
    return Batches(Split(random.randint(0, 256, (count, 2, 2, 3)).astype(np.uint8), *labels), CPU, with_bias=with_bias)


def drawn(weights: torch.Tensor | None, *, drop_last: bool = False, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    some = batches().shuffled(8, generator, drop_last=drop_last, weights=weights)
    return [place for batch in some for place in batch.index.tolist()]


def test_whole_weights_draw_each_image_exactly_so_many_times() -> None:
    weights = torch.ones(30, dtype=torch.int64)
    weights[3], weights[4] = 5, 0
    found = drawn(weights)
    assert torch.bincount(torch.tensor(found), minlength=30).tolist() == weights.tolist()
    assert len(found) == batches().epoch_size(8, weights, drop_last=False) == 33
    assert len(drawn(weights, drop_last=True)) == batches().epoch_size(8, weights, drop_last=True) == 32
    assert found != drawn(weights, seed=1)


def test_fractions_draw_with_replacement_in_proportion() -> None:
    weights = torch.zeros(30)
    weights[:2] = torch.tensor([0.75, 0.25])
    found = [place for seed in range(40) for place in drawn(weights, seed=seed)]
    assert len(found) == 40 * 30
    assert set(found) == {0, 1}
    assert found.count(0) / len(found) == pytest.approx(0.75, abs=0.05)


def test_bias_labels_are_in_batches_of_methods_that_train_on_them_alone() -> None:
    index = torch.tensor([4, 2])
    assert batches().take(index).bias is None
    some = batches(with_bias=True)
    found = some.take(index).bias
    assert found is not None
    assert found.tolist() == some.bias[[4, 2]].tolist()


def test_a_method_that_needs_bias_labels_refuses_data_without(
    tiny_config: Config, tiny_dataset: StoredDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_bias_labels(Erm, tiny_dataset)
    monkeypatch.setattr(Erm, "needs_bias", True)
    require_bias_labels(Erm, tiny_dataset)
    train = tiny_dataset.splits["train"]
    monkeypatch.setitem(tiny_dataset.splits, "train", Split(train.images, train.target, None))
    with pytest.raises(DataError, match="erm trains on bias labels") as caught:
        require_bias_labels(Erm, tiny_dataset)
    assert "train-poe" in caught.value.fix
