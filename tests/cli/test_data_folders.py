"""Data set folders that other tools made, or that came to harm."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli_support import NAME, Outcome, call, contents, good, refused

from denetdm_cli.data.store import MANIFEST


def like_lff(folder: Path, splits: dict[str, tuple[np.ndarray, np.ndarray]]) -> Path:
    """A folder as LfF's code writes it: no manifest, int64 labels."""
    for name, (images, attrs) in splits.items():
        (folder / name).mkdir(parents=True)
        np.save(folder / name / "images.npy", images)
        np.save(folder / name / "attrs.npy", attrs.astype(np.int64))
    (folder / "attr_names.pkl").write_bytes(pickle.dumps(["digit", "color"]))
    return folder


def arrays(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {
        name: (np.load(folder / name / "images.npy"), np.load(folder / name / "attrs.npy"))
        for name in ("train", "valid")
    }


def _no_images(folder: Path) -> None:
    (folder / "train" / "images.npy").unlink()
    (folder / MANIFEST).touch()  # or nothing would say that this is a data set


def _cut(folder: Path) -> None:
    file = folder / "valid" / "images.npy"
    file.write_bytes(file.read_bytes()[:-1])


def _saved(split: str, file: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / split / f"{file}.npy"
        np.save(path, change(np.load(path)))

    return damage


def _without_group(attrs: np.ndarray) -> np.ndarray:
    attrs[(attrs == (3, 4)).all(axis=1)] = (3, 3)
    return attrs


DAMAGES: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "no labels": (lambda folder: (folder / "valid" / "attrs.npy").unlink(), ["valid/attrs.npy is missing"]),
    "no evaluation split": (lambda folder: shutil.rmtree(folder / "valid"), ["has no folder valid or test"]),
    "cut short": (_cut, ["valid/images.npy is damaged"]),
    "grey": (_saved("train", "images", lambda a: a[..., 0]), ["train/images.npy: found uint8 of shape (200, 18, 18)"]),
    "floats": (_saved("valid", "images", lambda a: a / 255), ["valid/images.npy: found float64", "expected uint8"]),
    "objects": (_saved("valid", "attrs", lambda a: a.astype(object)), ["valid/attrs.npy is damaged"]),
    "three columns": (_saved("train", "attrs", lambda a: a[:, [0, 1, 1]]), ["train/attrs.npy", "shape (200, 3)"]),
    "too few labels": (_saved("train", "attrs", lambda a: a[:-1]), ["found labels of 199 images; expected 200"]),
    "label too high": (_saved("valid", "attrs", lambda a: a + 1), ["valid/attrs.npy: found", "label 10; expected"]),
    "label below 0": (_saved("train", "attrs", lambda a: a - 1), ["train/attrs.npy: found labels from -1"]),
    "other size": (_saved("train", "images", lambda a: a[:, 1:]), ["different sizes: train 17x18, valid 18x18"]),
}  # fmt: skip


class TestDataFolders:
    @pytest.fixture
    def lff(self, data_root: Path, tmp_path: Path) -> Path:
        return like_lff(tmp_path / "lff" / NAME, arrays(data_root / NAME))

    def test_one_of_lff_is_trained_and_evaluated_on(
        self, lff: Path, train: Callable[..., Outcome], finished_run: Path
    ) -> None:
        before = contents(lff)
        assert train("--data-root", lff.parent, "--epochs", 1).code == 0
        results = json.loads(good("evaluate", finished_run, "--data", lff, "--json").out)["results"]
        own = json.loads(good("evaluate", finished_run, "--json").out)["results"]
        assert results[0]["metrics"] == own[0]["metrics"]
        assert results[0]["evaluated_on"]["path"] == str(lff)
        assert contents(lff) == before

    @pytest.mark.parametrize("name", DAMAGES)
    def test_a_damaged_one_is_refused(
        self, lff: Path, tmp_path: Path, train: Callable[..., Outcome], finished_run: Path, name: str
    ) -> None:
        damage, words = DAMAGES[name]
        damage(lff)
        before = contents(tmp_path)
        refused(3, train("--data-root", lff.parent), *words)
        refused(3, call("evaluate", finished_run, "--data", lff, "--predictions", "p.csv"), *words)
        assert contents(tmp_path) == before

    def test_a_group_without_images_is_left_out_and_said_so(
        self, lff: Path, train: Callable[..., Outcome], finished_run: Path
    ) -> None:
        _saved("valid", "attrs", _without_group)(lff)
        refused(3, train("--data-root", lff.parent), "no image in 1 of 100", "(3, 4)")
        outcome = good("evaluate", finished_run, "--data", lff)
        assert "1 of 100 groups have no image here; no mean counts them." in outcome.out
        found = json.loads(good("evaluate", finished_run, "--data", lff, "--json").out)["results"][0]["metrics"][
            "target"
        ]
        assert found["groups"][3][4] is None
        shares = [share for row in found["groups"] for share in row if share is not None]
        assert found["unbiased"] == pytest.approx(sum(shares) / 99)

    def test_missing_images_are_refused(self, lff: Path, tmp_path: Path, finished_run: Path) -> None:
        _no_images(lff)
        refused(3, call("evaluate", finished_run, "--data", lff), "train/images.npy is missing")
        refused(3, call("evaluate", finished_run, "--data", tmp_path / "nowhere"), "nowhere does not exist")
        refused(3, call("evaluate", finished_run, "--data", lff / MANIFEST), "is a file, not a folder")

    def test_images_of_another_size_are_refused(self, data_root: Path, tmp_path: Path, finished_run: Path) -> None:
        small = {name: (images[:, 2:], attrs) for name, (images, attrs) in arrays(data_root / NAME).items()}
        folder = like_lff(tmp_path / "small", small)
        refused(3, call("evaluate", finished_run, "--data", folder), folder, "[16, 18, 3]", "[18, 18, 3]")

    @pytest.mark.parametrize("file", ["train/images.npy", "valid/attrs.npy"])
    def test_a_changed_byte_is_refused(self, data: Path, train: Callable[..., Outcome], file: str) -> None:
        content = bytearray((data / file).read_bytes())
        content[-1] ^= 1
        (data / file).write_bytes(content)
        before = contents(data)
        refused(3, train("--data-root", data.parent), file, "has changed since", "make-data")
        assert contents(data) == before
        assert not Path("runs").exists()

    def test_something_else_in_its_place_is_left_alone(self, tmp_path: Path, train: Callable[..., Outcome]) -> None:
        (tmp_path / "data" / NAME).mkdir(parents=True)
        (tmp_path / "data" / NAME / "thesis.txt").write_text("precious")
        before = contents(tmp_path)
        refused(3, train("--data-root", "data"), "is not a data set folder", "--data-root")
        assert contents(tmp_path) == before
