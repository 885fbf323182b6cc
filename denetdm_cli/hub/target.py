"""The network of a checkpoint that export and predict use, and the size of its images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from denetdm_cli.config.schema import BranchConfig, Config
from denetdm_cli.data.importers.decode import Fit
from denetdm_cli.methods import METHODS
from denetdm_cli.methods.base import Method
from denetdm_cli.models.classifier import Classifier
from denetdm_cli.training import checkpoint
from denetdm_cli.utils.errors import CheckpointError


@dataclass(frozen=True)
class Resizing:
    """How an image is resized for a model.

    Attributes:
        height: in pixels.
        width: in pixels.
        fit: stretch, or crop: the shorter side to the size, then the middle (see `decode.read_image`).
        in_training: whether the training images were resized in this way; False where they had the size from the
            start, None where that is unknown.
    """

    height: int
    width: int
    fit: Fit
    in_training: bool | None


@dataclass(frozen=True)
class TargetCheckpoint:
    """A checkpoint with the network that its method reports and exports.

    Attributes:
        path: the checkpoint.
        method: the trained method.
        model: the network of the first predictor, in evaluation mode, on `device`.
        metadata: the metadata of the checkpoint.
        config: the configuration of its training.
        device: the device of the network.
    """

    path: Path
    method: Method
    model: Classifier
    metadata: dict[str, Any]
    config: Config
    device: torch.device

    @property
    def predictor(self) -> str:
        """The name of the network in metrics."""
        return self.method.predictors[0]

    @property
    def branch_config(self) -> BranchConfig:
        """The architecture of the network before its head."""
        branch: BranchConfig = getattr(self.config.model, self.predictor)
        return branch

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
        """The rule by which the data set was imported; stretch for generated data sets and those of other tools."""
        _, height, width = self.image_shape
        recipe = self.metadata["dataset"].get("recipe")
        if isinstance(recipe, dict):
            fit, in_training = recipe.get("fit"), recipe.get("resized_to") is not None
            return Resizing(height, width, "crop" if in_training and fit == "crop" else "stretch", in_training)
        crops = getattr(self.config.dataset, "fit", None) == "crop" and height == width
        return Resizing(height, width, "crop" if crops else "stretch", None)


def load_target_checkpoint(path: Path, device: torch.device) -> TargetCheckpoint:
    """Load the reported network of a checkpoint.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, or of a method without a model to export.
    """
    loaded = checkpoint.load_method(path, device)
    name = loaded.method.name
    if not loaded.method.exports:
        later = next(kind.name for kind in METHODS.values() if kind.starts_from == name)
        raise CheckpointError(
            f"{path} is a checkpoint of {name}, which trains no model for export or prediction",
            f"Continue with {later} from its run folder (denetdm {later} RUN), and give that.",
        )
    return TargetCheckpoint(
        path, loaded.method, loaded.method.classifier().eval(), loaded.metadata, loaded.config, device
    )
