"""Empirical risk minimization: plain cross-entropy, the baseline of every comparison."""

from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self, override

from denetdm_cli.config.schema import MethodSettings
from denetdm_cli.data.batches import Batch
from denetdm_cli.methods.base import Method, Task
from denetdm_cli.models.classifier import Classifier
from denetdm_cli.models.factory import build_branch
from denetdm_cli.utils.seed import seeded


class ErmSettings(MethodSettings):
    """LfF's settings of its vanilla baseline: Adam, 1e-3, batches of 256, no weight decay, the last batch kept."""

    batch_size: int = Field(256, ge=1, description="images of a training step, over all ranks (--batch-size)")
    selection_metric: Literal[
        "target.unbiased", "target.conflicting", "target.worst_group", "target.accuracy", "target.worst_class"
    ] = Field("target.unbiased", description="PREDICTOR.METRIC that the rules valid and paper maximize")


class Erm(Method):
    """The mean cross-entropy of `model.target` with a linear head on the class labels; no bias label is used."""

    name = "erm"
    title = "ERM: plain cross-entropy, the baseline."
    Settings = ErmSettings
    predictors = ("target",)
    model: Classifier

    def __init__(self, model: Classifier) -> None:
        self.model = model

    @classmethod
    @override
    def build(cls, task: Task, settings: Any, previous: Method | None = None) -> Self:
        """The network `model.target` with fresh weights."""
        with seeded(task.seed, cls.name, "initial weights"):
            network = build_branch(task.networks.target, task.image_shape, start_weights=task.start_weights)
            head = nn.Linear(task.networks.target.feature_width, task.classes)
        return cls(Classifier(network, head).to(task.device))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The one term `ce`."""
        return {"ce": F.cross_entropy(self.model(batch.x), batch.y, reduction="none")}

    def predict(self, x: Tensor) -> dict[str, Tensor]:
        """Logits of the network."""
        return {"target": self.model(x)}

    def classifier(self) -> Classifier:
        """The model itself."""
        return self.model
