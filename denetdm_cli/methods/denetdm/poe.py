"""Stage 1: a shallow and a deep branch trained together as a product of experts."""

from torch import Tensor
from torch.nn import functional as F

from denetdm_cli.data.batches import Batch
from denetdm_cli.methods.denetdm.models import ProductOfExperts


class ProductOfExpertsTraining:
    """Cross-entropy of the product on the class label alone; no bias label is used (DeNetDM, section 3.1)."""

    def __init__(self, model: ProductOfExperts) -> None:
        self.model = model
        self.known: tuple[Tensor, ...] = ()

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The one term `poe`."""
        return {"poe": F.cross_entropy(self.model(batch.x), batch.y)}

    def predict(self, x: Tensor) -> dict[str, Tensor]:
        """Logits of shallow, deep and product."""
        return self.model.predict(x)
