"""Stage 1: a shallow and a deep branch trained together as a product of experts."""

from typing import Any, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import Self, override

from denetdm_cli.config.schema import MethodSettings
from denetdm_cli.data.batches import Batch
from denetdm_cli.methods.base import Loaders, Method, Task
from denetdm_cli.methods.denetdm import separation
from denetdm_cli.methods.denetdm.models import ProductOfExperts


class TrainPoeSettings(MethodSettings):
    """Defaults are those of Colored MNIST (paper, appendix; official code)."""

    weight_decay: float = Field(1e-3, ge=0, description="as torch.optim takes it")
    drop_last: bool = Field(True, description="leave out the last, incomplete batch of an epoch")
    selection_metric: Literal[
        "shallow.conflicting",
        "shallow.unbiased",
        "shallow.worst_group",
        "shallow.accuracy",
        "shallow.worst_class",
        "product.conflicting",
        "product.unbiased",
        "product.worst_group",
        "product.accuracy",
        "product.worst_class",
    ] = Field("shallow.conflicting", description="PREDICTOR.METRIC that the rules valid and paper maximize")


class TrainPoe(Method):
    """Cross-entropy of the product on the class label alone; no bias label is used (DeNetDM, section 3.1)."""

    name = "train-poe"
    title = "Stage 1 of DeNetDM: a shallow and a deep branch as a product of experts."
    paper = "[DeNetDM](https://arxiv.org/abs/2403.19863) (Sreelatha et al., NeurIPS 2024)"
    Settings = TrainPoeSettings
    predictors = ("shallow", "deep", "product")
    branches = ("shallow", "deep")
    exports = False
    diagnostics = ("separation",)
    model: ProductOfExperts

    def __init__(self, model: ProductOfExperts) -> None:
        self.model = model
        self._samples: separation.Samples | None = None

    @classmethod
    @override
    def build(cls, task: Task, settings: Any, previous: Method | None = None) -> Self:
        """The two branches with fresh weights."""
        model = ProductOfExperts(
            task.networks, task.image_shape, task.classes, task.seed, start_weights=task.start_weights
        )
        return cls(model.to(task.device))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The one term `poe`."""
        return {"poe": F.cross_entropy(self.model(batch.x), batch.y, reduction="none")}

    def predict(self, x: Tensor) -> dict[str, Tensor]:
        """Logits of shallow, deep and product, features computed once."""
        return self.model.predict(x)

    def diagnose(self, loaders: Loaders) -> dict[str, Any]:
        """Whether the branches separate, without bias labels."""
        if self._samples is None:
            self._samples = separation.samples(train=loaders.train, evaluation=loaders.reported)
        return {"separation": separation.measure(self.model, self._samples)}
