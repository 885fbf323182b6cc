"""Batches: the images stay on the device as uint8, and a batch is an index into them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from denetdm_cli.data.store import Split


@dataclass(frozen=True)
class Batch:
    """What a training step or an evaluation reads; B images.

    The bias attribute is not in it, for no method may train on it.

    Attributes:
        x: (B, 3, H, W) float32, pixel/255.
        y: (B,) int64, target attribute.
        index: (B,) int64, position in the split.
    """

    x: Tensor
    y: Tensor
    index: Tensor


class Batches:
    """A split on the device.

    Args:
        split: images (N, H, W, 3) uint8 with their labels.
        device: where images and labels are kept and batches are made.

    Attributes:
        target: (N,) int64, for evaluation; batches hold it as `y`.
        bias: (N,) int64, for evaluation.
    """

    def __init__(self, split: Split, device: torch.device) -> None:
        # Channels first once, here: the networks read CHW, and flattened in that order (as in DeNetDM's code).
        count, height, width, channels = split.images.shape
        images = torch.empty((count, channels, height, width), dtype=torch.uint8)
        for start in range(0, count, 4096):  # piecewise, so that a memory map is never in memory twice
            block = torch.from_numpy(split.images[start : start + 4096].copy())
            images[start : start + 4096] = block.permute(0, 3, 1, 2)
        self.device = device
        self._images = images.to(device)
        self.target, self.bias = split.target.astype(np.int64), split.bias.astype(np.int64)
        self._y = torch.from_numpy(self.target).to(device)

    def __len__(self) -> int:
        return len(self._images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an image."""
        channels, height, width = self._images.shape[1:]
        return channels, height, width

    def take(self, index: Tensor) -> Batch:
        """The images at `index` (B,) int64 on the device."""
        return Batch(_to_unit(self._images.index_select(0, index)), self._y.index_select(0, index), index)

    def in_order(self, size: int) -> Iterator[Batch]:
        """Every image once, in the order of the split, `size` at a time."""
        for start in range(0, len(self), size):
            rows = slice(start, start + size)
            index = torch.arange(start, min(start + size, len(self)), device=self.device)
            yield Batch(_to_unit(self._images[rows]), self._y[rows], index)

    def shuffled(self, size: int, generator: torch.Generator, *, drop_last: bool) -> Iterator[Batch]:
        """Every image once in random order, `size` at a time; `drop_last` leaves out an incomplete last batch."""
        order = torch.randperm(len(self), generator=generator).to(self.device)
        for index in torch.split(order, size):
            if len(index) == size or not drop_last:
                yield self.take(index)


def _to_unit(images: Tensor) -> Tensor:
    return torch.div(images, 255)  # uint8 over an int is float32, in one pass
