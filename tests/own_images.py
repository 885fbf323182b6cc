"""Images of one's own as a user has them, settings that train on them in no time, and a search for NaN."""

import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from PIL import Image

from denetdm_cli.training import checkpoint

CLASSES = ("cat", "dog")
PLACES = ("barn", "home", "park")
MLPS = tuple(
    word
    for branch, depth in (("shallow", 3), ("deep", 5), ("target", 3))
    for word in ("--set", f"model.{branch}={{name: mlp, depth: {depth}, width: 16}}")
)


def tiny(name: str, *more: object, side: int = 16, networks: Sequence[str] = MLPS) -> list[object]:
    """Options of a stage 1 of two short epochs on images of one's own; what is in `more` counts over what is here."""
    words: list[object] = ["--dataset", "folder", "--set", f"dataset.folder={name}", "--set", f"dataset.size={side}"]
    words += ["--device", "cpu", "--set", "data.random_crop_padding=2", *networks]
    words += [] if "--epochs" in more else ["--epochs", 2]
    words += [] if "--batch-size" in more else ["--batch-size", 8]
    return [*words, *more]


def paint(file: Path, label: int, bias: int, number: int, side: int = 16) -> Path:
    """A noisy PNG: the place of a bright bar tells its class, its colour the bias value."""
    pixels = np.random.RandomState(number).randint(0, 90, (side, side, 3)).astype(np.uint8)
    pixels[..., bias % 3] += 100
    pixels[4 * label + 2 : 4 * label + 5] += 60
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)
    return file


def class_folders(root: Path, counts: Mapping[str, int], side: int = 16, classes: Sequence[str] = CLASSES) -> Path:
    """`<split>/<class>/<k>.png`, as many a class as `counts` says by split; the split "" stands for no such folder."""
    for number, split in enumerate(counts):
        for label, name in enumerate(classes):
            for k in range(counts[split]):
                paint(root / split / name / f"{k}.png", label, label, 1000 * number + 100 * label + k, side)
    return root


def table(root: Path, counts: Mapping[str, Sequence[Sequence[int]]], columns: Iterable[str], side: int = 16) -> Path:
    """A CSV file and its images; `counts[split][label][bias]` of each group, the split "" stands for none."""
    rows = []
    for split, by_label in counts.items():
        for label, by_bias in enumerate(by_label):
            for bias, count in enumerate(by_bias):
                for _ in range(count):
                    name = f"images/{len(rows):03}.png"
                    paint(root / name, label, bias, len(rows), side)
                    rows.append({"path": name, "label": CLASSES[label], "bias": PLACES[bias], "split": split})
    return written_table(root / "labels.csv", rows, list(columns))


def written_table(file: Path, rows: Iterable[Mapping[str, str]], columns: Sequence[str]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return file


def strict(text: str) -> Any:
    """JSON without NaN and infinities, which are no JSON."""

    def no_number(word: str) -> NoReturn:
        raise AssertionError(f"{word} in {text[:200]}")

    return json.loads(text, parse_constant=no_number)


def only_numbers(text: str) -> bool:
    """No NaN and no infinity anywhere in what a person or a program reads."""
    return not re.search(r"(?<![A-Za-z])([-+.]?nan|[-+.]?inf|infinity)(?![A-Za-z])", text, re.IGNORECASE)


def require_numbers(folder: Path) -> None:
    """Every file of a run folder is free of NaN: text, metadata and tensors."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert {file.suffix for file in files} == {".yaml", ".json", ".jsonl", ".safetensors"}, files
    for file in files:
        if file.suffix == ".safetensors":
            tensors, metadata = checkpoint.load(file)
            assert all(bool(tensor.isfinite().all()) for tensor in tensors.values()), file
            strict(json.dumps(metadata))
        else:
            text = file.read_text("utf-8")
            assert only_numbers(text), file
            for document in [text] if file.suffix == ".json" else text.splitlines() if file.suffix == ".jsonl" else []:
                strict(document)
