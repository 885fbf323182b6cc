import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from denetdm_cli.config.schema import FolderConfig
from denetdm_cli.data.importers.folders import list_folder
from denetdm_cli.data.importers.listing import Item, Listing, gap_notes
from denetdm_cli.utils.errors import ConfigError, DataError


def config(**changes: Any) -> FolderConfig:
    settings: dict[str, Any] = {"valid_share": 0.1, "test_share": 0.2, "seed": 0} | changes
    return FolderConfig(name="folder", root="data", folder="mine", size=32, fit="crop", **settings)


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def table(root: Path, text: str, encoding: str = "utf-8") -> Path:
    """A CSV file, and the images that its first column names."""
    for line in text.splitlines()[1:]:
        if line and not line.startswith(","):
            touch(root, line.split(",")[0].strip('"'))
    path = root / "labels.csv"
    path.write_bytes(text.encode(encoding))
    return path


def names(listing: Listing) -> dict[str, list[str]]:
    return {split: [listing.short(item) for item in items] for split, items in listing.splits.items()}


def refused(source: Path, **changes: Any) -> str:
    with pytest.raises(DataError) as error:
        list_folder(source, config(**changes))
    assert error.value.fix
    return error.value.what


# Class folders


def test_class_folders_by_split(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "train/10/b.png",
        "train/10/deep/er/a.JPG",
        "train/9/c.webp",
        "val/9/d.png",
        "val/10/f.png",
        "test/10/e.tiff",
        "test/9/g.gif",
    )
    touch(tmp_path, "train/9/.hidden.png", "train/Thumbs.db", ".DS_Store", "train/.git/x/y.png")
    listing = list_folder(tmp_path, config())
    assert listing.class_names == ("9", "10"), "numbers are sorted as numbers"
    assert listing.splits == {
        "train": [
            Item(tmp_path / "train/10/b.png", 1, None),
            Item(tmp_path / "train/10/deep/er/a.JPG", 1, None),
            Item(tmp_path / "train/9/c.webp", 0, None),
        ],
        "valid": [Item(tmp_path / "val/10/f.png", 1, None), Item(tmp_path / "val/9/d.png", 0, None)],
        "test": [Item(tmp_path / "test/10/e.tiff", 1, None), Item(tmp_path / "test/9/g.gif", 0, None)],
    }
    assert listing.root == tmp_path
    assert listing.bias_names == listing.aligned == listing.notes == ()
    assert listing.attribute_names == ("label",)


@pytest.mark.parametrize("given", ["valid", "test"])
def test_one_given_split_is_enough(tmp_path: Path, given: str) -> None:
    touch(tmp_path, "train/a/1.png", "train/b/2.png", f"{given}/a/3.png")
    assert names(list_folder(tmp_path, config())) == {
        "train": ["train/a/1.png", "train/b/2.png"],
        given: [f"{given}/a/3.png"],
    }


def test_a_class_that_is_not_tested_is_told(tmp_path: Path) -> None:
    rows = [
        f"{split}/{name}.png,{name},{split}" for split, names in (("train", "abc"), ("test", "b")) for name in names
    ]
    listing = list_folder(table(tmp_path, "\n".join(["path,label,split", *rows, "valid/a.png,a,valid"])), config())
    assert gap_notes(listing) == (
        "Split valid has no image of b, c, so no figure on it counts them.",
        "Split test has no image of a, c, so no figure on it counts them.",
    )


@pytest.mark.parametrize("prefix", ["", "train/", "mine/", "mine/train/", "up/mine/"])
def test_splits_are_drawn_where_there_are_none(tmp_path: Path, prefix: str) -> None:
    touch(
        tmp_path,
        *(f"{prefix}{name}/{number:02}.png" for name, count in (("cat", 40), ("dog", 20)) for number in range(count)),
    )
    listing = list_folder(tmp_path, config())
    counts = {
        split: Counter(listing.class_names[item.target] for item in items) for split, items in listing.splits.items()
    }
    assert counts == {
        "train": {"cat": 28, "dog": 14},
        "valid": {"cat": 4, "dog": 2},
        "test": {"cat": 8, "dog": 4},
    }
    every = [name for split in names(listing).values() for name in split]
    assert len(set(every)) == 60
    assert all(split == sorted(split) for split in names(listing).values())
    assert listing.notes == ("The source has no valid or test; drawn with seed 0: train 42, valid 6, test 12 images.",)
    assert list_folder(tmp_path, config()) == listing
    assert list_folder(tmp_path, config(seed=1)) != listing
    assert "valid" not in list_folder(tmp_path, config(valid_share=0.0)).splits


def test_drawing_depends_neither_on_the_file_system_nor_on_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [f"{name}/{number}.png" for name in "ab" for number in range(30)]
    one = names(list_folder(touch(tmp_path / "one", *files), config()))
    walk, iterdir = os.walk, Path.iterdir
    monkeypatch.setattr(os, "walk", lambda *a, **k: ((p, d[::-1], f[::-1]) for p, d, f in walk(*a, **k)))
    monkeypatch.setattr(Path, "iterdir", lambda self: sorted(iterdir(self), reverse=True))
    assert names(list_folder(touch(tmp_path / "z" / "two", *reversed(files)), config())) == one


def test_small_groups_keep_an_image_for_training_and_one_for_the_test(tmp_path: Path) -> None:
    sizes = {"a": 1, "b": 2, "c": 3, "d": 4}
    touch(tmp_path, *(f"{name}/{number}.png" for name, count in sizes.items() for number in range(count)))
    for shares in ({}, {"valid_share": 0.49, "test_share": 0.5}):
        listing = list_folder(tmp_path, config(**shares))
        train, test = (Counter(item.target for item in listing.splits[split]) for split in ("train", "test"))
        assert set(train) == {0, 1, 2, 3}
        assert set(test) == {1, 2, 3}
        assert listing.notes[1] == "Only one image, which is in train: a."
    assert "but one image a class" in refused(touch(tmp_path / "lone", "a/1.png", "b/1.png"))


def test_shares_that_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="valid_share"):
        list_folder(tmp_path, config(valid_share=0.5, test_share=0.5))


def test_other_files_are_noted(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "train/a/1.png",
        "train/b/2.png",
        "test/a/1.png",
        "test/b/1.png",
        "train/a/notes.txt",
        "train/loose.png",
        "readme.md",
    )
    listing = list_folder(tmp_path, config())
    assert names(listing)["train"] == ["train/a/1.png", "train/b/2.png"]
    assert listing.notes == ("2 files that are no images of a class are left out: train/loose.png, train/a/notes.txt",)


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    root = touch(tmp_path / "set", "a/1.png", "a/2.png", "b/1.png", "b/2.png")
    touch(tmp_path, "elsewhere/9.png", "single.png")
    (root / "a" / "loop").symlink_to(root / "a")
    (root / "b" / "more").symlink_to(tmp_path / "elsewhere")
    (root / "b" / "3.png").symlink_to(tmp_path / "single.png")
    every = sorted(name for split in names(list_folder(root, config())).values() for name in split)
    assert every == ["a/1.png", "a/2.png", "b/1.png", "b/2.png", "b/3.png", "b/more/9.png"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["loose.png"], "has no class folders; found loose.png"),
        ([], "has no class folders; found nothing"),
        (["a/1.png"], "one class only: a"),
        (["a/1.png", "b/x.txt", "c/d/"], "class folders without an image: b, c"),
        (["train/a/1.png", "train/b/1.png", "test/c/1.png"], "without a training image: c"),
        (["train/a/1.png", "cat/b/1.png"], "there must be train, and beside it only"),
        (["valid/a/1.png", "test/a/1.png"], "there must be train"),
        (["train/a/1.png", "valid/a/1.png", "val/a/1.png"], "there must be train"),
        ([f"{number}/1.png" for number in range(257)], "has 257 classes"),
        (["a\nb/1.png", "c/1.png"], r"cannot be shown: a\nb"),
    ],
)
def test_folders_that_are_refused(tmp_path: Path, files: list[str], expected: str) -> None:
    for name in files:
        if name.endswith("/"):
            (tmp_path / name).mkdir(parents=True)
        else:
            touch(tmp_path, name)
    assert expected in refused(tmp_path)


def test_names_with_odd_letters(tmp_path: Path) -> None:
    listing = list_folder(touch(tmp_path, "train/é 日/1.png", "train/a, b;'/1.png", "test/é 日/1.png"), config())
    assert listing.class_names == ("a, b;'", "é 日")


# Tables

FULL = "path,label,bias,split\na/1.png,cat,red,train\n2.png,dog,blue,train\n3.png,cat,red,val\n4.png,cat,blue,Test\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_table(tmp_path: Path, encoding: str, ending: str) -> None:
    path = table(tmp_path, FULL.replace("\n", ending), encoding)
    listing = list_folder(path, config())
    assert listing.splits == {
        "train": [Item(tmp_path / "2.png", 1, 0), Item(tmp_path / "a/1.png", 0, 1)],
        "valid": [Item(tmp_path / "3.png", 0, 1)],
        "test": [Item(tmp_path / "4.png", 0, 0)],
    }
    assert listing.class_names == ("cat", "dog")
    assert listing.bias_names == ("blue", "red")
    assert listing.aligned == (1, 0)
    assert listing.attribute_names == ("label", "bias")
    assert listing.root == tmp_path


def test_table_of_labels_alone_in_any_order(tmp_path: Path) -> None:
    rows = [f"{number}.png,{number % 2}" for number in range(40)]
    one = list_folder(table(tmp_path, "\n".join(["path,label", *rows])), config())
    assert one.class_names == ("0", "1")
    assert one.bias_names == one.aligned == ()
    assert {split: len(items) for split, items in one.splits.items()} == {"train": 28, "valid": 4, "test": 8}
    assert list_folder(table(tmp_path, "\n".join(["path,label", *reversed(rows)])), config()) == one
    swapped = [",".join(reversed(row.split(","))) for row in rows]
    (tmp_path / "labels.csv").write_text("\n".join(["label,path", *swapped]))
    assert list_folder(tmp_path / "labels.csv", config()) == one


def test_drawing_is_by_class_and_bias(tmp_path: Path) -> None:
    groups = {("a", "x"): 30, ("a", "y"): 3, ("b", "x"): 2, ("b", "y"): 20}
    rows = [
        f"{label}{bias}{number}.png,{label},{bias}"
        for (label, bias), count in groups.items()
        for number in range(count)
    ]
    listing = list_folder(table(tmp_path, "\n".join(["path,label,bias", *rows])), config())
    test = Counter((item.target, item.bias) for item in listing.splits["test"])
    assert test == {(0, 0): 6, (0, 1): 1, (1, 0): 1, (1, 1): 4}
    assert Counter((item.target, item.bias) for item in listing.splits["train"])[1, 0] == 1
    assert listing.aligned == (0, 1)


def test_ties_go_to_the_lowest_bias_value(tmp_path: Path) -> None:
    text = "path,label,bias,split\n1.png,a,y,train\n2.png,a,x,train\n3.png,b,y,train\n4.png,b,y,test\n"
    assert list_folder(table(tmp_path, text), config()).aligned == (0, 1)


def test_images_elsewhere(tmp_path: Path) -> None:
    touch(tmp_path, "other/1.png", "other/2.png", "set/3.png")
    path = tmp_path / "set" / "labels.csv"
    path.write_text(f"path,label,split\n../other/1.png,a,train\n{tmp_path}/other/2.png,b,train\n./3.png,a,test\n")
    listing = list_folder(path, config())
    assert [item.path for item in listing.splits["train"]] == [tmp_path / "other/1.png", tmp_path / "other/2.png"]
    assert names(listing)["train"] == ["../other/1.png", "../other/2.png"]
    assert len(listing.fingerprint()) == 64


def cut(*numbers: int) -> Callable[[str], str]:
    return lambda text: "\n".join(",".join(row.split(",")[number] for number in numbers) for row in text.splitlines())


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (cut(0, 2, 3), "no column label"),
        (cut(1, 2), "no column path"),
        (lambda text: text.replace("bias", "colour"), "unknown column 'colour'"),
        (lambda text: text.replace("bias", "label"), "column label twice"),
        (lambda text: text.replace(",", ";"), "columns path;label;bias;split"),
        (
            lambda text: text.replace("2.png", "two.png").replace("3.png", "three.png"),
            "no such file: line 3: two.png, line 4: three.png",
        ),
        (lambda text: text.replace("2.png", "a"), "no such file: line 3: a"),
        (lambda text: text.replace("2.png", ""), "no path: line 3"),
        (lambda text: text.replace("dog", " "), "no label: line 3"),
        (lambda text: text.replace("blue", ""), "no bias, while others of the same split have one: line 3"),
        (lambda text: text.replace("Test", ""), "no split, while others have one: line 5"),
        (lambda text: text.replace("val", "dev"), "split is not train, valid (or val) or test: line 4: dev"),
        (lambda text: text.replace("3.png", "./a/../a/1.png"), "second row: line 4: ./a/../a/1.png, as line 2"),
        (lambda text: text.replace("dog", "cat"), "one class only: cat"),
        (lambda text: text.replace("blue,train", "blue,test"), "classes without a training image: dog"),
        (lambda text: text.replace("blue,train", "blue"), "line 3: 3 values"),
        (lambda text: text + '"5.png,cat,red', "cannot be read as a table"),
        (lambda text: text.replace("dog", "do\0g"), ""),
        (lambda text: text.splitlines()[0], "has no rows"),
        (lambda text: "", "columns (none)"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, change: Callable[[str], str], expected: str) -> None:
    path = table(tmp_path, FULL)
    path.write_text(change(FULL))
    message = refused(path)
    assert str(tmp_path) in message
    assert expected in message


def test_val_and_valid_are_one_split_also_for_bias_labels(tmp_path: Path) -> None:
    rows = [f"{label}{split}.png,{label},{'' if split == 'valid' else 'red'},{split}" for split in
            ("train", "val", "valid", "Val", "test") for label in "ab"]  # fmt: skip
    message = refused(table(tmp_path, "\n".join(["path,label,bias,split", *rows])))
    assert message.endswith(
        "no bias, while others of the same split have one (val and valid are the same split): line 6, line 7."
    )
    labelled = "\n".join(["path,label,bias,split", *rows]).replace(",,", ",red,")
    listing = list_folder(table(tmp_path, labelled), config())
    assert names(listing)["valid"] == ["aVal.png", "aval.png", "avalid.png", "bVal.png", "bval.png", "bvalid.png"]


def test_many_values_and_other_encodings(tmp_path: Path) -> None:
    rows = "\n".join(f"{number}.png,{number % 2},{number}" for number in range(300))
    assert "has 300 bias values" in refused(table(tmp_path, f"path,label,bias\n{rows}"))
    (tmp_path / "labels.csv").write_bytes("path,label\né.png,ü\n".encode("latin-1"))
    assert "cannot be read as a table" in refused(tmp_path / "labels.csv")
    assert "is missing" in refused(tmp_path / "none.csv")


def test_links_to_one_image_are_one_image(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png")
    (tmp_path / "again.png").symlink_to("a.png")
    source = table(tmp_path, "path,label,split\na.png,x,train\nb.png,y,train\nagain.png,x,test\n")
    assert "line 4: again.png, as line 2" in refused(source)


def test_a_name_that_no_file_can_have(tmp_path: Path) -> None:
    source = table(tmp_path, "path,label\na.png,x\n")
    source.write_text(f"path,label\na.png,x\n{'q' * 5000},y\n")
    assert "no such file" in refused(source)


def test_a_table_beside_images_of_one_class_is_pointed_to(tmp_path: Path) -> None:
    touch(tmp_path, "im/a.png", "im/b.png")
    table(tmp_path, "path,label\nim/a.png,x\nim/b.png,y\n")
    assert "to use it, give that file" in refused(tmp_path)
