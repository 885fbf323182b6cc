"""Published data sets with labels in the names of files and folders: BFFHQ, DFA and BAR."""

from collections import Counter
from pathlib import Path

import pytest
from published_sets import config, found, refused, touch

from denetdm_cli.data.importers.bar import list_bar
from denetdm_cli.data.importers.bffhq import list_bffhq
from denetdm_cli.data.importers.dfa import list_dfa
from denetdm_cli.utils.errors import DataError

CLASSES = ("climbing", "diving", "fishing", "pole vaulting", "racing", "throwing")


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
