"""ERM beside a bare PyTorch loop: the same batches, cross-entropy and Adam."""

import torch
from torch.nn import functional as F

from denetdm_cli.config.schema import Config
from denetdm_cli.data.batches import Batches
from denetdm_cli.data.store import StoredDataset
from denetdm_cli.methods.base import Task
from denetdm_cli.methods.erm import Erm
from denetdm_cli.training import checkpoint, stages
from denetdm_cli.training.events import StageFinished
from denetdm_cli.utils.seed import derive_seed, generator

CPU = torch.device("cpu")


def task(config: Config, seed: int = 0) -> Task:
    return Task(config.model, (3, 18, 18), 10, 10, seed)


def test_it_trains_as_a_bare_loop_does(tiny_config: Config, tiny_dataset: StoredDataset) -> None:
    settings = tiny_config.erm.model_copy(update={"epochs": 2, "batch_size": 64})
    config = tiny_config.model_copy(update={"erm": settings})
    *_, end = stages.train("erm", config, tiny_dataset)
    assert isinstance(end, StageFinished)
    found, metadata = checkpoint.load(end.folder / "last.safetensors")
    assert metadata["stage"] == "erm"

    model = Erm.build(task(config), settings).model
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, foreach=False)
    batches = Batches(tiny_dataset.splits["train"], CPU)
    for epoch in (1, 2):
        order = torch.randperm(len(batches), generator=generator(derive_seed(0, "erm"), "order", epoch))
        for rows in order.split(64):
            batch = batches.take(rows)
            optimizer.zero_grad()
            F.cross_entropy(model(batch.x), batch.y).backward()
            optimizer.step()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6)


def test_the_seed_decides_the_initial_weights(tiny_config: Config) -> None:
    first, again, other = (Erm.build(task(tiny_config, seed), tiny_config.erm).model for seed in (0, 0, 1))
    weights = [model.head.weight for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_what_it_exports_is_what_it_predicts(tiny_config: Config) -> None:
    method = Erm.build(task(tiny_config), tiny_config.erm)
    x = torch.rand(4, 3, 18, 18)
    assert torch.equal(method.classifier()(x), method.predict(x)["target"])
