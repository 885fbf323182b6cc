"""Classification of image files with the reported network of a checkpoint."""

import csv
import os
import warnings
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from denetdm_cli.data.augment import Normalisation
from denetdm_cli.data.importers.decode import UnreadableError, read_image
from denetdm_cli.data.importers.tree import found_in, image_files, refuse
from denetdm_cli.hub.target import Resizing, TargetCheckpoint
from denetdm_cli.utils.cpu import thread_limit
from denetdm_cli.utils.device import use_threads
from denetdm_cli.utils.errors import CheckpointError, DataError
from denetdm_cli.utils.files import atomic_file, made_folder
from denetdm_cli.utils.log import shown
from denetdm_cli.utils.progress import Reporter

_PIXELS_PER_BATCH = 2**22
_IMAGES_PER_BATCH = 1000
_AHEAD = 4
_SHOWN = 20
COLUMNS = ("path", "predicted", "confidence")
"""The first columns of a CSV file of predictions."""

_Decoded = tuple[Path, "Future[NDArray[np.uint8]]"]


@dataclass(frozen=True)
class Prediction:
    """The prediction for one file.

    Attributes:
        path: as given, or below the given folder.
        probabilities: softmax, one a class; None for a file that cannot be read.
        problem: why it cannot be read, or None.
    """

    path: Path
    probabilities: list[float] | None
    problem: str | None

    @property
    def predicted(self) -> int | None:
        """The class with the highest probability; the first on a tie."""
        return None if self.probabilities is None else self.probabilities.index(max(self.probabilities))

    @property
    def confidence(self) -> float | None:
        """The probability of the predicted class."""
        return None if self.probabilities is None else max(self.probabilities)


def predict_files(target: TargetCheckpoint, paths: Sequence[Path], reporter: Reporter) -> Iterator[Prediction]:
    """Classify images and all images in folders, resized and normalised as the training images.

    Paths are checked before this returns. Images are read and classified as the result is iterated.

    Args:
        target: the network.
        paths: files, and folders, which are searched at any depth; each file counts once.
        reporter: receives progress, and at the end the unreadable files.
    Returns:
        One prediction per file, in the order of `paths`, and by name within a folder.
    Raises:
        DataError: a path does not exist, a folder holds no image, or (in the end) no file could be read.
        CheckpointError: the model's outputs are not finite.
    """
    files = find_images(paths)
    use_threads(target.config.threads)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # on odd metadata; decoding threads rule out a narrower scope
    return _predictions(target, files, reporter)


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The given files, and the images in folders by name; each once.

    Raises:
        DataError: paths do not exist, or a folder holds no image.
    """
    found: dict[str, Path] = {}
    if missing := [str(path) for path in paths if not (path.is_file() or path.is_dir())]:
        refuse("no image or folder", missing, "Check the path; nothing was classified.")
    for path in paths:
        files = [path]
        if path.is_dir():
            files, _ = image_files(path)
            if not files:
                raise DataError(
                    f"{path} holds no images; found {found_in(path)}",
                    "Give a folder with image files (.jpg, .png, ...), at any depth.",
                )
        for file in files:
            found.setdefault(os.path.realpath(file), file)
    return list(found.values())


def write_csv(path: Path, class_names: Sequence[str], predictions: Iterable[Prediction]) -> None:
    """Write one row per file: path, predicted class, its probability, those of all classes, and the read error.

    An error in `predictions` leaves no file.
    """
    with (
        made_folder(path.parent),
        atomic_file(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, *(f"p_{name}" for name in class_names), "problem"])
        for found in predictions:
            predicted = "" if found.predicted is None else class_names[found.predicted]
            values: Sequence[object] = found.probabilities or [""] * len(class_names)
            confidence = "" if found.confidence is None else found.confidence
            writer.writerow([str(found.path), predicted, confidence, *values, found.problem or ""])


def _predictions(target: TargetCheckpoint, files: Sequence[Path], reporter: Reporter) -> Iterator[Prediction]:
    resizing = target.resizing
    batch_size = max(1, min(_IMAGES_PER_BATCH, _PIXELS_PER_BATCH // (resizing.height * resizing.width)))
    unreadable: list[Prediction] = []
    with closing(_decoded(files, resizing)) as decoded:
        batch: list[Path | Prediction] = []
        images: list[NDArray[np.uint8]] = []
        for done, (path, future) in enumerate(decoded, 1):
            try:
                images.append(future.result())
                batch.append(path)
            except UnreadableError as error:
                unreadable.append(Prediction(path, None, str(error)))
                batch.append(unreadable[-1])
            if len(batch) == batch_size or done == len(files):
                yield from _classified(target, batch, images)
                batch, images = [], []
            reporter.advance("classifying images", done, len(files))
    if len(unreadable) == len(files):
        raise DataError(
            f"no image can be read: {'; '.join(map(_line, unreadable[:5]))}"
            + (f"; and {len(unreadable) - 5:,} more" if len(unreadable) > 5 else ""),
            "Give images in a usual format, such as JPEG or PNG.",
        )
    if unreadable:
        lines = [f"{len(unreadable):,} of {len(files):,} images cannot be read:"]
        lines += [f"  {_line(prediction)}" for prediction in unreadable[:_SHOWN]]
        if len(unreadable) > _SHOWN:
            lines.append(f"  and {len(unreadable) - _SHOWN:,} more")
        reporter.warn("\n".join(lines))


def _line(prediction: Prediction) -> str:
    return f"{shown(str(prediction.path))}: {shown(prediction.problem or '')}"


def _classified(
    target: TargetCheckpoint, batch: Sequence[Path | Prediction], images: Sequence[NDArray[np.uint8]]
) -> Iterator[Prediction]:
    """The predictions of a batch in its order; entries that are predictions already stay."""
    rows = iter(_probabilities(target, images) if images else [])
    for entry in batch:
        yield entry if isinstance(entry, Prediction) else Prediction(entry, next(rows), None)


@torch.inference_mode()
def _probabilities(target: TargetCheckpoint, images: Sequence[NDArray[np.uint8]]) -> list[list[float]]:
    """Softmax probabilities for images (H, W, 3) uint8, in the memory layout of evaluation."""
    layout = torch.channels_last if target.config.model.convolutional else torch.contiguous_format
    pixels = torch.from_numpy(np.stack(images)).to(target.device).permute(0, 3, 1, 2).contiguous()
    x = Normalisation(target.config.data, target.device)(pixels).contiguous(memory_format=layout)
    found = target.model(x).softmax(dim=1)
    if not found.isfinite().all():
        raise CheckpointError(
            f"{target.path}: the outputs of the model are not finite numbers", "Give a checkpoint of another epoch."
        )
    rows: list[list[float]] = found.cpu().tolist()
    return rows


def _decoded(files: Sequence[Path], resizing: Resizing) -> Generator[_Decoded, None, None]:
    """Files in their order, each with the future of its pixels; some are read ahead."""
    workers = thread_limit()
    waiting: deque[_Decoded] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="denetdm-images") as pool:
        try:
            for file in files:
                waiting.append((file, pool.submit(_read, file, resizing)))
                if len(waiting) > workers * _AHEAD:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            pool.shutdown(cancel_futures=True)


def _read(path: Path, resizing: Resizing) -> NDArray[np.uint8]:
    height, width = resizing.height, resizing.width
    if height == width:
        return read_image(path, height, resizing.fit)
    image = Image.fromarray(read_image(path))  # data sets of oblong images are never cropped
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
