"""The models of the two stages: branches that share one linear head."""

from typing import Any

from torch import Tensor, nn

from denetdm_cli.config.schema import ModelConfig
from denetdm_cli.models.factory import build_branch
from denetdm_cli.utils.errors import ConfigError
from denetdm_cli.utils.seed import seeded


class ProductOfExperts(nn.Module):
    """Stage 1: shallow and deep branch, their features summed and read by one head (paper section 3.1).

    softmax(f(phi_d + phi_b)) is, for a linear f, a product of two experts. One expert alone is f(phi_d) or f(phi_b),
    with the bias of f added once in every case.

    Args:
        config: the branches.
        image_shape: (C, H, W).
        classes: number of target classes.
        seed: determines every initial weight.
        start_weights: load the weights the branches are to start from; for a new run only.
    Raises:
        UserError: as `build_branch`.
    """

    def __init__(
        self,
        config: ModelConfig,
        image_shape: tuple[int, int, int],
        classes: int,
        seed: int,
        *,
        start_weights: bool = False,
    ) -> None:
        super().__init__()
        with seeded(seed, "train-poe", "initial weights"):
            self.shallow = build_branch(config.shallow, image_shape, start_weights=start_weights, key="model.shallow")
            self.deep = build_branch(config.deep, image_shape, start_weights=start_weights, key="model.deep")
            self.head = nn.Linear(_common_width(self.shallow, self.deep), classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of the product for images (B, C, H, W)."""
        logits: Tensor = self.head(self.shallow(x) + self.deep(x))
        return logits

    def predict(self, x: Tensor) -> dict[str, Tensor]:
        """Logits (B, classes) of the shallow expert, the deep expert and their product, features computed once."""
        shallow, deep = self.shallow(x), self.deep(x)
        return {"shallow": self.head(shallow), "deep": self.head(deep), "product": self.head(shallow + deep)}


class TargetModel(nn.Module):
    """Stage 2: the target branch with its head, beside the deep branch it is trained with (paper section 3.2).

    What is shipped is head(target(x)). The deep branch is frozen: kept in evaluation mode and without gradients,
    whatever mode the rest is in.

    Args:
        config: the branches.
        image_shape: (C, H, W).
        classes: number of target classes.
        seed: determines the initial weights of the target branch; the rest comes from `start_from` or a checkpoint.
        start_weights: load the weights the target branch is to start from; for a new run only.
    Raises:
        UserError: as `build_branch`.
    """

    def __init__(
        self,
        config: ModelConfig,
        image_shape: tuple[int, int, int],
        classes: int,
        seed: int,
        *,
        start_weights: bool = False,
    ) -> None:
        super().__init__()
        with seeded(seed, "distill", "initial weights"):
            self.deep = build_branch(config.deep, image_shape, key="model.deep")
            self.target = build_branch(config.target, image_shape, start_weights=start_weights, key="model.target")
            self.head = nn.Linear(_common_width(self.deep, self.target), classes)
        freeze(self.deep)

    def start_from(self, experts: ProductOfExperts) -> None:
        """Take over the deep branch and, as a start, the head of a trained stage-1 model."""
        self.deep.load_state_dict(experts.deep.state_dict())
        self.head.load_state_dict(experts.head.state_dict())

    def train(self, mode: bool = True) -> "TargetModel":
        """As nn.Module.train, but the frozen deep branch stays in evaluation mode (no moving statistics)."""
        super().train(mode)
        self.deep.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of the target model for images (B, C, H, W)."""
        logits: Tensor = self.head(self.target(x))
        return logits

    def predict(self, x: Tensor) -> dict[str, Tensor]:
        """Logits (B, classes) of the model to ship."""
        return {"target": self(x)}

    def predict_all(self, x: Tensor) -> dict[str, Tensor]:
        """Logits (B, classes) of the target, its product with the deep branch and that one, features computed once."""
        target, deep = self.target(x), self.deep(x)
        return {"target": self.head(target), "product": self.head(target + deep), "deep": self.head(deep)}


def _common_width(*branches: Any) -> int:
    widths = {branch.out_features for branch in branches}
    if len(widths) != 1:
        raise ConfigError(f"the branches share one head, but end in {widths}", "Give all branches one width.")
    return int(widths.pop())


def freeze(module: nn.Module) -> None:
    """Stop gradients and moving statistics of a module."""
    module.requires_grad_(False).eval()
