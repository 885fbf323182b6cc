"""Classify image files with the target model of a checkpoint."""

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

_PIXELS_AT_ONCE = 2**22
_IMAGES_AT_ONCE = 1000
_AHEAD = 4
_SHOWN = 20
COLUMNS = ("path", "predicted", "confidence")
"""What the first line of a CSV file of predictions begins with."""

_Decoded = tuple[Path, "Future[NDArray[np.uint8]]"]


@dataclass(frozen=True)
class Prediction:
    """What the target model says of one file.

    Attributes:
        path: as it was given, or below the folder that was given.
        probabilities: softmax, one a class; None for a file that cannot be read.
        problem: why it cannot be read, or None.
    """

    path: Path
    probabilities: list[float] | None
    problem: str | None

    @property
    def predicted(self) -> int | None:
        """The class with the highest probability; the first of equal ones."""
        return None if self.probabilities is None else self.probabilities.index(max(self.probabilities))

    @property
    def confidence(self) -> float | None:
        """The probability of the predicted class."""
        return None if self.probabilities is None else max(self.probabilities)


def predict_files(shipped: TargetCheckpoint, paths: Sequence[Path], reporter: Reporter) -> Iterator[Prediction]:
    """Classify images and all images in folders, read and normalised as those the model was trained on.

    Whatever can be refused is refused before this returns; images are read and classified as the result is asked for.

    Args:
        shipped: the model.
        paths: files, and folders, which are walked to the bottom; each file counts once.
        reporter: told how many are done, and in the end which could not be read.
    Returns:
        One prediction a file: as the paths were given, and by name within a folder.
    Raises:
        DataError: a path does not exist, a folder holds no image, or (in the end) no file could be read.
        CheckpointError: the model's outputs are not finite.
    """
    files = find_images(paths)
    use_threads(shipped.config.threads)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # on odd metadata; decoding threads rule out a narrower scope
    return _predictions(shipped, files, reporter)


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Files as they are given, and the images below folders by name; each once.

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
    """Write one row a file: path, predicted class, its probability, that of every class, and why it was not read.

    The file is written whole or, if the predictions end in an error, not at all.
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


def _predictions(shipped: TargetCheckpoint, files: Sequence[Path], reporter: Reporter) -> Iterator[Prediction]:
    resizing = shipped.resizing
    at_once = max(1, min(_IMAGES_AT_ONCE, _PIXELS_AT_ONCE // (resizing.height * resizing.width)))
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
            if len(batch) == at_once or done == len(files):
                yield from _classified(shipped, batch, images)
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
    shipped: TargetCheckpoint, batch: Sequence[Path | Prediction], images: Sequence[NDArray[np.uint8]]
) -> Iterator[Prediction]:
    """The predictions of a batch in its order; what is one already stays."""
    rows = iter(_probabilities(shipped, images) if images else [])
    for entry in batch:
        yield entry if isinstance(entry, Prediction) else Prediction(entry, next(rows), None)


@torch.inference_mode()
def _probabilities(shipped: TargetCheckpoint, images: Sequence[NDArray[np.uint8]]) -> list[list[float]]:
    """Softmax of the target's logits for images (H, W, 3), laid out as in evaluation."""
    layout = torch.channels_last if shipped.config.model.convolutional else torch.contiguous_format
    pixels = torch.from_numpy(np.stack(images)).to(shipped.device).permute(0, 3, 1, 2).contiguous()
    x = Normalisation(shipped.config.data, shipped.device)(pixels).contiguous(memory_format=layout)
    found = shipped.model(x).softmax(dim=1)
    if not found.isfinite().all():
        raise CheckpointError(
            f"{shipped.path}: the outputs of the model are not finite numbers", "Give a checkpoint of another epoch."
        )
    rows: list[list[float]] = found.cpu().tolist()
    return rows


def _decoded(files: Sequence[Path], resizing: Resizing) -> Generator[_Decoded, None, None]:
    """Files in their order with what becomes of them; some are read ahead of the one that is asked for."""
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
    image = Image.fromarray(read_image(path))  # such models are of data sets that nothing was cropped for
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
