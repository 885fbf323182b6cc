import csv
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from denetdm_cli.config.load import load_config, preset_path
from denetdm_cli.data.importers import celeba
from denetdm_cli.data.importers.bar import list_bar
from denetdm_cli.data.importers.bffhq import list_bffhq
from denetdm_cli.data.importers.celeba import list_celeba
from denetdm_cli.data.importers.dfa import list_dfa
from denetdm_cli.data.importers.listing import Listing
from denetdm_cli.data.importers.pack import pack
from denetdm_cli.data.importers.waterbirds import list_waterbirds
from denetdm_cli.utils.errors import DataError

CLASSES = ("climbing", "diving", "fishing", "pole vaulting", "racing", "throwing")


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def found(listing: Listing, split: str) -> list[tuple[str, int, int | None]]:
    return [(listing.short(item), item.target, item.bias) for item in listing.splits[split]]


def config(name: str, **changes: Any) -> Any:
    """The `dataset` section of a preset, with changes."""
    return load_config(preset_path(name)).dataset.model_copy(update=changes)


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(DataError) as error:
        call()
    assert error.value.fix
    return error.value.what


# BFFHQ


def make_bffhq(root: Path, train: str = "0.5pct") -> Path:
    for number in range(2):
        touch(root, f"{train}/align/{number}/{number}_{number}_{number}.png")
        touch(root, f"{train}/conflict/{number}/9_{number}_{1 - number}.png")
        touch(root, f"valid/{number}_{number}_{number}.png", f"test/a_b_{number}_{number}_{1 - number}.png")
    touch(root, "test/Thumbs.db", "readme.txt")
    return root


@pytest.mark.parametrize(
    ("name", "train"), [("bffhq", "0.5pct"), ("bFFHQ", "train"), ("up/bffhq", "0.5pct"), (".", "train")]
)
def test_bffhq(tmp_path: Path, name: str, train: str) -> None:
    make_bffhq(tmp_path / name, train)
    listing = list_bffhq(tmp_path, config("bffhq"))
    assert listing.root == tmp_path / name
    assert list(listing.splits) == ["train", "valid", "test"]
    assert found(listing, "train") == [
        (f"{train}/align/0/0_0_0.png", 0, 0),
        (f"{train}/align/1/1_1_1.png", 1, 1),
        (f"{train}/conflict/0/9_0_1.png", 0, 1),
        (f"{train}/conflict/1/9_1_0.png", 1, 0),
    ]
    assert found(listing, "test") == [("test/a_b_0_0_1.png", 0, 1), ("test/a_b_1_1_0.png", 1, 0)]
    assert listing.class_names == ("young", "old")
    assert listing.bias_names == ("gender 0", "gender 1")
    assert listing.aligned == (0, 1)
    assert listing.notes[0] == "Split train has 4 images; that of the published data set has 19,200."
    assert len(listing.notes) == 3


def test_bffhq_that_is_not_as_published(tmp_path: Path) -> None:
    touch(tmp_path, "other/a.png")
    message = refused(lambda: list_bffhq(tmp_path, config("bffhq")))
    assert "bffhq/0.5pct/align" in message
    assert "found other/" in message
    make_bffhq(tmp_path)
    touch(tmp_path, "0.5pct/align/0/7_0_1.png")
    assert "align/0/7_0_1.png" in refused(lambda: list_bffhq(tmp_path, config("bffhq")))
    (tmp_path / "0.5pct/align/0/7_0_1.png").rename(tmp_path / "0.5pct/conflict/0/7_1_1.png")
    assert "conflict/0/7_1_1.png" in refused(lambda: list_bffhq(tmp_path, config("bffhq")))
    (tmp_path / "0.5pct/conflict/0/7_1_1.png").unlink()
    touch(tmp_path, "valid/1_2.png", "valid/7_0_2.png", "valid/x.png")
    message = refused(lambda: list_bffhq(tmp_path, config("bffhq")))
    assert "valid: " in message
    assert "1_2.png, 7_0_2.png, x.png" in message
    for path in (tmp_path / "valid").iterdir():
        path.unlink()
    assert "valid holds no images; found nothing" in refused(lambda: list_bffhq(tmp_path, config("bffhq")))
    (tmp_path / "valid").rmdir()
    assert "valid is missing" in refused(lambda: list_bffhq(tmp_path, config("bffhq")))


# DFA


def make_dfa(root: Path, part: str = "5pct", aligned: int = 19) -> Path:
    for number in range(10):
        touch(root, *(f"{part}/align/{number}/{n}_{number}_{number}.png" for n in range(aligned)))
        touch(root, f"{part}/conflict/{number}/{number}_{number}_{(number + 1) % 10}.png")
        touch(root, f"{part}/valid/{number}_{number}_3.png", f"test/{number}/{number}_{number}_{9 - number}.png")
    return root


@pytest.mark.parametrize("name", ["cmnist", "cifar10c"])
def test_dfa(tmp_path: Path, name: str) -> None:
    make_dfa(tmp_path / "cmnist")
    make_dfa(tmp_path / "cifar10c")
    touch(tmp_path, f"{name}/1pct/align/0/0_0_0.png")
    listing = list_dfa(tmp_path, config(name, ratio=0.05))
    assert listing.root.name == name
    assert {split: len(items) for split, items in listing.splits.items()} == {"train": 200, "valid": 10, "test": 10}
    assert found(listing, "train")[0] == ("5pct/align/0/0_0_0.png", 0, 0)
    assert found(listing, "train")[-1] == ("5pct/conflict/9/9_9_0.png", 9, 0)
    assert found(listing, "valid")[2] == ("5pct/valid/2_2_3.png", 2, 3)
    assert found(listing, "test")[1] == ("test/1/1_1_8.png", 1, 8)
    assert listing.class_names[8] == ("8" if name == "cmnist" else "ship")
    assert listing.bias_names[2] == ("colour 2" if name == "cmnist" else "corruption 2")
    assert listing.aligned == tuple(range(10))
    assert list_dfa(tmp_path / name, config(name, ratio=0.05)) == listing


def test_dfa_takes_neither_another_set_nor_another_ratio(tmp_path: Path) -> None:
    tree = make_dfa(tmp_path / "cifar10c")
    assert "cmnist/5pct/align" in refused(lambda: list_dfa(tree, config("cmnist", ratio=0.05)))
    assert "cifar10c/0.5pct/align" in refused(lambda: list_dfa(tree, config("cifar10c", ratio=0.005)))
    (tree / "5pct").rename(tree / "0.5pct")
    message = refused(lambda: list_dfa(tree, config("cifar10c", ratio=0.005)))
    assert "10 of 200" in message
    assert "5.00%" in message
    assert "0.50%" in message


# BAR


def make_bar(root: Path, nested: bool = False) -> Path:
    for number, name in enumerate(CLASSES):
        for split, count in (("train", 3), ("test", 2)):
            folder = f"{split}/{name}" if nested else split
            touch(root, *(f"{folder}/{name}_{10 * number + n}.jpg" for n in range(count)))
    touch(root, "metadata.json")
    return root


@pytest.mark.parametrize("nested", [False, True])
def test_original_bar(tmp_path: Path, nested: bool) -> None:
    listing = list_bar(make_bar(tmp_path / "BAR", nested).parent, config("bar", ratio=None))
    assert list(listing.splits) == ["train", "test"]
    assert Counter(item.target for item in listing.splits["train"]) == dict.fromkeys(range(6), 3)
    assert {item.bias for item in listing.splits["train"]} == {None}
    assert {item.bias for item in listing.splits["test"]} == {6}
    assert all(CLASSES[item.target] in item.path.name for items in listing.splits.values() for item in items)
    assert listing.class_names == CLASSES
    assert listing.bias_names[3] == "pole vaulting place"
    assert listing.bias_names[6] == "other place"
    assert listing.aligned == (0, 1, 2, 3, 4, 5)
    assert listing.notes == (
        "Split train has 18 images; that of the published data set has 1,941.",
        "Split test has 12 images; that of the published data set has 654.",
    )


def make_bar_by_share(root: Path, *, share: str = "5pct/", number: bool = False, conflicting: int = 1) -> Path:
    for target, name in enumerate(CLASSES):
        folder = str(target) if number else name
        word = "x" if number else name
        touch(root, *(f"train/align/{folder}/{word}_{n}_{target}_{n}.jpg" for n in range(19)))
        touch(root, *(f"train/conflict/{share}{folder}/{word}_{n}_{target}_{n}.jpg" for n in range(conflicting)))
        touch(root, f"valid/{folder}/{word}_{target}_0.jpg", f"test/{folder}/{word}_{target}_1.jpg")
    return root


@pytest.mark.parametrize("share", ["", "5pct/"])
@pytest.mark.parametrize("number", [False, True])
def test_bar_by_share(tmp_path: Path, share: str, number: bool) -> None:
    tree = make_bar_by_share(tmp_path / "bar", share=share, number=number)
    if share:
        touch(tree, "train/conflict/1pct/0/0_climbing_0_1.jpg")
    listing = list_bar(tmp_path, config("bar", ratio=0.05))
    train = listing.splits["train"]
    assert Counter((item.target, item.bias) for item in train) == {
        **{(target, target): 19 for target in range(6)},
        **{(target, 6): 1 for target in range(6)},
    }
    assert all("conflict" in item.path.parts for item in train if item.bias == 6)
    assert [item.target for item in listing.splits["valid"]] == [0, 1, 2, 3, 4, 5]
    assert {item.bias for item in listing.splits["valid"]} == {None}
    assert {item.bias for item in listing.splits["test"]} == {6}
    assert any("alphabetical" in note for note in listing.notes) == number


def test_bar_validation_sorted_by_bias(tmp_path: Path) -> None:
    tree = make_bar_by_share(tmp_path)
    for path in sorted((tree / "valid").rglob("*.jpg")):
        path.unlink()
    touch(tree, "valid/align/racing/racing_4_0.jpg", "valid/conflict/diving/diving_1_0.jpg")
    assert [(item.target, item.bias) for item in list_bar(tree, config("bar", ratio=0.05)).splits["valid"]] == [
        (4, 4),
        (1, 6),
    ]


def test_bar_of_the_other_kind(tmp_path: Path) -> None:
    original, shares = make_bar(tmp_path / "original"), make_bar_by_share(tmp_path / "shares")
    with pytest.raises(DataError, match=r"--ratio 0\.05"):
        list_bar(shares, config("bar", ratio=None))
    with pytest.raises(DataError, match="Leave out `--ratio`"):
        list_bar(original, config("bar", ratio=0.05))
    assert "1pct is missing" in refused(lambda: list_bar(shares, config("bar", ratio=0.01)))
    more = make_bar_by_share(tmp_path / "more", conflicting=3)
    assert "18 of 132" in refused(lambda: list_bar(more, config("bar", ratio=0.05)))
    touch(original, "train/swimming_1.jpg", "test/diving/climbing_1.jpg")
    assert "swimming_1.jpg" in refused(lambda: list_bar(original, config("bar", ratio=None)))
    (original / "train/swimming_1.jpg").unlink()
    assert "diving/climbing_1.jpg" in refused(lambda: list_bar(original, config("bar", ratio=None)))


# CelebA

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


# Waterbirds

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
