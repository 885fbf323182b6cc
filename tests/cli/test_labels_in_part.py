"""Bias labels in some splits alone, folders named in capitals, other files under one name."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
from cli_support import call, good, refused
from PIL import Image

NETWORKS = [
    word
    for branch in ("shallow", "deep", "target")
    for word in ("--set", f"model.{branch}={{name: mlp, depth: 2, width: 8}}")
]


def images(folder: Path, count: int, seed: int = 0) -> list[Path]:
    random = np.random.RandomState(seed)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number}.png" for number in range(count)]
    for path in paths:
        Image.fromarray(random.randint(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return paths


def table(folder: Path, rows: list[list[str]]) -> Path:
    file = folder / "labels.csv"
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([["path", "label", "bias", "split"], *rows])
    return file


def train(name: str, *more: str) -> None:
    options = ("--set", f"dataset.folder={name}", "--set", "dataset.size=8", "--epochs", "1", "--batch-size", "8")
    good("train-poe", "--dataset", "folder", *options, *NETWORKS, "--device", "cpu", *more)


def test_with_bias_labels_for_test_alone_nothing_is_called_aligned_or_conflicting(tmp_path: Path) -> None:
    paths = images(tmp_path / "all", 32)
    rows = [
        [str(path), "ab"[number % 2], *(["xy"[number // 2 % 2], "test"] if number >= 16 else ["", "train"])]
        for number, path in enumerate(paths)
    ]
    out = good("make-data", "folder", "--source", table(tmp_path, rows), "--name", "part", "--size", 8).out
    test_row = next(line for line in out.splitlines() if line.split()[:2] == ["test", "16"])
    assert test_row.split() == ["test", "16", "-", "-", "-", "4", "4"]
    train("part")
    document = json.loads(good("evaluate", "runs/part/seed0", "--json", "--device", "cpu").out)
    for metrics in document["results"][0]["metrics"].values():
        assert metrics["aligned"] is metrics["conflicting"] is None
        assert metrics["unbiased"] is not None


def test_a_valid_split_without_bias_labels_is_selected_on_by_accuracy(tmp_path: Path) -> None:
    paths = images(tmp_path / "all", 48)
    splits = ["train"] * 24 + ["valid"] * 8 + ["test"] * 16
    rows = [
        [str(path), "ab"[number % 2], "" if split == "valid" else "xy"[number // 2 % 2], split]
        for number, (path, split) in enumerate(zip(paths, splits, strict=True))
    ]
    good("make-data", "folder", "--source", table(tmp_path, rows), "--name", "bare", "--size", 8)
    train("bare", "--set", "train_poe.selection_metric=shallow.conflicting")
    rules = json.loads(Path("runs/bare/seed0/train-poe/results.json").read_text())["rules"]
    assert (rules["valid"]["metric"], rules["paper"]["metric"]) == ("shallow.accuracy", "shallow.conflicting")
    assert rules["valid"]["used_bias_labels"] is False


def test_split_folders_may_be_named_in_capitals(tmp_path: Path) -> None:
    for split in ("Train", "Test"):
        for label in ("a", "b"):
            images(tmp_path / "mine" / split / label, 3)
    out = good("make-data", "folder", "--source", "mine", "--name", "caps", "--size", 8).out
    first = [line.split()[0] for line in out.splitlines() if line.strip()]
    assert [word for word in first if word in ("train", "test", "Train", "Test")] == ["train", "test"]


def test_other_files_under_one_name_are_refused_whatever_they_come_in(tmp_path: Path) -> None:
    for seed, name in enumerate(("one", "two")):
        for label in ("a", "b"):
            images(tmp_path / name / label, 4 + seed, seed)
    good("make-data", "folder", "--source", "one", "--name", "set", "--size", 8)
    shutil.make_archive("two", "zip", "two")
    shutil.make_archive("one", "zip", "one")
    refused(3, call("make-data", "folder", "--source", "two.zip", "--name", "set", "--size", 8), "other files")
    again = good("make-data", "folder", "--source", "one.zip", "--name", "set", "--size", 8)
    assert "was there already" in " ".join(again.out.split()), "a title that is too long is wrapped"
    (tmp_path / "one" / "a").rename(tmp_path / "one" / "aa")
    refused(3, call("make-data", "folder", "--source", "one", "--name", "set", "--size", 8), "other files")


def test_one_image_a_batch_is_refused_where_there_is_batch_normalisation(tmp_path: Path) -> None:
    for label in ("a", "b"):
        images(tmp_path / "mine" / label, 8)
    good("make-data", "folder", "--source", "mine", "--name", "tiny", "--size", 32)
    words = ["--set", "dataset.folder=tiny", "--set", "dataset.size=32", "--batch-size", "1", "--device", "cpu"]
    for branch, network in (("shallow", "cnn, depth: 3, width: 64"), ("deep", "cifar_resnet, depth: 8")):
        words += ["--set", f"model.{branch}={{name: {network}}}"]
    words += ["--set", "model.target={name: mlp, depth: 2, width: 64}"]
    refused(2, call("train-poe", "--dataset", "folder", *words), "train_poe.batch_size: 1")
    assert not Path("runs").exists()
