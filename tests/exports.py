"""Checkpoints of every kind of network, to be exported, and the model card of an export."""

from pathlib import Path
from typing import Any

import yaml
from shipping import config_for, dataset_facts, save_checkpoint

CLASSES = ["cat", "dog", "<b>|`bird`"]
MLP = {"name": "mlp", "depth": 3, "width": 16}
NETWORKS: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "mlp": (MLP, (12, 10)),
    "cnn": ({"name": "cnn", "depth": 3, "width": 16}, (36, 36)),
    "cifar_resnet": ({"name": "cifar_resnet", "depth": 8}, (32, 32)),
    "projected": ({"name": "resnet18", "weights": None, "width": 64}, (32, 32)),
    "as_it_is": ({"name": "resnet18", "weights": None, "width": 512}, (32, 32)),
    "squeezenet": ({"name": "squeezenet1_1", "weights": None, "width": 24}, (40, 40)),
    "mnasnet": ({"name": "mnasnet0_5", "weights": None, "width": 24}, (32, 32)),
}
FILES = ["README.md", "config.json", "model.safetensors"]


def make_checkpoint(folder: Path, name: str, **changes: Any) -> Path:
    architecture, size = NETWORKS[name]
    path = folder / f"{name}.safetensors"
    recipe = {"resized_to": size[0], "fit": "crop"} if name == "as_it_is" else {"resized_to": size[0], "fit": "stretch"}
    save_checkpoint(path, config_for(architecture), dataset_facts(size, CLASSES, recipe=recipe), **changes)
    return path


def read_card(folder: Path) -> tuple[dict[str, Any], str]:
    _, front, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), text
