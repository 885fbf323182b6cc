"""A network and its linear head."""

from torch import Tensor, nn


class Classifier(nn.Module):
    """Logits (B, classes) of images (B, C, H, W): head(network(x)).

    Args:
        network: images to features (B, F).
        head: features to logits.
    """

    def __init__(self, network: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.network = network
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes)."""
        logits: Tensor = self.head(self.network(x))
        return logits
