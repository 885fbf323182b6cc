"""What --verbose adds: where a command computes, and, after every epoch, whether the branches separate."""

import platform
from collections.abc import Mapping
from typing import Any

import torch

from denetdm_cli.training.events import StageStarted
from denetdm_cli.training.run_folder import RunFolder
from denetdm_cli.utils.cpu import available_cpus
from denetdm_cli.utils.device import resolve_device, versions


def of_machine(device: torch.device) -> list[str]:
    """Device, threads and versions, as they are once a command has begun to compute."""
    model = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    return [
        f"device {device}{model}, CPU threads: {torch.get_num_threads()} of {available_cpus()} allotted, "
        f"on {platform.node()} ({platform.platform()})",
        "versions: " + ", ".join(f"{name} {version}" for name, version in versions().items()),
    ]


def of_run(began: StageStarted) -> list[str]:
    """Where a stage trains, and with which settings."""
    folder = RunFolder(began.folder)
    config = folder.config()
    return [*of_machine(resolve_device(config.device)), f"seed {config.seed}; all settings are in {folder.config_file}"]


def of_epoch(record: Mapping[str, Any]) -> list[str]:
    """The signs of separation in a line of metrics.jsonl, one line a sample of images; stage 2 has none."""
    samples = {name: signs for name, signs in record.get("separation", {}).items() if name != "warnings"}
    return [f"separation on {name} images: {_words(signs)}" for name, signs in samples.items()]


def _words(signs: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_figures(value)}" for name, value in signs.items())


def _figures(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name} {_figures(part)}" for name, part in value.items())
    return "-" if value is None else f"{value:.3f}"
