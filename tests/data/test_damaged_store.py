"""Opening data sets that are damaged, changed or something else."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from stored_sets import CLASSES, write, write_like_lff

from denetdm_cli.data.store import MANIFEST, open_dataset
from denetdm_cli.utils.errors import DataError


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: shutil.rmtree(d), ["does not exist"]),
        (lambda d: d.rename(d.with_name("moved")) and d.write_text("x"), ["is a file"]),
        (lambda d: shutil.rmtree(d / "valid"), ["no folder valid or test"]),
        (lambda d: (d / "train" / "attrs.npy").unlink(), ["train/attrs.npy", "missing"]),
        (lambda d: (d / "train" / "images.npy").write_bytes(b""), ["train/images.npy", "damaged"]),
        (lambda d: (d / "train" / "images.npy").write_bytes(b"<html>no such page</html>"), ["images.npy", "damaged"]),
        (lambda d: cut(d / "train" / "images.npy"), ["train/images.npy", "damaged"]),
        (lambda d: cut(d / "train" / "attrs.npy"), ["train/attrs.npy", "damaged"]),
        (lambda d: np.save(d / "train" / "images.npy", np.array([{}])), ["images.npy", "damaged"]),
        (lambda d: save_npz(d / "train" / "images.npy"), ["images.npy", "archive"]),
        (
            lambda d: np.save(d / "train" / "images.npy", np.zeros((30, 4, 5, 3), np.float32)),
            ["train/images.npy", "found float32 of shape (30, 4, 5, 3)", "expected uint8 of shape (N, H, W, 3)"],
        ),
        (lambda d: np.save(d / "train" / "images.npy", np.zeros((30, 3, 4, 5), np.uint8)), ["(30, 3, 4, 5)"]),
        (lambda d: np.save(d / "train" / "images.npy", np.zeros((30, 60), np.uint8)), ["(30, 60)"]),
        (lambda d: np.save(d / "train" / "images.npy", np.zeros((0, 4, 5, 3), np.uint8)), ["train/images.npy"]),
        (lambda d: np.save(d / "valid" / "images.npy", np.zeros((18, 5, 5, 3), np.uint8)), ["train 4x5, valid 5x5"]),
        (
            lambda d: np.save(d / "train" / "attrs.npy", np.zeros((29, 2), np.uint8)),
            ["train/attrs.npy", "found labels of 29 images", "expected 30"],
        ),
        (lambda d: np.save(d / "train" / "attrs.npy", np.zeros(30, np.uint8)), ["attrs.npy", "(30,)", "(N, 2)"]),
        (lambda d: np.save(d / "train" / "attrs.npy", np.zeros((30, 3), np.uint8)), ["(30, 3)"]),
        (lambda d: np.save(d / "train" / "attrs.npy", np.zeros((30, 2))), ["attrs.npy", "float64"]),
        (lambda d: np.save(d / "train" / "attrs.npy", np.zeros((30, 2), bool)), ["attrs.npy", "bool"]),
        (lambda d: np.save(d / "train" / "attrs.npy", np.full((30, 2), -1)), ["labels from -1 to -1"]),
        (lambda d: np.save(d / "train" / "attrs.npy", np.full((30, 2), 256)), ["256"]),
        (
            lambda d: np.save(d / "valid" / "attrs.npy", np.full((18, 2), 3, np.uint8)),
            ["valid/attrs.npy", "target label 3", "labels from 0 to 2"],
        ),
    ],
)
def test_bad_folder_of_another_tool(tmp_path: Path, damage: object, words: list[str]) -> None:
    write_like_lff(tmp_path / "set")
    open_dataset(tmp_path / "set", classes=CLASSES)
    damage(tmp_path / "set")  # type: ignore[operator]
    with pytest.raises(DataError) as error:
        open_dataset(tmp_path / "set", classes=CLASSES)
    for word in words:
        assert word in error.value.what
    assert str(tmp_path / "set") in error.value.what
    assert "\n" not in error.value.what
    assert "make-data" in error.value.fix


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def save_npz(file: Path) -> None:
    with file.open("wb") as stream:
        np.savez(stream, a=np.zeros(3))


@pytest.mark.parametrize("name", ["train/images.npy", "train/attrs.npy", "valid/images.npy", "valid/attrs.npy"])
def test_changed_bytes_are_noticed(tmp_path: Path, name: str) -> None:
    write(tmp_path / "set")
    file = tmp_path / "set" / name
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match="has changed since the data set was made") as error:
        open_dataset(tmp_path / "set", classes=None)
    assert str(file) in error.value.what
    assert "--force" in error.value.fix


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda text: "", "damaged"),
        (lambda text: text[:-40], "damaged"),
        (lambda text: "[]", "damaged"),
        (lambda text: "{}", "no field 'format'"),
        (lambda text: text.replace('"recipe"', '"recipes"'), "no field 'recipe'"),
        (lambda text: text.replace('"format": 1', '"format": 2'), "has format 2, expected 1"),
        (lambda text: text.replace('"images": 30', '"images": 31'), "split train"),
        (lambda text: text.replace('"digest": "', '"digest": "0'), "digest 0"),
        (lambda text: text.replace('"valid"', '"test"'), "splits train, valid"),
    ],
)
def test_damaged_manifest(tmp_path: Path, edit: object, words: str) -> None:
    write(tmp_path / "set")
    file = tmp_path / "set" / MANIFEST
    text = file.read_text()
    edited = edit(text)  # type: ignore[operator]
    assert edited != text
    file.write_text(edited)
    with pytest.raises(DataError) as error:
        open_dataset(tmp_path / "set")
    assert words in error.value.what
    assert str(tmp_path / "set") in error.value.what


def test_labels_that_claim_more_than_the_memory_are_refused(tmp_path: Path) -> None:
    for name in ("train", "valid"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "images.npy", np.zeros((2, 2, 2, 3), np.uint8))
        with (tmp_path / name / "attrs.npy").open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (10**15, 2)}
            np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(DataError, match=r"attrs\.npy is damaged"):
        open_dataset(tmp_path)
