"""Stage 2: the target branch, taught by the shallow expert while the frozen deep one explains the bias away."""

import torch
from torch import Tensor
from torch.nn import functional as F

from denetdm_cli.config import DistillConfig
from denetdm_cli.data.batches import Batch, Batches
from denetdm_cli.models.experts import ProductOfExperts, TargetModel, freeze


class Distillation:
    """w_poe CE(f_t(phi_b + phi_t), y) + w_dist tau^2 CE(softmax(f(phi_d)/tau), f_t(phi_t)/tau); DeNetDM, section 3.2.

    Args:
        model: the target model, already started from `teacher`.
        teacher: the stage-1 model; it is frozen here.
        config: weights and temperature.
    """

    def __init__(self, model: TargetModel, teacher: ProductOfExperts, config: DistillConfig) -> None:
        freeze(teacher)
        self.model = model
        self._teacher = teacher
        self._config = config
        self._precomputed: tuple[Tensor, Tensor] | None = None

    def precompute(self, batches: Batches) -> None:
        """Compute what the frozen parts say of every image once; only right where training images never change."""
        parts = [self._frozen(batch.x) for batch in batches.in_order(1000)]
        self._precomputed = (torch.cat([deep for deep, _ in parts]), torch.cat([teacher for _, teacher in parts]))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The terms `poe` and `dist`, weighted; a term of weight 0 is left out."""
        if self._precomputed is None:
            deep, teacher = self._frozen(batch.x)
        else:
            deep, teacher = (part.index_select(0, batch.index) for part in self._precomputed)
        target, head, config = self.model.target(batch.x), self.model.head, self._config
        terms: dict[str, Tensor] = {}
        product, student = head(torch.cat([deep + target, target])).chunk(2)  # one product of matrices for both
        if config.w_poe:
            terms["poe"] = config.w_poe * F.cross_entropy(product, batch.y)
        if config.w_dist:
            # Against probabilities this is the mean over the batch of -sum_c teacher_c * log softmax(student)_c.
            terms["dist"] = config.w_dist * config.tau**2 * F.cross_entropy(student / config.tau, teacher)
        return terms

    def predict(self, x: Tensor) -> dict[str, Tensor]:
        """Logits of the target model."""
        return self.model.predict(x)

    @torch.no_grad()
    def _frozen(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, F) of the deep branch and softened class probabilities (B, classes) of the teacher."""
        teacher = self._teacher.head(self._teacher.shallow(x)) / self._config.tau
        return self.model.deep(x), teacher.softmax(dim=1)
