"""What the training loop and the evaluation know of a method."""

from typing import Protocol

from torch import Tensor, nn

from denetdm_cli.data.batches import Batch


class Method(Protocol):
    """One stage of training."""

    @property
    def model(self) -> nn.Module:
        """Everything that goes into a checkpoint. Frozen parts have no gradient and ignore `train()`."""

    @property
    def known(self) -> tuple[Tensor, ...]:
        """What has been computed of the training images beforehand, (N, ...) each; `losses` prefers a batch's own."""

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Loss terms by name, scalars, already weighted; the loop minimises their sum."""

    def predict(self, x: Tensor) -> dict[str, Tensor]:
        """Logits (B, classes) by predictor for images (B, C, H, W)."""
