"""Stage 2: the target branch, taught by the shallow expert while the frozen deep one explains the bias away."""

from typing import Any, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import Self

from denetdm_cli.config.schema import MethodSettings
from denetdm_cli.data.batches import Batch, Batches
from denetdm_cli.methods.base import Method, Task
from denetdm_cli.methods.denetdm.models import ProductOfExperts, TargetModel, freeze
from denetdm_cli.models.classifier import Classifier


class DistillSettings(MethodSettings):
    """Defaults are those of Colored MNIST (paper, appendix; official code)."""

    selection_metric: Literal[
        "target.unbiased", "target.conflicting", "target.worst_group", "target.accuracy", "target.worst_class"
    ] = Field("target.unbiased", description="PREDICTOR.METRIC that the rules valid and paper maximize")
    teacher: Literal["selected", "last"] = Field(
        "selected", description="stage-1 epoch to distil from: that of the key `selection`, or the last"
    )
    w_poe: float = Field(1.0, ge=0, description="weight of the product-of-experts loss (deep + target)")
    w_dist: float = Field(1.0, ge=0, description="weight of the distillation loss (shallow -> target)")
    tau: float = Field(2.0, gt=0, description="temperature of the distillation loss")

    @model_validator(mode="after")
    def _some_loss(self) -> "DistillSettings":
        if self.w_poe == 0 and self.w_dist == 0:
            raise ValueError("w_poe and w_dist are both 0, so there is nothing to train; set one above 0")
        return self


class Distill(Method):
    """w_poe CE(f_t(phi_b + phi_t), y) + w_dist tau^2 CE(softmax(f(phi_d)/tau), f_t(phi_t)/tau); DeNetDM, section 3.2.

    Args:
        model: the target model, which starts from `teacher`.
        teacher: the stage-1 model, frozen here; None where a checkpoint is only read.
        settings: weights and temperature.
    """

    name = "distill"
    title = "Stage 2 of DeNetDM: the target model, distilled from a finished stage 1."
    paper = "[DeNetDM](https://arxiv.org/abs/2403.19863) (Sreelatha et al., NeurIPS 2024)"
    Settings = DistillSettings
    predictors = ("target",)
    starts_from = "train-poe"
    model: TargetModel

    def __init__(self, model: TargetModel, teacher: ProductOfExperts | None, settings: DistillSettings) -> None:
        if teacher is not None:
            freeze(teacher)
        self.model = model
        self._teacher = teacher
        self._settings = settings
        self._cached_outputs: tuple[Tensor, ...] = ()

    @classmethod
    def build(cls, task: Task, settings: Any, previous: Method | None = None) -> Self:
        """The target model; with a finished stage 1, its deep branch, and its head as a start."""
        model = TargetModel(task.networks, task.image_shape, task.classes, task.seed, start_weights=task.start_weights)
        teacher = None
        if previous is not None:
            teacher = cast("ProductOfExperts", previous.model).to(task.device)
            model.start_from(teacher)
        return cls(model.to(task.device), teacher, settings)

    def prepare(self, train: Batches) -> None:
        """Cache what the frozen parts give for every training image, where images are the same in every epoch."""
        if not train.augments:
            parts = [self._frozen(batch.x) for batch in train.in_order()]
            self._cached_outputs = tuple(torch.cat(part) for part in zip(*parts, strict=True))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The terms `poe` and `dist`, weighted; a term of weight 0 is left out."""
        cached = tuple(part.index_select(0, batch.index) for part in self._cached_outputs)
        deep, teacher = cached or self._frozen(batch.x)
        settings, target = self._settings, self.model.target(batch.x)
        features = ([deep + target] if settings.w_poe else []) + ([target] if settings.w_dist else [])
        logits = list(self.model.head(torch.cat(features)).chunk(len(features)))  # one product of matrices for both
        terms: dict[str, Tensor] = {}
        if settings.w_poe:
            terms["poe"] = settings.w_poe * F.cross_entropy(logits.pop(0), batch.y, reduction="none")
        if settings.w_dist:
            # Against probabilities this is -sum_c teacher_c * log softmax(student)_c of each image.
            divergence = F.cross_entropy(logits.pop() / settings.tau, teacher, reduction="none")
            terms["dist"] = settings.w_dist * settings.tau**2 * divergence
        return terms

    def predict(self, x: Tensor) -> dict[str, Tensor]:
        """Logits of the target model."""
        return self.model.predict(x)

    def predict_all(self, x: Tensor) -> dict[str, Tensor]:
        """Logits of the target, its product with the deep branch, and that one."""
        return self.model.predict_all(x)

    def classifier(self) -> Classifier:
        """The target branch and its head."""
        return Classifier(self.model.target, self.model.head)

    @torch.no_grad()
    def _frozen(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, F) of the deep branch and softened class probabilities (B, classes) of the teacher.

        What a weight of 0 makes useless is left out, and empty.
        """
        settings, teacher = self._settings, cast("ProductOfExperts", self._teacher)
        deep = self.model.deep(x) if settings.w_poe else x.new_empty(len(x), 0)
        if not settings.w_dist:
            return deep, x.new_empty(len(x), 0)
        return deep, (teacher.head(teacher.shallow(x)) / settings.tau).softmax(dim=1)
