"""Write the images of a listing as a data set: each decoded and resized once, in threads, in the order listed."""

import contextlib
import functools
import shutil
import warnings
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from denetdm_cli.data.importers.decode import Fit, UnreadableError, raster_formats, read_image
from denetdm_cli.data.importers.listing import Item, Listing
from denetdm_cli.data.importers.tree import refuse
from denetdm_cli.data.store import Scalar, StoredDataset
from denetdm_cli.data.writer import SplitWriter, new_dataset, opened
from denetdm_cli.utils.cpu import thread_limit
from denetdm_cli.utils.errors import DataError, StorageError
from denetdm_cli.utils.log import shown
from denetdm_cli.utils.progress import Reporter
from denetdm_cli.utils.text import gigabytes

_BLOCK_BYTES = 1 << 25
_BLOCK_IMAGES = 256
_AHEAD = 4
_SHOWN = 1000
"""Images that cannot be read of which each is named; more of them end an import that they would stop anyway."""
_FIX_IMAGES = "Replace these images or take them out of the source."


def pack(
    listing: Listing,
    path: Path,
    *,
    size: int | None,
    fit: Fit,
    recipe: Mapping[str, Scalar],
    replace: bool,
    reporter: Reporter,
    max_unreadable: float = 0.01,
) -> StoredDataset:
    """Write the images of a listing as a data set, and open it.

    Images that cannot be read are named and left out; if anything fails, nothing is written.

    Args:
        listing: the images, their order and their labels.
        path: the folder to make.
        size: height and width of all images; None keeps the size they have, which must be one.
        fit: how an image is made square, see `read_image`.
        recipe: name and settings, for the manifest.
        replace: put it in the place of an existing data set.
        reporter: receives progress and the images left out.
        max_unreadable: the share of images that may be left out.
    Raises:
        DataError: more images cannot be read, or all of a class in a split; images of several sizes without `size`;
            `path` exists and may not be replaced.
        StorageError: the disk has too little space.
        OSError: the disk may not be written; nothing half-written stays.
    """
    left_out = _LeftOut(listing, max_unreadable)
    read = functools.partial(read_image, size=size, fit=fit)
    workers = thread_limit()
    raster_formats()  # once, before the threads start
    with (
        warnings.catch_warnings(),
        new_dataset(path, replace=replace) as writer,
        _threads(workers) as pool,
    ):
        warnings.simplefilter("ignore")  # Pillow's, on odd metadata
        _require_space(listing, path, size)
        for name, items in listing.splits.items():
            futures = ((item, pool.submit(read, item.path)) for item in items)
            with writer.split(name) as out:
                _write_split(name, _in_order(futures, workers * _AHEAD), out, left_out, reporter)
        left_out.check()
        left_out.report(reporter)
        added: dict[str, Scalar] = {
            "source_fingerprint": listing.fingerprint(),
            "images_left_out": len(left_out.reasons),
            "resized_to": size,
            "fit": None if size is None else fit,
        }
        writer.describe(
            recipe={**recipe, **added},
            attribute_names=listing.attribute_names,
            class_names=listing.class_names,
            bias_names=listing.bias_names,
            aligned=listing.aligned,
        )
    return opened(path, writer)


@dataclass
class _LeftOut:
    """The images that cannot be read: reason by path seen from the root."""

    listing: Listing
    share: float
    reasons: dict[str, str] = field(default_factory=dict)
    classes: dict[str, list[str]] = field(default_factory=dict)

    @property
    def too_many(self) -> bool:
        return len(self.reasons) > self.share * self.total

    @property
    def total(self) -> int:
        return sum(len(items) for items in self.listing.splits.values())

    def add(self, item: Item, reason: str) -> None:
        """Note one; too many end the import, but not before it is known which they are."""
        self.reasons[self.listing.short(item)] = reason
        if self.too_many and len(self.reasons) >= _SHOWN:
            self.refuse()

    def refuse(self) -> None:
        """End the import."""
        first = "\n".join(f"  {shown(str(self.listing.root))}/{name}: {reason}" for name, reason in self._first())
        raise DataError(
            f"{self.listing.root}: {len(self.reasons):,} of {self.total:,} images cannot be read, and no more "
            f"than {self.share:.1%} may be left out:\n{first}",
            _FIX_IMAGES,
        )

    def count(self, split: str, kept: Counter[int]) -> None:
        """Note the classes of a split of which no image is left."""
        lost = sorted({item.target for item in self.listing.splits[split]} - set(kept))
        if lost:
            self.classes[split] = [self.listing.class_names[target] for target in lost]

    def check(self) -> None:
        """End the import if too many images were lost, or all of a class; all splits are read."""
        if self.too_many:
            self.refuse()
        for split, names in self.classes.items():
            refuse(f"{self.listing.root}: no image can be read of some classes in split {split}", names, _FIX_IMAGES)

    def report(self, reporter: Reporter) -> None:
        """Name the first ones."""
        if self.reasons:
            lines = [f"{len(self.reasons)} of {self.total:,} images cannot be read and are left out:"]
            lines += [f"  {name}: {reason}" for name, reason in self._first()]
            if len(self.reasons) > _SHOWN:
                lines.append(f"  and {len(self.reasons) - _SHOWN:,} more")
            reporter.warn("\n".join(lines))

    def _first(self) -> list[tuple[str, str]]:
        return [(shown(name), shown(reason)) for name, reason in list(self.reasons.items())[:_SHOWN]]


Decoded = tuple[Item, "Future[NDArray[np.uint8]]"]


@contextmanager
def _threads(workers: int) -> Iterator[ThreadPoolExecutor]:
    """A thread pool; when the body ends, running tasks finish and queued ones are cancelled."""
    pool = ThreadPoolExecutor(workers)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(futures: Iterator[Decoded], ahead: int) -> Iterator[Decoded]:
    """Start `ahead` futures before the first is asked for."""
    waiting: deque[Decoded] = deque()
    for started in futures:
        waiting.append(started)
        if len(waiting) > ahead:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


def _write_split(
    name: str, results: Iterator[Decoded], out: SplitWriter, left_out: _LeftOut, reporter: Reporter
) -> None:
    total = len(left_out.listing.splits[name])
    kept: Counter[int] = Counter()
    images: list[NDArray[np.uint8]] = []
    items: list[Item] = []
    first: tuple[Item, tuple[int, ...]] | None = None
    limit = _BLOCK_IMAGES
    for done, (item, future) in enumerate(results, 1):
        try:
            image = future.result()
        except UnreadableError as error:
            left_out.add(item, str(error))
        else:
            if first is None:
                first = item, image.shape
                limit = max(1, min(_BLOCK_IMAGES, _BLOCK_BYTES // image.nbytes))
            elif image.shape != first[1]:
                _refuse_sizes(left_out.listing, first, (item, image.shape))
            images.append(image)
            items.append(item)
            kept[item.target] += 1
        if len(images) == limit or done == total:
            _add(out, images, items, left_out.listing)
            images, items = [], []
            reporter.advance(f"{name}: reading images", done, total)
    left_out.count(name, kept)
    if not kept:
        left_out.check()


def _add(out: SplitWriter, images: list[NDArray[np.uint8]], items: list[Item], listing: Listing) -> None:
    if not items:
        return
    target = np.array([item.target for item in items], np.uint8)
    known = [item.bias for item in items if item.bias is not None]
    bias = np.array(known, np.uint8) if known else None
    out.add(np.stack(images), target, bias, [listing.short(item) for item in items])


def _refuse_sizes(listing: Listing, *found: tuple[Item, tuple[int, ...]]) -> None:
    refuse(
        f"{listing.root}: the images keep their size, which must be one for all",
        (f"{listing.short(item)} is {width}x{height}" for item, (height, width, _) in found),
        "Give a complete copy of the data set.",
    )


def _require_space(listing: Listing, path: Path, size: int | None) -> None:
    every = [item.path for items in listing.splits.values() for item in items]
    with contextlib.suppress(UnreadableError):
        pixels = size * size if size is not None else read_image(every[0]).nbytes // 3
        needed = len(every) * pixels * 3
        folder = next(parent for parent in path.resolve().parents if parent.is_dir())
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise StorageError(
                f"{len(every):,} images take {gigabytes(needed)}, but only {gigabytes(free)} are free in {folder}.",
                "Make space, choose another folder (`--data-root`), or make the images smaller (`--size`).",
            )
