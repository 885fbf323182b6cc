"""Build a branch from its section of the configuration."""

from torch import nn

from denetdm_cli.config.schema import BranchConfig, CifarResnetConfig, CnnConfig, MlpConfig
from denetdm_cli.models.convnets import CNN, CifarResNet
from denetdm_cli.models.mlp import MLP
from denetdm_cli.models.torchvision_nets import build_torchvision, trial


def build_branch(
    config: BranchConfig, image_shape: tuple[int, int, int], *, start_weights: bool = False, key: str = "model.target"
) -> nn.Module:
    """A branch with fresh weights, drawn from torch's global CPU stream: (B, C, H, W) float32 to (B, out_features).

    Args:
        config: the network.
        image_shape: (C, H, W).
        start_weights: also load the weights `config` names, if it names any; not for a network that is filled
            from a checkpoint.
        key: of the branch in the configuration, for messages.
    Raises:
        ConfigError: torchvision has no such network, or it cannot take such images.
        CheckpointError: the file of start weights is missing, damaged or of another network.
        DownloadError: the ImageNet weights are neither cached nor downloadable.
    """
    channels, height, width = image_shape
    if isinstance(config, MlpConfig):
        return MLP(channels * height * width, config.depth, config.width)
    if isinstance(config, CnnConfig):
        return CNN(config.depth, config.width, image_shape)
    if isinstance(config, CifarResnetConfig):
        return CifarResNet(channels, config.depth)
    return build_torchvision(config, image_shape, key, start_weights=start_weights)


def learns_from_one_image(branch: nn.Module, image_shape: tuple[int, int, int]) -> bool:
    """Whether a batch of one image (C, H, W) can train a branch that takes such images; nothing is computed.

    It cannot where batch normalisation reads maps of one pixel: torch then finds a single value a channel.
    """
    try:
        trial(branch.train(), image_shape)
    except ValueError:  # "Expected more than 1 value per channel when training"
        return False
    return True


def started_from(model: nn.Module) -> dict[str, dict[str, str]]:
    """By branch, the `file` it started from and that file's `sha256`; branches without start weights are left out."""
    files = {name: getattr(branch, "started_from", None) for name, branch in model.named_children()}
    return {name: file for name, file in files.items() if file is not None}
