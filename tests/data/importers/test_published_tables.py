"""Published data sets with labels in tables: CelebA and Waterbirds."""

import csv
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from published_sets import config, found, refused, touch

from denetdm_cli.data.importers import celeba
from denetdm_cli.data.importers.celeba import list_celeba
from denetdm_cli.data.importers.pack import pack
from denetdm_cli.data.importers.waterbirds import list_waterbirds

CELEBA = [  # name, blond, male, partition
    ("000001.jpg", 1, -1, 0),
    ("000002.jpg", -1, 1, 0),
    ("000003.jpg", 1, 1, 0),
    ("000004.jpg", -1, -1, 1),
    ("000005.jpg", 1, -1, 2),
    *((f"{number:06}.jpg", -1, -1, 0) for number in range(6, 26)),
]


def make_celeba(root: Path, kind: str = "published") -> Path:
    tables_in, images = root, root / "img_align_celeba"
    if kind == "kaggle":
        images /= "img_align_celeba"
    if kind == "apart":
        tables_in, images = root / "Anno", root / "Img" / "img_align_celeba"
    tables_in.mkdir(parents=True, exist_ok=True)
    touch(images, *(name for name, *_ in CELEBA))
    if kind == "kaggle":
        write_csv(
            root / "list_attr_celeba.csv",
            ["image_id", "Bald", "Male", "Blond_Hair"],
            [(n, 1, m, b) for n, b, m, _ in CELEBA],
        )
        write_csv(root / "list_eval_partition.csv", ["image_id", "partition"], [(n, p) for n, _, _, p in CELEBA])
    else:
        rows = "".join(f"{n} -1  {b:2} {m:2} \n" for n, b, m, _ in CELEBA)
        (tables_in / "list_attr_celeba.txt").write_text(f"{len(CELEBA)}\nBald Blond_Hair Male \n{rows}")
        (tables_in / "list_eval_partition.txt").write_text("".join(f"{n} {p}\n" for n, _, _, p in CELEBA))
    return root


def write_csv(path: Path, names: list[str], rows: list[tuple[object, ...]]) -> None:
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([names, *rows])


@pytest.mark.parametrize("kind", ["published", "kaggle", "apart"])
@pytest.mark.parametrize("below", [".", "celeba"])
def test_celeba(tmp_path: Path, kind: str, below: str) -> None:
    make_celeba(tmp_path / below, kind)
    listing = list_celeba(tmp_path, config("celeba", subsample=False, seed=0))
    assert found(listing, "train")[:3] == [("000001.jpg", 1, 1), ("000002.jpg", 0, 0), ("000003.jpg", 1, 0)]
    assert found(listing, "valid") == [("000004.jpg", 0, 1)]
    assert found(listing, "test") == [("000005.jpg", 1, 1)]
    assert len(listing.splits["train"]) == 23
    assert all(item.path.is_file() for items in listing.splits.values() for item in items)
    assert listing.class_names == ("not blond", "blond")
    assert listing.bias_names == ("male", "female")
    assert listing.aligned == (0, 1)
    assert "162,770" in listing.notes[0]


def test_celeba_subsample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_celeba(tmp_path)
    whole = list_celeba(tmp_path, config("celeba", subsample=False, seed=0))
    assert list_celeba(tmp_path, config("celeba", subsample=True, seed=0)) == whole, "there are not 2,000"
    monkeypatch.setattr(celeba, "_KEPT_OF_COMMONEST", 7)
    drawn = list_celeba(tmp_path, config("celeba", subsample=True, seed=0))
    groups = Counter((item.target, item.bias) for item in drawn.splits["train"])
    assert groups == {(0, 1): 7, (0, 0): 1, (1, 0): 1, (1, 1): 1}
    assert drawn.splits["train"] == sorted(drawn.splits["train"], key=lambda item: item.path)
    assert drawn.splits["test"] == whole.splits["test"]
    assert drawn.notes == whole.notes
    assert list_celeba(tmp_path, config("celeba", subsample=True, seed=0)) == drawn
    assert list_celeba(tmp_path, config("celeba", subsample=True, seed=1)) != drawn


def edit(path: Path, change: Callable[[str], str]) -> None:
    path.write_text(change(path.read_text()))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda root: (root / "list_attr_celeba.txt").unlink(), "looked for CelebA's list_attr_celeba.txt"),
        (
            lambda root: (root / "list_eval_partition.txt").unlink(),
            "list_eval_partition.txt or list_eval_partition.csv",
        ),
        (lambda root: (root / "img_align_celeba").rename(root / "images"), "img_align_celeba/"),
        (lambda root: touch(root, "img_align_celeba/000099.jpg"), "without a row: 000099.jpg"),
        (lambda root: (root / "img_align_celeba/000003.jpg").unlink(), "list_attr_celeba.txt: 1 rows naming images"),
        (lambda root: edit(root / "list_attr_celeba.txt", lambda t: t.replace("Male", "Man")), "no column Male"),
        (lambda root: edit(root / "list_attr_celeba.txt", lambda t: t.replace("25\n", "26\n", 1)), "says 26 rows"),
        (lambda root: edit(root / "list_attr_celeba.txt", lambda t: t + "000001.jpg 1\n"), "line 28: 2 values"),
        (lambda root: edit(root / "list_attr_celeba.txt", lambda t: t.replace(" 1  1", " 1  5")), "line 5: 1, 5"),
        (lambda root: edit(root / "list_eval_partition.txt", lambda t: t.replace(" 2", " 3")), "line 5: 3"),
        (lambda root: edit(root / "list_eval_partition.txt", lambda t: t.replace(" 2", " 0")), "of some splits: test"),
        (lambda root: edit(root / "list_eval_partition.txt", lambda t: t + "000001.jpg 1\n"), "one row: 000001.jpg"),
        (lambda root: edit(root / "list_eval_partition.txt", lambda t: t + "7.jpg 1\n"), "without a row there: 7.jpg"),
        (lambda root: edit(root / "list_eval_partition.txt", lambda t: t[15:]), "without a row there: 000001.jpg"),
        (lambda root: (root / "list_attr_celeba.txt").write_bytes(b"\xff\xfe1"), "is not text"),
        (lambda root: (root / "list_attr_celeba.txt").write_text(""), "no column Blond_Hair"),
    ],
)
def test_celeba_that_is_not_as_published(tmp_path: Path, change: Callable[[Path], object], expected: str) -> None:
    make_celeba(tmp_path)
    change(tmp_path)
    assert expected in refused(lambda: list_celeba(tmp_path, config("celeba", subsample=False, seed=0)))


WATERBIRDS = [  # img_filename, y, split, place
    ("b/2.jpg", 1, 0, 1),
    ("a/1.jpg", 0, 0, 1),
    ("a/3.jpg", 0, 1, 0),
    ("b/4.jpg", 1, 2, 0),
]


def make_waterbirds(root: Path) -> Path:
    touch(root, *(row[0] for row in WATERBIRDS))
    names = ["img_id", "place_filename", "img_filename", "y", "split", "place"]
    write_csv(root / "metadata.csv", names, [(number, "/f/forest.jpg", *row) for number, row in enumerate(WATERBIRDS)])
    return root


def test_waterbirds(tmp_path: Path) -> None:
    make_waterbirds(tmp_path / "waterbird_complete95_forest2water2")
    listing = list_waterbirds(tmp_path, config("waterbirds"))
    assert found(listing, "train") == [("a/1.jpg", 0, 1), ("b/2.jpg", 1, 1)]
    assert found(listing, "valid") == [("a/3.jpg", 0, 0)]
    assert found(listing, "test") == [("b/4.jpg", 1, 0)]
    assert listing.class_names == ("landbird", "waterbird")
    assert listing.bias_names == ("land", "water")
    assert listing.aligned == (0, 1)
    assert "4,795" in listing.notes[0]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda root: (root / "metadata.csv").unlink(), "looked for Waterbirds' metadata.csv"),
        (lambda root: (root / "a/1.jpg").unlink(), "rows naming images that are not in"),
        (lambda root: touch(root, "b/9.jpg"), "without a row: b/9.jpg"),
        (lambda root: edit(root / "metadata.csv", lambda t: t.replace("place\n", "spot\n")), "no column place"),
        (lambda root: edit(root / "metadata.csv", lambda t: t.replace("jpg,0,0,1", "jpg,0,0,2")), "line 3: 0, 0, 2"),
        (lambda root: edit(root / "metadata.csv", lambda t: t.replace("jpg,0,0,1", "jpg,0,0")), "line 3: 5 values"),
        (lambda root: edit(root / "metadata.csv", lambda t: t.replace("jpg,0,1,0", "jpg,0,0,0")), "splits: valid"),
        (lambda root: edit(root / "metadata.csv", lambda t: t.replace("a/1", "a/3")), "more than one row: a/3.jpg"),
        (lambda root: edit(root / "metadata.csv", lambda t: t.split("\n")[0]), "has no rows"),
        (lambda root: edit(root / "metadata.csv", lambda t: ""), "columns (none)"),
    ],
)
def test_waterbirds_that_are_not_as_published(tmp_path: Path, change: Callable[[Path], object], expected: str) -> None:
    make_waterbirds(tmp_path)
    edit(tmp_path / "metadata.csv", lambda text: text.replace("\r", ""))
    change(tmp_path)
    assert expected in refused(lambda: list_waterbirds(tmp_path, config("waterbirds")))


def test_a_listing_can_be_packed(tmp_path: Path) -> None:
    make_waterbirds(tmp_path / "in")
    for number, row in enumerate(WATERBIRDS):
        Image.new("RGB", (9, 7), (number, 0, 0)).save(tmp_path / "in" / row[0], "PNG")

    class Silent:
        def info(self, line: str) -> None: ...
        def advance(self, what: str, done: int, total: int) -> None: ...

    dataset = pack(
        list_waterbirds(tmp_path / "in", config("waterbirds")),
        tmp_path / "out",
        size=8,
        fit="crop",
        recipe={"name": "waterbirds"},
        replace=False,
        reporter=Silent(),
    )
    assert np.array(dataset.splits["train"].images)[:, 0, 0, 0].tolist() == [1, 0]
