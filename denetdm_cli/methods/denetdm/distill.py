"""Stage 2: the target branch, taught by the shallow expert while the frozen deep one explains the bias away."""

import torch
from torch import Tensor
from torch.nn import functional as F

from denetdm_cli.config.schema import DistillConfig
from denetdm_cli.data.batches import Batch, Batches
from denetdm_cli.methods.denetdm.models import ProductOfExperts, TargetModel, freeze


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
        self.known: tuple[Tensor, ...] = ()

    def precompute(self, batches: Batches) -> None:
        """Compute what the frozen parts say of every image once; only right where training images never change."""
        parts = [self._frozen(batch.x) for batch in batches.in_order()]
        self.known = tuple(torch.cat(part) for part in zip(*parts, strict=True))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The terms `poe` and `dist`, weighted; a term of weight 0 is left out."""
        known = batch.known or tuple(part.index_select(0, batch.index) for part in self.known)
        deep, teacher = known or self._frozen(batch.x)
        config, target = self._config, self.model.target(batch.x)
        features = ([deep + target] if config.w_poe else []) + ([target] if config.w_dist else [])
        logits = list(self.model.head(torch.cat(features)).chunk(len(features)))  # one product of matrices for both
        terms: dict[str, Tensor] = {}
        if config.w_poe:
            terms["poe"] = config.w_poe * F.cross_entropy(logits.pop(0), batch.y)
        if config.w_dist:
            # Against probabilities this is the mean over the batch of -sum_c teacher_c * log softmax(student)_c.
            terms["dist"] = config.w_dist * config.tau**2 * F.cross_entropy(logits.pop() / config.tau, teacher)
        return terms

    def predict(self, x: Tensor) -> dict[str, Tensor]:
        """Logits of the target model."""
        return self.model.predict(x)

    @torch.no_grad()
    def _frozen(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, F) of the deep branch and softened class probabilities (B, classes) of the teacher.

        What a weight of 0 makes useless is left out, and empty.
        """
        deep, config = self.model.deep(x) if self._config.w_poe else x.new_empty(len(x), 0), self._config
        if not config.w_dist:
            return deep, x.new_empty(len(x), 0)
        return deep, (self._teacher.head(self._teacher.shallow(x)) / config.tau).softmax(dim=1)
