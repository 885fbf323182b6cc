"""Both stages as bare PyTorch loops: none of the program's batches, augmentation, losses, optimiser or evaluation.

Taken from the program are the networks with their initial weights and the seed of an epoch, which have their own tests.
"""

from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from denetdm_cli.config.schema import Config, DataConfig, MethodSettings
from denetdm_cli.methods.denetdm.models import ProductOfExperts, TargetModel
from denetdm_cli.utils.seed import derive_seed, generator


@dataclass(frozen=True)
class Images:
    """A split: pixels (N, 3, H, W) from 0 to 255, classes (N,) and bias values (N,)."""

    pixels: Tensor
    target: Tensor
    bias: list[int]

    @staticmethod
    def of(folder: Path) -> "Images":
        labels = np.load(folder / "attrs.npy").astype(np.int64)
        pixels = torch.from_numpy(np.load(folder / "images.npy")).permute(0, 3, 1, 2).float()
        return Images(pixels, torch.from_numpy(labels[:, 0]), labels[:, 1].tolist())


@dataclass(frozen=True)
class Epoch:
    """What is left after an epoch: mean losses, all tensors, and logits in evaluation mode by split and predictor."""

    losses: dict[str, float]
    tensors: dict[str, Tensor]
    logits: dict[str, dict[str, Tensor]]


def normalised(pixels: Tensor, config: DataConfig) -> Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.mean, config.std))
    return (pixels / 255 - mean) / std


def batches(
    images: Images, config: DataConfig, settings: MethodSettings, seed: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """An epoch: a shuffled order, and where there is augmentation, cropped and mirrored images."""
    count = len(images.target)
    order = torch.randperm(count, generator=seed)
    pixels = images.pixels[order]
    if config.augments:
        pixels = augmented(pixels, config.random_crop_padding, int(torch.randint(2**63 - 1, (), generator=seed)))
    x, y, size = normalised(pixels, config), images.target[order], settings.batch_size
    for start in range(0, count - count % size if settings.drop_last else count, size):
        yield x[start : start + size], y[start : start + size]


def augmented(pixels: Tensor, margin: int, seed: int) -> Tensor:
    """For the k-th image an offset down and across out of a black margin, and the toss of a coin."""
    stream = torch.Generator().manual_seed(seed)
    count, size = len(pixels), pixels.shape[-1]
    down, across = torch.randint(2 * margin + 1, (2, count), generator=stream)
    mirrored = torch.rand(count, generator=stream) < 0.5
    made = []
    for k, image in enumerate(pixels):
        crop = F.pad(image, (margin,) * 4)[:, down[k] : down[k] + size, across[k] : across[k] + size]
        made.append(crop.flip(-1) if mirrored[k] else crop)
    return torch.stack(made)


def trained(
    stage: str,
    config: Config,
    splits: dict[str, Images],
    parts: dict[str, nn.Module],
    losses: Callable[[Tensor, Tensor], dict[str, Tensor]],
    predict: Callable[[Tensor], dict[str, Tensor]],
) -> list[Epoch]:
    """Train `parts`, whose frozen ones have no gradients, with torch's own Adam."""
    settings: MethodSettings = getattr(config, stage.replace("-", "_"))
    learning = [part for part in parts.values() if next(part.parameters()).requires_grad]
    optimizer = torch.optim.Adam(
        [parameter for part in learning for parameter in part.parameters()],
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
    )
    epochs = []
    for epoch in range(1, settings.epochs + 1):
        for part in learning:
            part.train()
        seen, sums = 0, dict[str, float]()
        order = generator(derive_seed(config.seed, stage), "order", epoch)
        for x, y in batches(splits["train"], config.data, settings, order):
            terms = losses(x, y)
            optimizer.zero_grad()
            sum(terms.values(), torch.zeros(())).backward()
            optimizer.step()
            seen += len(y)
            sums = {name: sums.get(name, 0.0) + len(y) * term.item() for name, term in terms.items()}
        for part in learning:
            part.eval()
        tensors = {f"{name}.{k}": v.clone() for name, part in parts.items() for k, v in part.state_dict().items()}
        with torch.no_grad():
            logits = {name: predict(normalised(split.pixels, config.data)) for name, split in splits.items()}
        epochs.append(Epoch({name: value / seen for name, value in sums.items()}, tensors, logits))
    return epochs


def stage_1(config: Config, splits: dict[str, Images]) -> tuple[dict[str, nn.Module], list[Epoch]]:
    """The trained shallow branch, deep branch and head, and what was left after each epoch."""
    shape, classes = splits["train"].pixels.shape[1:], int(splits["train"].target.max()) + 1
    fresh = ProductOfExperts(config.model, tuple(shape), classes, config.seed)
    shallow, deep, head = fresh.shallow, fresh.deep, fresh.head

    def losses(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"poe": F.cross_entropy(head(shallow(x) + deep(x)), y)}

    def predict(x: Tensor) -> dict[str, Tensor]:
        return {"shallow": head(shallow(x)), "deep": head(deep(x)), "product": head(shallow(x) + deep(x))}

    parts = {"shallow": shallow, "deep": deep, "head": head}
    return parts, trained("train-poe", config, splits, parts, losses, predict)


def stage_2(config: Config, splits: dict[str, Images], experts: dict[str, nn.Module]) -> list[Epoch]:
    """What was left after each epoch of the target, the head and the frozen deep branch."""
    shape, classes = splits["train"].pixels.shape[1:], int(splits["train"].target.max()) + 1
    target = TargetModel(config.model, tuple(shape), classes, config.seed).target
    teacher = deepcopy(experts)
    for part in teacher.values():
        part.requires_grad_(False).eval()
    shallow, deep, head, settings = teacher["shallow"], teacher["deep"], deepcopy(experts["head"]), config.distill
    head.requires_grad_(True)

    def losses(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        features, tau = target(x), settings.tau
        taught = (teacher["head"](shallow(x)) / tau).softmax(dim=1)
        student = (head(features) / tau).log_softmax(dim=1)
        poe = F.cross_entropy(head(deep(x) + features), y)
        return {"poe": settings.w_poe * poe, "dist": settings.w_dist * tau**2 * -(taught * student).sum(dim=1).mean()}

    def predict(x: Tensor) -> dict[str, Tensor]:
        return {"target": head(target(x)), "product": head(target(x) + deep(x)), "deep": head(deep(x))}

    return trained("distill", config, splits, {"deep": deep, "target": target, "head": head}, losses, predict)


def by_group(predicted: Tensor, images: Images, aligned: list[int], rows: Iterable[int]) -> dict[str, float]:
    """The figures of some images, group by group; `aligned` is the bias value tied to each class."""
    right: dict[tuple[int, int], list[bool]] = {}
    for row in rows:
        label = int(images.target[row])
        right.setdefault((label, images.bias[row]), []).append(label == int(predicted[row]))
    shares = {group: sum(hits) / len(hits) for group, hits in right.items()}
    tied = [share for (label, bias), share in shares.items() if aligned[label] == bias]
    others = [share for (label, bias), share in shares.items() if aligned[label] != bias]
    return {
        "unbiased": sum(shares.values()) / len(shares),
        "aligned": sum(tied) / len(tied),
        "conflicting": sum(others) / len(others),
        "worst_group": min(shares.values()),
        "accuracy": sum(map(sum, right.values())) / sum(map(len, right.values())),
    }
