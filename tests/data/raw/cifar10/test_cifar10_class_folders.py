"""CIFAR-10 as a tree of class folders, in a folder or a .zip."""

import hashlib
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cifar10_files import Tree, assert_same, put, quiet, shout
from PIL import Image

from denetdm_cli.data.raw.cifar10 import CLASS_NAMES, Cifar10, load_cifar10
from denetdm_cli.utils.errors import DataError


def image_bytes(pixels: np.ndarray, kind: str = "PNG", mode: str | None = None) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(stream, kind)
    return stream.getvalue()


def make_tree(per_class: dict[str, int]) -> tuple[Tree, Cifar10]:
    """Images of one colour and noise, their names such that the order of creation is not that of the names."""
    random, tree = np.random.RandomState(1), {}
    arrays = []
    for split, count in per_class.items():
        images, labels = [], []
        for number, kind in enumerate(CLASS_NAMES):
            made = {f"{index * 7 % 10}{index}.png": random.randint(0, 256, (32, 32, 3)) for index in range(count)}
            tree |= {f"{split}/{kind}/{name}": image_bytes(pixels.astype(np.uint8)) for name, pixels in made.items()}
            images += [made[name] for name in sorted(made)]
            labels += [number] * count
        arrays += [np.array(images, np.uint8), np.array(labels, np.uint8)]
    return tree, Cifar10(*arrays, "class folders")


@pytest.fixture(scope="module")
def tree_and_cifar() -> tuple[Tree, Cifar10]:
    return make_tree({"train": 3, "test": 1})


@pytest.fixture
def tree(tree_and_cifar: tuple[Tree, Cifar10]) -> Tree:
    return dict(tree_and_cifar[0])


@pytest.fixture
def decoded(tree_and_cifar: tuple[Tree, Cifar10]) -> Cifar10:
    return tree_and_cifar[1]


def pack(path: Path, tree: Tree, *, leading: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in tree.items():
            archive.writestr(f"{leading}{name}", content)
    return path


def pack_or_put(form: str, folder: Path, tree: Tree) -> Path:
    """The tree as a source of the form asked for: a folder, or a zip with or without a leading folder."""
    if form == "folder":
        return put(folder, tree)
    return pack(folder.with_suffix(".zip"), tree, leading={"zip": "", "zip in a folder": "CIFAR-10-images/"}[form])


FORMS = pytest.mark.parametrize("form", ["folder", "zip", "zip in a folder"])


@FORMS
def test_class_folders(tree: Tree, decoded: Cifar10, tmp_path: Path, form: str) -> None:
    more = {
        "README.md": b"x",
        "labels/train/x.csv": b"x",
        "train/labels.csv": b"x",
        ".git/x": b"",
        "train/.DS_Store": b"",
        "train/cat/.DS_Store": b"",
        "train/cat/Thumbs.db": b"",
        "test/.ipynb_checkpoints/a.png": b"",
    }
    source = pack_or_put(form, tmp_path / "source", dict(reversed((more | tree).items())))
    said: list[str] = []
    assert_same(load_cifar10(tmp_path, source, said.append), decoded)
    assert said == ["CIFAR-10: decoding 40 images"]
    assert list(tmp_path.iterdir()) == [source], "nothing is unpacked onto the disk"


def test_what_a_mac_adds_to_a_zip_is_passed_over(tree: Tree, decoded: Cifar10, tmp_path: Path) -> None:
    mac = {f"__MACOSX/{name.replace('cat/', 'cat/._')}": b"" for name in tree}
    assert_same(load_cifar10(tmp_path, pack(tmp_path / "a.zip", mac | tree), quiet), decoded)
    again = {**{f"x/{name}": content for name, content in tree.items()}, **mac}
    assert_same(load_cifar10(tmp_path, pack(tmp_path / "b.zip", again), quiet), decoded)


def test_a_zip_is_known_by_its_content(tree: Tree, decoded: Cifar10, tmp_path: Path) -> None:
    assert_same(load_cifar10(tmp_path, pack(tmp_path / "images.bin", tree), quiet), decoded)


def test_digests(decoded: Cifar10) -> None:
    assert decoded.digests() == {
        name: hashlib.sha256(getattr(decoded, name).tobytes()).hexdigest()
        for name in ("train_images", "train_labels", "test_images", "test_labels")
    }
    flipped = Cifar10(*(array[::-1] for array in list(vars(decoded).values())[:4]), "class folders")
    for name, digest in flipped.digests().items():
        assert digest == hashlib.sha256(getattr(flipped, name).tobytes()).hexdigest()
        assert digest != decoded.digests()[name]


@pytest.mark.parametrize(
    ("kind", "mode"), [("PNG", "L"), ("PNG", "P"), ("PNG", "RGBA"), ("PNG", "LA"), ("JPEG", None), ("JPEG", "L")]
)
@pytest.mark.parametrize("suffix", ["png", "jpg", "JPG", "jpeg"])
def test_images_become_rgb(tree: Tree, tmp_path: Path, kind: str, mode: str | None, suffix: str) -> None:
    pixels = np.random.RandomState(3).randint(0, 256, (32, 32, 3)).astype(np.uint8)
    content = image_bytes(pixels, kind, mode)
    tree[f"test/truck/zz.{suffix}"] = content
    found = load_cifar10(tmp_path, put(tmp_path / "source", tree), quiet)
    np.testing.assert_array_equal(found.test_images[-1], Image.open(io.BytesIO(content)).convert("RGB"))
    assert len(found.test_labels) == 11


NOISE = np.random.RandomState(4).randint(0, 256, (32, 32, 3)).astype(np.uint8)


@FORMS
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (image_bytes(np.zeros((32, 31, 3), np.uint8)), "has 31x32 pixels, expected 32x32"),
        (image_bytes(np.zeros((64, 64, 3), np.uint8)), "has 64x64 pixels, expected 32x32"),
        (image_bytes(np.zeros((32, 32), np.uint16)), "has more than 8 bits"),
        (image_bytes(NOISE)[:-1500], "is not a readable JPEG or PNG image"),
        (image_bytes(NOISE, "JPEG")[:-700], "is not a readable JPEG or PNG image"),
        (image_bytes(NOISE, "BMP"), "is not a readable JPEG or PNG image"),
        (b"", "is not a readable JPEG or PNG image"),
        (b"<html>", "is not a readable JPEG or PNG image"),
        (bytes((1 << 20) + 1), "is too large"),
    ],
)
def test_bad_image(tree: Tree, tmp_path: Path, form: str, content: bytes, words: str) -> None:
    tree["train/cat/bad.png"] = content
    source = pack_or_put(form, tmp_path / "source", tree)
    with pytest.raises(DataError) as error:
        load_cifar10(tmp_path, source, quiet)
    assert words in error.value.what
    assert "train/cat/bad.png" in error.value.what
    assert str(source) in error.value.what
    assert "\n" not in error.value.what


@FORMS
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tree: without(tree, "train/frog/"), "there are no images in train/frog."),
        (lambda tree: without(tree, "test/airplane/"), "there are no images in test/airplane."),
        (lambda tree: without(tree, "test/cat/") | {"test/cat/.gitkeep": b""}, "there are no images in test/cat."),
        (lambda tree: without(tree, "test/"), "there are no images in test/airplane, test/automobile"),
        (lambda tree: without(tree, "train/"), "there are no images in train/airplane, train/automobile"),
        (lambda tree: tree | {"train/fox/1.png": image_bytes(NOISE)}, "train/fox is no class of CIFAR-10"),
        (lambda tree: tree | {"test/Cat/1.png": image_bytes(NOISE)}, "test/Cat is no class of CIFAR-10"),
        (lambda tree: tree | {"train/cat/1.webp": b""}, "train/cat/1.webp is not a .jpg or .png file"),
        (lambda tree: {f"a/b/{name}": content for name, content in tree.items()}, "hold"),
        (lambda tree: {name.split("/", 1)[1]: content for name, content in tree.items()}, "hold"),
    ],
)
def test_other_trees_are_refused(
    tree: Tree, tmp_path: Path, form: str, change: Callable[[Tree], Tree], words: str
) -> None:
    source = pack_or_put(form, tmp_path / "source", change(tree))
    with pytest.raises(DataError) as error:
        load_cifar10(tmp_path, source, quiet)
    assert words in error.value.what
    assert str(source) in error.value.what
    assert "train/airplane/*.png" in error.value.fix


def without(tree: Tree, start: str) -> Tree:
    return {name: content for name, content in tree.items() if not name.startswith(start)}


@FORMS
def test_a_folder_in_a_class_folder_is_refused(tree: Tree, tmp_path: Path, form: str) -> None:
    tree["test/dog/more/1.png"] = image_bytes(NOISE)
    with pytest.raises(DataError, match="test/dog/more"):
        load_cifar10(tmp_path, pack_or_put(form, tmp_path / "source", tree), quiet)


def test_two_leading_folders_are_refused(tree: Tree, tmp_path: Path) -> None:
    twice = {f"{top}/{name}": content for name, content in tree.items() for top in "ab"}
    with pytest.raises(DataError, match="by themselves or in one folder"):
        load_cifar10(tmp_path, pack(tmp_path / "a.zip", twice), quiet)


@pytest.mark.parametrize("name", ["../train/cat/1.png", "/train/cat/1.png", "train/cat/../../../1.png", "C:/1.png", ""])
def test_hostile_zip(tree: Tree, tmp_path: Path, name: str) -> None:
    source = pack(tmp_path / "a.zip", {name or ".": b"", **tree})
    if not name:  # odd, but nothing that leads out
        assert len(load_cifar10(tmp_path, source, quiet).test_labels) == 10
        return
    with pytest.raises(DataError, match="leads out of it"):
        load_cifar10(tmp_path, source, shout)


def test_a_link_in_a_zip_is_refused(tree: Tree, tmp_path: Path) -> None:
    source = pack(tmp_path / "a.zip", tree)
    link = zipfile.ZipInfo("train/cat/link.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(source, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match=r"holds a link, 'train/cat/link\.png'"):
        load_cifar10(tmp_path, source, shout)
