"""Batches, made on the device from uint8 images kept there, in memory or on the disk."""

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from denetdm_cli.config.schema import DataConfig
from denetdm_cli.data.augment import Crops, Normalisation, draw_crops
from denetdm_cli.data.store import Split
from denetdm_cli.utils.memory import available_memory, processes_per_device

_AHEAD = 2
"""Batches that are read while another one is in use."""
_BLOCK_BYTES = 2**26
_PIXELS_AT_ONCE = 2**22


@dataclass(frozen=True)
class Batch:
    """What a training step or an evaluation reads; B images.

    Attributes:
        x: (B, 3, H, W) float32, pixel/255 and then normalised where the configuration says so.
        y: (B,) int64, target attribute.
        index: (B,) int64, position in the split.
        bias: (B,) int64, bias attribute; None but for a method that declares that it trains on it.
    """

    x: Tensor
    y: Tensor
    index: Tensor
    bias: Tensor | None = None


class Batches:
    """A split as batches on a device; what they hold does not depend on where the images are kept.

    Args:
        split: images (N, H, W, 3) uint8 with their labels.
        device: where batches are made.
        config: where images are kept, normalisation, augmentation; None is `auto` without either.
        augment: whether `shuffled` augments as the configuration says; nothing else ever does.
        channels_last: lay `x` out as convolutions read it fastest; its shape and values are the same.
        with_bias: give the bias attribute in batches.

    Attributes:
        target: (N,) int64, for evaluation; batches hold it as `y`.
        bias: (N,) int64, for evaluation; None where the split has no bias labels.
        device: where batches are made.
        cache: where the images are kept: `device`, `host` (memory) or `stream` (read from the disk, batch by batch).
    """

    def __init__(
        self,
        split: Split,
        device: torch.device,
        config: DataConfig | None = None,
        *,
        augment: bool = False,
        channels_last: bool = False,
        with_bias: bool = False,
    ) -> None:
        self.device = device
        self.target = split.target.astype(np.int64)
        self.bias = None if split.bias is None else split.bias.astype(np.int64)
        self._y = torch.from_numpy(self.target).to(device)
        self._bias = torch.from_numpy(self.bias).to(device) if with_bias and self.bias is not None else None
        _, self._height, self._width, self._channels = split.images.shape
        self._normalise = Normalisation(config, device)
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self._augmentation = config if config is not None and augment and config.augments else None
        wanted = config.cache if config else "auto"
        self.cache = _choose_cache(split.images.nbytes, device) if wanted == "auto" else wanted
        self._images: Tensor | NDArray[np.uint8] = split.images
        if self.cache == "device" or (self.cache == "host" and device.type == "cpu"):
            self._images = _channels_first(split.images, device)
        elif self.cache == "host":
            self._images = np.array(split.images)

    def __len__(self) -> int:
        return len(self.target)

    @property
    def augments(self) -> bool:
        """Whether images of `shuffled` differ from epoch to epoch."""
        return self._augmentation is not None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an image."""
        return self._channels, self._height, self._width

    @property
    def eval_batch_size(self) -> int:
        """Images a batch where nothing has to be remembered for gradients: 1,000 up to 64x64 pixels, fewer above."""
        return int(max(1, min(1000, _PIXELS_AT_ONCE // (self._height * self._width))))

    def take(self, index: Tensor) -> Batch:
        """The images at `index` (B,) int64 on the device, as they are."""
        with closing(self._blocks([index.cpu()], [index])) as blocks:
            return self._batch(next(blocks), index)

    def in_order(self, size: int | None = None, *, share: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
        """Every image once, in the order of the split and as it is, `size` or else `eval_batch_size` at a time.

        Args:
            size: images a batch.
            share: (k, n): only batch k and each n-th after it.
        """
        size = size or self.eval_batch_size
        parts = [slice(start, start + size) for start in range(0, len(self), size)]
        first, every = share
        return self._walk(torch.arange(len(self)), parts[first::every], None)

    def epoch_size(self, size: int, weights: Tensor | None = None, *, drop_last: bool) -> int:
        """Images that `shuffled` gives."""
        drawn = len(self) if weights is None or weights.is_floating_point() else int(weights.sum())
        return drawn // size * size if drop_last else drawn

    def _order(self, size: int, generator: torch.Generator, weights: Tensor | None, *, drop_last: bool) -> Tensor:
        """Positions (M,) int64 on the CPU of the images that `shuffled` gives, one after the other."""
        if weights is None:
            order = torch.randperm(len(self), generator=generator)
        elif weights.is_floating_point():
            order = torch.multinomial(weights.double(), len(self), replacement=True, generator=generator)
        else:
            copies = torch.arange(len(self)).repeat_interleave(weights)
            order = copies[torch.randperm(len(copies), generator=generator)]
        return order[: self.epoch_size(size, weights, drop_last=drop_last)]

    def shuffled(
        self,
        size: int,
        generator: torch.Generator,
        *,
        drop_last: bool,
        skip: int = 0,
        share: tuple[int, int] = (0, 1),
        weights: Tensor | None = None,
    ) -> Iterator[Batch]:
        """Every image once, or as often as `weights` say, `size` at a time; `generator` alone decides order and crops.

        Args:
            size: images a batch.
            generator: on the CPU.
            drop_last: leave out an incomplete last batch.
            skip: batches at the start to leave out.
            share: (k, n): of every batch only image k and each n-th after it, or the first where it has no k-th.
            weights: (N,) on the CPU, as `Method.sample_weights`.
        """
        order = self._order(size, generator, weights, drop_last=drop_last)
        crops = None
        if self._augmentation is not None:
            # From a stream of its own, seeded after the order is drawn: augmentation must not change the order.
            seed = int(torch.randint(2**63 - 1, (), generator=generator))
            own = torch.Generator().manual_seed(seed)
            crops = draw_crops(self._augmentation, max(len(self), len(order)), self._height, self._width, own).to(
                self.device
            )
        parts = [slice(start, min(start + size, len(order))) for start in range(0, len(order), size)]
        return self._walk(order, [_share(part, *share) for part in parts[skip:]], crops)

    def _walk(self, order: Tensor, parts: list[slice], crops: Crops | None) -> Iterator[Batch]:
        """Parts of the images at `order` (M,) int64 on the CPU, the k-th of them cropped as the k-th of the crops."""
        there = order.to(self.device)
        rows, indices = [order[part] for part in parts], [there[part] for part in parts]
        with closing(self._blocks(rows, indices)) as blocks:
            for part, index, block in zip(parts, indices, blocks, strict=True):
                yield self._batch(block if crops is None else crops.at(part).of(block), index)

    def _batch(self, images: Tensor, index: Tensor) -> Batch:
        x = self._normalise(images).contiguous(memory_format=self._layout)
        bias = None if self._bias is None else self._bias.index_select(0, index)
        return Batch(x, self._y.index_select(0, index), index, bias)

    def _blocks(self, rows: Sequence[Tensor], indices: Sequence[Tensor]) -> Generator[Tensor, None, None]:
        """Images (B, C, H, W) uint8 on the device, contiguous and the caller's own, one block at a time.

        Args:
            rows: which images make up a block, (B,) int64 on the CPU.
            indices: the same on the device.
        """
        images = self._images
        if isinstance(images, Tensor):
            for index in indices:
                yield images.index_select(0, index)
            return
        waiting: deque[Future[Tensor]] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="denetdm-batches") as reader:
            try:
                for part in rows:
                    waiting.append(reader.submit(self._read, images, part.numpy()))
                    if len(waiting) > _AHEAD:
                        yield self._to_device(waiting.popleft().result())
                while waiting:
                    yield self._to_device(waiting.popleft().result())
            finally:
                reader.shutdown(cancel_futures=True)  # whoever stops early does not wait for all that was to come

    def _read(self, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> Tensor:
        """Copy images (B, H, W, C) uint8 together; this is what runs in the background."""
        block = torch.from_numpy(np.asarray(images[rows]))
        return block.pin_memory() if self.device.type == "cuda" else block

    def _to_device(self, block: Tensor) -> Tensor:
        # A pinned block is not written to again before its copy is done: torch's allocator sees to that.
        moved = block.to(self.device, non_blocking=self.device.type == "cuda")
        return moved.permute(0, 3, 1, 2).contiguous()


def _share(part: slice, first: int, every: int) -> slice:
    """Of a part of the images the one in place `first` and each `every`-th after it; never none."""
    mine = slice(part.start + first, part.stop, every)
    return mine if mine.start < mine.stop else slice(part.start, part.start + 1)


def _channels_first(images: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Images (N, H, W, C) as (N, C, H, W) on the device: the networks read CHW, and flattened in that order."""
    count, height, width, channels = images.shape
    packed = torch.empty((count, channels, height, width), dtype=torch.uint8, device=device)
    step = max(1, _BLOCK_BYTES // (height * width * channels))
    for start in range(0, count, step):  # piecewise, so that a memory map is never in memory twice
        block = torch.from_numpy(np.array(images[start : start + step]))
        packed[start : start + step] = block.to(device).permute(0, 3, 1, 2)
    return packed


def _choose_cache(size: int, device: torch.device) -> str:
    """The fastest place in which `size` bytes of images take at most half of the free memory of this process."""
    memory = available_memory()
    free = torch.cuda.mem_get_info(device)[0] // processes_per_device() if device.type == "cuda" else memory
    if free is None or size <= free / 2:
        return "device"
    if device.type != "cpu" and (memory is None or size <= memory / 2):
        return "host"
    return "stream"
