"""Checkpoints of any method, without training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from denetdm_cli.config.load import from_mapping, load_config, preset_path
from denetdm_cli.config.schema import Config
from denetdm_cli.evaluation.selection import provenance
from denetdm_cli.methods import METHODS
from denetdm_cli.methods.base import Task
from denetdm_cli.training import checkpoint

MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]


class Listener:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.steps: list[tuple[str, int, int]] = []

    def info(self, line: str) -> None:
        self.lines.append(line)

    def warn(self, warning: str) -> None:
        self.lines.extend(warning.splitlines())

    def advance(self, what: str, done: int, total: int) -> None:
        self.steps.append((what, done, total))


def config_for(target: dict[str, Any], *, normalised: bool = True, preset: str = "bffhq") -> Config:
    """A configuration with this target branch beside small ones."""
    tree = load_config(preset_path(preset), (), {"device": "cpu", "threads": 1}).model_dump()
    width = target.get("width", 64)
    small = {"name": "mlp", "depth": 2, "width": width}
    tree["model"] = {"shallow": small, "deep": small, "target": target}
    tree["data"] |= {"mean": MEAN, "std": STD} if normalised else {"mean": None, "std": None}
    return from_mapping(tree, "test")


def dataset_facts(size: tuple[int, int], class_names: Sequence[str], **changes: Any) -> dict[str, Any]:
    return {
        "name": "pets",
        "path": "/home/someone/data/pets",
        "digest": "d" * 64,
        "evaluation_digest": "e" * 64,
        "recipe": {"name": "folder", "size": size[0], "resized_to": size[0], "fit": "stretch"},
        "image_shape": [*size, 3],
        "class_names": list(class_names),
        "bias_names": ["indoors", "out|doors"],
        "evaluation_split": "test",
        "own_valid_split": True,
        **changes,
    }


METRICS = {
    "target": {
        "unbiased": 0.75, "accuracy": 0.8, "aligned": 0.95, "conflicting": 0.55, "worst_group": 0.5,
        "worst_group_of": [1, 0], "worst_class": 0.7, "worst_class_of": 1,
        "groups": [[0.9, 0.6], [0.5, 1.0], [None, 0.123]],
    }
}  # fmt: skip


def save_checkpoint(
    path: Path, config: Config, dataset: dict[str, Any], *, stage: str = "distill", **changes: Any
) -> nn.Module:
    """Write the checkpoint of a model with fresh weights but lively batch statistics, and return the model."""
    height, width, channels = dataset["image_shape"]
    classes, biases = len(dataset["class_names"]), len(dataset["bias_names"])
    task = Task(config.model, (channels, height, width), classes, biases, seed=5)
    model = METHODS[stage].build(task, config.settings(stage)).model
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    stage_1 = provenance("last", "shallow.conflicting", None)
    metadata = {
        "stage": stage,
        "epoch": 7,
        "selection": stage_1
        if stage == "train-poe"
        else provenance("last", "target.unbiased", stage_1 if stage == "distill" else None),
        "metrics": METRICS,
        "reported_metric": "unbiased",
        "separation": None,
        "seed": 3,
        "versions": {"denetdm": "0.1.0", "torch": "2.14.1", "python": "3.12"},
        "dataset": dataset,
        "start_weights": {},
        "config": config.model_dump(mode="json"),
        **changes,
    }
    checkpoint.save(path, model.state_dict(), metadata)
    return model.eval()
