"""Augmentation and normalisation of whole batches, on their device."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from denetdm_cli.config.schema import DataConfig

_TRIES = 10
_ASPECTS = (3 / 4, 4 / 3)
"""As in torchvision's RandomResizedCrop."""


@dataclass(frozen=True)
class Crops:
    """The part of each image that takes the place of the whole; N images.

    Attributes:
        top: (N,) int64, its first row.
        left: (N,) int64, its first column.
        height: (N,) int64.
        width: (N,) int64.
        flip: (N,) bool, whether it is mirrored afterwards.
        margin: black pixels around the image, where the crops have its own size; None where they are resized to it.
    """

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    flip: Tensor
    margin: int | None

    def to(self, device: torch.device) -> "Crops":
        """The same on another device."""
        return self._each(lambda part: part.to(device))

    def at(self, rows: slice) -> "Crops":
        """Those of some images."""
        return self._each(lambda part: part[rows])

    def of(self, images: Tensor) -> Tensor:
        """Cut them out.

        Args:
            images: (N, C, H, W) uint8 on the same device.
        Returns:
            (N, C, H, W), contiguous: uint8, or float32 from 0 to 255 where they are resized.
        """
        return _resized(images, self) if self.margin is None else _padded(images, self, self.margin)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Crops":
        top, left, height, width, flip = map(change, (self.top, self.left, self.height, self.width, self.flip))
        return Crops(top, left, height, width, flip, self.margin)


def draw_crops(config: DataConfig, count: int, height: int, width: int, generator: torch.Generator) -> Crops:
    """What a configuration does to each of `count` images of `height` by `width` pixels, drawn on the CPU.

    All of an epoch are drawn together, so that what an image gets does not depend on the size of the batches.
    """
    margin = None
    if config.random_resized_crop is not None:
        smallest, largest = config.random_resized_crop
        top, left, heights, widths = _draw_resized(count, height, width, smallest, largest, generator)
    else:
        margin = config.random_crop_padding
        top, left = torch.randint(2 * margin + 1, (2, count), generator=generator)
        heights, widths = torch.full((count,), height), torch.full((count,), width)
    chance = 0.5 if config.horizontal_flip else 0.0
    return Crops(top, left, heights, widths, torch.rand(count, generator=generator) < chance, margin)


class Normalisation:
    """Pixels from 0 to 255 to what the networks read: pixel/255, then (x - mean) / std where they are given.

    Args:
        config: mean and std of each channel; None leaves pixel/255.
        device: where the images are.
    """

    def __init__(self, config: DataConfig | None, device: torch.device) -> None:
        self._shift = self._scale = None
        if config is not None and config.mean is not None and config.std is not None:
            # In units of a pixel, which saves one pass over the images.
            self._shift, self._scale = (
                torch.tensor([255 * value for value in values], dtype=torch.float32, device=device).view(-1, 1, 1)
                for values in (config.mean, config.std)
            )

    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, H, W) float32, of (B, C, H, W) uint8 or float32; float32 images may be overwritten."""
        if self._shift is None or self._scale is None:
            return torch.div(images, 255)  # uint8 over an int is float32, in one pass
        return images.float().sub_(self._shift).div_(self._scale)


def _draw_resized(
    count: int, height: int, width: int, smallest: float, largest: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Top, left, height and width (count,) int64, distributed as by RandomResizedCrop.get_params of torchvision.

    Area and aspect ratio are drawn until the crop fits, at most ten times; then the central crop is taken.
    """
    narrowest, widest = _ASPECTS
    central = min(height, round(width / narrowest)), min(width, round(height * widest))
    heights, widths = (torch.full((count,), length) for length in central)
    left_over = torch.arange(count)
    for _ in range(_TRIES):
        share, turn = torch.rand((2, len(left_over)), dtype=torch.float64, generator=generator)
        area = height * width * (smallest + (largest - smallest) * share)
        aspect = torch.exp(math.log(narrowest) + math.log(widest / narrowest) * turn)
        down, across = (area / aspect).sqrt().round().long(), (area * aspect).sqrt().round().long()
        fits = (down > 0) & (down <= height) & (across > 0) & (across <= width)
        heights[left_over[fits]], widths[left_over[fits]] = down[fits], across[fits]
        left_over = left_over[~fits]
    top, left = _below(height - heights + 1, generator), _below(width - widths + 1, generator)
    top[left_over], left[left_over] = (height - central[0]) // 2, (width - central[1]) // 2
    return top, left, heights, widths


def _below(limits: Tensor, generator: torch.Generator) -> Tensor:
    """Whole numbers (N,) int64, uniform from 0 to one less than each of the limits (N,)."""
    draws = (torch.rand(len(limits), dtype=torch.float64, generator=generator) * limits).long()
    return torch.minimum(draws, limits - 1)  # the product may be rounded up


def _padded(images: Tensor, crops: Crops, margin: int) -> Tensor:
    height, width = images.shape[2:]
    if margin:
        images = F.pad(images, (margin,) * 4)
        images = _rows(images, crops.top[:, None] + torch.arange(height, device=images.device))
    columns = torch.arange(width, device=images.device).expand(len(images), width)
    return _columns(images, crops.left[:, None] + _mirrored(columns, crops.flip))


def _resized(images: Tensor, crops: Crops) -> Tensor:
    """As `interpolate(crop, size, mode="bilinear", antialias=False)`: a crop only grows, so nothing needs smoothing."""
    upper, lower, down = _neighbours(crops.height, images.shape[2])
    before, after, across = (_mirrored(part, crops.flip) for part in _neighbours(crops.width, images.shape[3]))
    top, left = crops.top[:, None], crops.left[:, None]
    # Rows first: these are copied as bytes, and whole.
    lines = _rows(images, top + upper).float().lerp_(_rows(images, top + lower).float(), down[:, None, :, None])
    return _columns(lines, left + before).lerp_(_columns(lines, left + after), across[:, None, None, :])


def _neighbours(length: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The two pixels that each of `size` pixels lies between when `length` (B,) pixels are stretched to them.

    Returns:
        (B, size) int64 each, from 0 to length - 1, and the weight of the second, (B, size) float32.
    """
    step = (length.float() / size)[:, None]
    position = ((torch.arange(size, device=length.device) + 0.5) * step - 0.5).clamp_(min=0)
    before = position.long()
    return before, torch.minimum(before + 1, length[:, None] - 1), position - before


def _mirrored(columns: Tensor, flip: Tensor) -> Tensor:
    """Columns (B, W), from the last to the first where `flip` (B,) says so."""
    return torch.where(flip[:, None], columns.flip(1), columns)


def _rows(images: Tensor, rows: Tensor) -> Tensor:
    """The rows (B, R) of images (B, C, H, W), each copied as a whole: (B, C, R, W)."""
    count, channels, height, width = images.shape
    first = height * torch.arange(count * channels, device=images.device).view(count, channels, 1)
    picked = images.reshape(-1, width).index_select(0, (first + rows[:, None]).view(-1))
    return picked.view(count, channels, -1, width)


def _columns(images: Tensor, columns: Tensor) -> Tensor:
    """The columns (B, R) of images (B, C, H, W): (B, C, H, R)."""
    count, channels, height, _ = images.shape
    return images.gather(3, columns[:, None, None].expand(count, channels, height, -1))
