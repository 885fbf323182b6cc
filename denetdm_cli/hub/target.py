"""The model to ship and the images it takes: what exporting and predicting have in common."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from denetdm_cli.config.schema import Config
from denetdm_cli.data.importers.decode import Fit
from denetdm_cli.methods.denetdm.models import TargetModel
from denetdm_cli.training import checkpoint
from denetdm_cli.utils.errors import CheckpointError


@dataclass(frozen=True)
class Resizing:
    """How an image comes to the size that a model reads.

    Attributes:
        height: in pixels.
        width: in pixels.
        fit: stretch, or crop: the shorter side to the size, then the middle (see `importing.read_image`).
        in_training: whether the training images were brought to their size so; False where they had it from the
            start, None where that is not known.
    """

    height: int
    width: int
    fit: Fit
    in_training: bool | None


@dataclass(frozen=True)
class TargetCheckpoint:
    """The target model of a stage-2 checkpoint.

    Attributes:
        path: the checkpoint.
        model: in evaluation mode, on `device`.
        metadata: what the checkpoint says of itself.
        config: what it was trained with.
        device: where the model is.
    """

    path: Path
    model: TargetModel
    metadata: dict[str, Any]
    config: Config
    device: torch.device

    @property
    def class_names(self) -> list[str]:
        """In the order of the logits."""
        return list(self.metadata["dataset"]["class_names"])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        height, width, channels = self.metadata["dataset"]["image_shape"]
        return channels, height, width

    @property
    def resizing(self) -> Resizing:
        """As the data set was imported; made data sets and those of other tools are stretched to the model's size."""
        _, height, width = self.image_shape
        recipe = self.metadata["dataset"].get("recipe")
        if isinstance(recipe, dict):
            fit, in_training = recipe.get("fit"), recipe.get("resized_to") is not None
            return Resizing(height, width, "crop" if in_training and fit == "crop" else "stretch", in_training)
        crops = getattr(self.config.dataset, "fit", None) == "crop" and height == width
        return Resizing(height, width, "crop" if crops else "stretch", None)


def load_target_checkpoint(path: Path, device: torch.device) -> TargetCheckpoint:
    """Load the target model of a checkpoint.

    Raises:
        CheckpointError: the checkpoint is missing, damaged or one of stage 1.
    """
    loaded = checkpoint.load_method(path, device)
    if not isinstance(loaded.method.model, TargetModel):
        raise CheckpointError(
            f"{path} is a stage-1 checkpoint: it holds a shallow and a deep expert, and no target model yet",
            "Distill the target model from its run folder (denetdm distill RUN), and give that.",
        )
    return TargetCheckpoint(path, loaded.method.model, loaded.metadata, loaded.config, device)
