import hashlib
import http.server
import io
import os
import pickle
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests_support import like_python2

from denetdm_cli.data.raw import cifar10 as cifar
from denetdm_cli.data.raw.cifar10 import BATCHES, CLASS_NAMES, Cifar10, lazy_cifar10, load_cifar10
from denetdm_cli.utils.errors import DataError, DownloadError

NAMES = [name for name, _ in BATCHES]
IMAGES = 20
"""In each of the batches that the tests make."""

Tree = dict[str, bytes]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        pytest.fail("no process may be started here")

    monkeypatch.setattr(subprocess, "run", refuse)


def shout(line: str) -> None:
    pytest.fail(f"nothing should be said, but: {line}")


def quiet(line: str) -> None:
    pass


def assert_same(found: Cifar10, expected: Cifar10) -> None:
    assert found.origin == expected.origin
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        ours = getattr(found, name)
        assert ours.dtype == np.uint8
        np.testing.assert_array_equal(ours, getattr(expected, name), err_msg=name)
    assert found.digests() == expected.digests()


# Batches


def batch_of(data: object, labels: object) -> bytes:
    """A pickle as the published ones are: written by Python 2, with a name of numpy's that is no more."""
    content = pickle.dumps({b"data": data, b"labels": labels, b"filenames": [b"a.png"]}, protocol=3)
    return like_python2(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))


def make_cifar() -> Cifar10:
    random = np.random.RandomState(0)
    images = random.randint(0, 256, (6 * IMAGES, 32, 32, 3)).astype(np.uint8)
    labels = random.randint(0, 10, 6 * IMAGES).astype(np.uint8)
    train = 5 * IMAGES
    return Cifar10(images[:train], labels[:train], images[train:], labels[train:], "batches")


def batches_of(data: Cifar10) -> Tree:
    images = np.concatenate([data.train_images, data.test_images]).transpose(0, 3, 1, 2).reshape(-1, 3072)
    labels = np.concatenate([data.train_labels, data.test_labels]).tolist()
    parts = [slice(start, start + IMAGES) for start in range(0, len(labels), IMAGES)]
    return {name: batch_of(images[part].copy(), labels[part]) for name, part in zip(NAMES, parts, strict=True)}


def make_tar(path: Path, contents: Tree, *more: tuple[tarfile.TarInfo, bytes], folder: str = "cifar-10-batches-py/"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        entries = [(tarfile.TarInfo(f"{folder}{name}"), content) for name, content in contents.items()]
        for info, content in (*more, *entries):
            if info.isfile():
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def put(folder: Path, contents: Tree) -> Path:
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def canonical(monkeypatch: pytest.MonkeyPatch, contents: Tree, archive: Path | None = None) -> None:
    """Make these batches, and this archive of them, the canonical ones."""
    digests = tuple((name, hashlib.md5(contents[name]).hexdigest()) for name in NAMES)
    monkeypatch.setattr(cifar, "BATCHES", digests)
    if archive is not None:
        monkeypatch.setattr(cifar, "ARCHIVE_MD5", hashlib.md5(archive.read_bytes()).hexdigest())


@pytest.fixture
def small() -> Cifar10:
    return make_cifar()


@pytest.fixture
def contents(small: Cifar10, monkeypatch: pytest.MonkeyPatch) -> Tree:
    """Batches of the small CIFAR-10, which become the canonical ones."""
    contents = batches_of(small)
    canonical(monkeypatch, contents)
    return contents


def test_the_canonical_md5s_are_those_of_torchvision() -> None:
    from torchvision.datasets import CIFAR10

    assert [list(batch) for batch in cifar.BATCHES] == [*CIFAR10.train_list, *CIFAR10.test_list]
    assert CIFAR10.tgz_md5 == cifar.ARCHIVE_MD5
    assert CIFAR10.filename == cifar._ARCHIVE
    assert CIFAR10.base_folder == cifar._FOLDER


@pytest.mark.parametrize("inside", ["", "cifar-10-batches-py"])
def test_folder_of_batches(small: Cifar10, contents: Tree, tmp_path: Path, inside: str) -> None:
    put(tmp_path / "source" / inside, {**contents, "batches.meta": b"never read"})
    found = load_cifar10(tmp_path / "root", tmp_path / "source", shout)
    assert_same(found, small)
    assert found.train_images.flags.c_contiguous
    assert not (tmp_path / "root").exists(), "a local copy is not copied again"


def test_earlier_copy_in_the_root_needs_no_network(small: Cifar10, contents: Tree, tmp_path: Path) -> None:
    put(tmp_path / "cifar-10-batches-py", contents)
    assert_same(load_cifar10(tmp_path, None, shout), small)


@pytest.mark.parametrize("name", NAMES)
def test_missing_batch(contents: Tree, tmp_path: Path, name: str) -> None:
    put(tmp_path / "source", contents)
    (tmp_path / "source" / name).unlink()
    put(tmp_path / "cifar-10-batches-py", contents)
    with pytest.raises(DataError) as error:
        load_cifar10(tmp_path, tmp_path / "source", shout)
    assert f"has no {name}." in error.value.what
    assert str(tmp_path / "source") in error.value.what
    for words in ("--source", "cifar-10-python.tar.gz", cifar.ARCHIVE_MD5, "class folders"):
        assert words in error.value.fix


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_with_another_md5_is_not_unpickled(
    contents: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def refuse(content: bytes) -> object:
        assert content in good
        return load(content)

    load, good = cifar.load_arrays, list(contents.values())
    monkeypatch.setattr(cifar, "load_arrays", refuse)
    changed = bytearray(contents[name])
    changed[len(changed) // 2] ^= 1
    put(tmp_path, {**contents, name: bytes(changed)})
    with pytest.raises(DataError) as error:
        load_cifar10(tmp_path, tmp_path, shout)
    found, expected = hashlib.md5(changed).hexdigest(), hashlib.md5(contents[name]).hexdigest()
    assert f"{name} is cut off, damaged or another file: MD5 {found}, expected {expected}" in error.value.what


def test_batches_of_the_right_md5_run_no_code_either(
    contents: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap = tmp_path / "executed"

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {trap}",)

    bomb = pickle.dumps(Bomb())
    pickle.loads(bomb)
    assert trap.exists(), "the trap must work, or the test shows nothing"
    trap.unlink()
    contents["data_batch_3"] = bomb
    canonical(monkeypatch, put(tmp_path, contents) and contents)
    with pytest.raises(DataError, match=r"data_batch_3 is not the pickle expected .*system is not admitted"):
        load_cifar10(tmp_path, tmp_path, shout)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not the pickle expected"),
        (pickle.dumps([1]), "is not the pickle expected"),
        (pickle.dumps({"data": 1}), "is not the pickle expected"),
        (pickle.dumps({"data": [1], "labels": [1]}), "does not hold one row of 3072 bytes for each label"),
        (batch_of(np.zeros((2, 3072), np.uint8), [1]), "does not hold one row"),
        (batch_of(np.zeros((1, 3071), np.uint8), [1]), "does not hold one row"),
        (batch_of(np.zeros((1, 3072), np.int16), [1]), "does not hold one row"),
        (batch_of(np.zeros((1, 3072), np.uint8), [10]), "has labels other than 0 to 9"),
        (batch_of(np.zeros((1, 3072), np.uint8), [-1]), "has labels other than 0 to 9"),
        (batch_of(np.zeros((1, 3072), np.uint8), [0.5]), "has labels other than 0 to 9"),
        (batch_of(np.zeros((1, 3072), np.uint8), [[1]]), "has labels other than 0 to 9"),
        (batch_of(np.zeros((1, 3072), np.uint8), 3), "has labels other than 0 to 9"),
    ],
)
def test_malformed_batch(
    contents: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, words: str
) -> None:
    contents["test_batch"] = content
    put(tmp_path, contents)
    canonical(monkeypatch, contents)
    with pytest.raises(DataError, match=f"test_batch {words}"):
        load_cifar10(tmp_path, tmp_path, shout)


def test_a_huge_batch_is_not_read_whole(contents: Tree, tmp_path: Path) -> None:
    put(tmp_path, contents)
    with (tmp_path / "data_batch_2").open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(DataError, match=r"data_batch_2 is too large"):
        load_cifar10(tmp_path, tmp_path, shout)


# The archive


@pytest.mark.parametrize("way", ["file", "folder around it", "data root"])
@pytest.mark.parametrize("folder", ["cifar-10-batches-py/", "./cifar-10-batches-py/"])
def test_archive(
    small: Cifar10, contents: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, folder: str
) -> None:
    more = tarfile.TarInfo("cifar-10-batches-py/readme.html")
    archive = make_tar(tmp_path / "cifar-10-python.tar.gz", contents, (more, b"x"), folder=folder)
    canonical(monkeypatch, contents, archive)
    source = {"file": archive, "folder around it": tmp_path, "data root": None}[way]
    assert_same(load_cifar10(tmp_path, source, shout), small)
    assert list(tmp_path.iterdir()) == [archive], "nothing is unpacked onto the disk"


def test_archive_with_another_md5_is_not_opened(
    contents: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = make_tar(tmp_path / "any.tgz", contents)
    monkeypatch.setattr(tarfile, "open", lambda *_: pytest.fail("opened"))
    with pytest.raises(DataError, match=f"expected {cifar.ARCHIVE_MD5}") as error:
        load_cifar10(tmp_path, archive, shout)
    assert hashlib.md5(archive.read_bytes()).hexdigest() in error.value.what


def entry(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, size
    return info


@pytest.mark.parametrize(
    ("info", "words"),
    [
        (entry("../outside"), "leads out of it"),
        (entry("cifar-10-batches-py/../../outside"), "leads out of it"),
        (entry("/etc/outside"), "leads out of it"),
        (entry("cifar-10-batches-py/test_batch", tarfile.SYMTYPE, "/etc/passwd"), "holds a link"),
        (entry("cifar-10-batches-py/test_batch", tarfile.LNKTYPE, "cifar-10-batches-py/x"), "holds a link"),
    ],
)
def test_hostile_archive(
    contents: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, info: tarfile.TarInfo, words: str
) -> None:
    archive = make_tar(tmp_path / "a.tar.gz", contents, (info, b""))
    canonical(monkeypatch, contents, archive)
    with pytest.raises(DataError, match=words) as error:
        load_cifar10(tmp_path, archive, shout)
    assert repr(info.name) in error.value.what


def test_archive_sizes_are_capped(contents: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar, "_BATCH_LIMIT", max(map(len, contents.values())))
    archive = make_tar(tmp_path / "a.tar.gz", contents)
    canonical(monkeypatch, contents, archive)
    load_cifar10(tmp_path, archive, shout)
    monkeypatch.setattr(cifar, "_BATCH_LIMIT", max(map(len, contents.values())) - 1)
    with pytest.raises(DataError, match=r"data_batch_\d is too large"):
        load_cifar10(tmp_path, archive, shout)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path, contents: make_tar(path, dict(list(contents.items())[1:])), "has no data_batch_1 in"),
        (lambda path, contents: make_tar(path, contents, folder="elsewhere/"), "has no data_batch_1, data_batch_2"),
        (lambda path, contents: make_tar(path, contents, folder="x/cifar-10-batches-py/"), "has no data_batch_1"),
        (lambda path, contents: make_tar(path, {**contents, "test_batch": b"x"}), "test_batch is cut off, damaged"),
        (lambda path, contents: path.write_bytes(b"\x1f\x8b\x08 not gzip"), "cannot be read"),
        (lambda path, contents: path.write_bytes(make_tar(path, contents).read_bytes()[:-5000]), "cannot be read"),
    ],
)
def test_damaged_archive(
    contents: Tree,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path, Tree], object],
    words: str,
) -> None:
    archive = tmp_path / "a.tar.gz"
    make(archive, contents)
    canonical(monkeypatch, contents, archive)
    with pytest.raises(DataError, match=words):
        load_cifar10(tmp_path, archive, shout)


# Fetching


class Network:
    """Stands in for the child: it fails, or leaves the archive it was given."""

    def __init__(self) -> None:
        self.archive: bytes | None = None
        self.folders: list[Path] = []

    def run(self, command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        assert command[:2] == [sys.executable, "-c"]
        assert options["timeout"] == 300.0
        compile(command[2], "downloader", "exec")
        self.folders.append(Path(command[3]))
        if self.archive is None:
            return subprocess.CompletedProcess(command, 1, "", "170 MB\nURLError: mirror is dead\n")
        (Path(command[3]) / "cifar-10-python.tar.gz").write_bytes(self.archive)
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch, no_network: None) -> Network:
    network = Network()
    monkeypatch.setattr(subprocess, "run", network.run)
    return network


@pytest.fixture
def published(contents: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    archive = make_tar(tmp_path / "published", contents)
    canonical(monkeypatch, contents, archive)
    return archive


def test_download_is_kept(small: Cifar10, published: Path, tmp_path: Path, network: Network) -> None:
    network.archive = published.read_bytes()
    said: list[str] = []
    root = tmp_path / "root"
    assert_same(load_cifar10(root, None, said.append), small)
    assert said == ["CIFAR-10: trying torchvision's downloader (170 MB), at most 300 s"]
    assert [path.name for path in root.iterdir()] == ["cifar-10-python.tar.gz"]
    assert (root / "cifar-10-python.tar.gz").read_bytes() == network.archive
    assert_same(load_cifar10(root, None, shout), small)
    assert len(network.folders) == 1, "the second time it is read from the disk"
    assert not network.folders[0].exists()


def test_when_all_fail_every_place_is_listed(contents: Tree, published: Path, tmp_path: Path, network: Network) -> None:
    root = tmp_path / "root"
    put(root / "cifar-10-batches-py", {**contents, "data_batch_4": b"x"})
    put(root, {"cifar-10-python.tar.gz": published.read_bytes()[:-1]})
    with pytest.raises(DownloadError) as error:
        load_cifar10(root, None, quiet)
    for words in ("data_batch_4 is cut off", "cifar-10-python.tar.gz is cut off", "mirror is dead"):
        assert words in error.value.what
    for words in ("cifar-10-python.tar.gz", cifar.ARCHIVE_MD5, str(root), "--source", "class folders"):
        assert words in error.value.fix
    assert "\n" not in error.value.what


def test_damaged_copies_are_passed_over(
    small: Cifar10, contents: Tree, published: Path, tmp_path: Path, network: Network
) -> None:
    root = put(tmp_path / "root", {"cifar-10-python.tar.gz": published.read_bytes()[:-1]})
    network.archive = published.read_bytes()
    assert_same(load_cifar10(root, None, quiet), small)
    assert len(network.folders) == 1
    put(root / "cifar-10-batches-py", {"test_batch": b"half-unpacked"})
    assert_same(load_cifar10(root, None, shout), small)


@pytest.mark.parametrize("archive", [b"<html>", b""])
def test_wrong_bytes_from_the_mirror_are_not_kept(
    published: Path, tmp_path: Path, network: Network, archive: bytes
) -> None:
    network.archive = archive
    with pytest.raises(DownloadError, match="is cut off, damaged or another file"):
        load_cifar10(tmp_path / "root", None, quiet)
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("there", [True, False])
def test_the_real_downloader_on_a_server_of_our_own(
    small: Cifar10, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = published.read_bytes() if there else b""
            self.send_response(200 if there else 404)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    md5 = cifar.ARCHIVE_MD5
    monkeypatch.undo()
    monkeypatch.setenv("no_proxy", "*")
    canonical(monkeypatch, batches_of(small), published)
    with http.server.HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        first = "from torchvision.datasets import CIFAR10"
        there_instead = f"CIFAR10.url, CIFAR10.tgz_md5 = 'http://127.0.0.1:{server.server_port}/x.tar.gz', {md5!r}"
        monkeypatch.setattr(cifar, "_DOWNLOAD_CODE", f"{first}\n{there_instead}\n{cifar._DOWNLOAD_CODE}")
        try:
            if there:
                assert_same(load_cifar10(tmp_path / "root", None, quiet), small)
                assert (tmp_path / "root" / "cifar-10-python.tar.gz").read_bytes() == published.read_bytes()
            else:
                with pytest.raises(DownloadError, match=r"downloader \(170 MB\): HTTPError: HTTP Error 404"):
                    load_cifar10(tmp_path / "root", None, quiet)
        finally:
            server.shutdown()


def test_lazy_reads_once_and_only_when_asked(small: Cifar10, contents: Tree, tmp_path: Path) -> None:
    load = lazy_cifar10(tmp_path, tmp_path / "source", shout)
    put(tmp_path / "source", contents)
    first = load()
    (tmp_path / "source" / "test_batch").unlink()
    assert load() is first


# Class folders


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


# Sources that are none


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        (b"", "starts with nothing"),
        (b"\x89PNG", "neither a .tar.gz nor a .zip"),
        (b"PK\x03\x04 cut off", "cannot be read"),
        (b"PK\x05\x06" + bytes(18), "does not hold train/ and test/"),
    ],
)
def test_a_source_that_is_none(tmp_path: Path, content: bytes | None, words: str) -> None:
    source = tmp_path / "source"
    if content is not None:
        source.write_bytes(content)
    with pytest.raises(DataError) as error:
        load_cifar10(tmp_path, source, shout)
    assert words in error.value.what
    assert str(source) in error.value.what
    assert "--source" in error.value.fix


def test_an_empty_folder_is_no_source(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither batches nor train/ and test/"):
        load_cifar10(tmp_path, tmp_path, shout)


# The real images


def real(name: str) -> Path:
    data = Path(os.environ.get("DENETDM_TEST_DATA") or Path(__file__).resolve().parents[4] / "shared" / "data")
    if not (data / name).is_file():
        pytest.skip(f"no {name} in {data} (set DENETDM_TEST_DATA to the folder that holds it)")
    return data / name


def test_real_small_copy(tmp_path: Path) -> None:
    found = load_cifar10(tmp_path, real("cifar10-small.zip"), quiet)
    assert found.train_images.shape == (2400, 32, 32, 3)
    assert found.test_images.shape == (600, 32, 32, 3)
    assert np.bincount(found.train_labels).tolist() == [240] * 10
    # The first 50 of each test class have the mean and spread that were measured for all the corruptions.
    first = found.test_images.reshape(10, 60, 32, 32, 3)[:, :50].reshape(-1, 3)
    np.testing.assert_allclose(first.mean(0), [127.4, 124.8, 115.6], atol=0.051)
    np.testing.assert_allclose(first.std(0), [63.4, 62.8, 66.8], atol=0.051)


def test_real_copy_of_everything(tmp_path: Path) -> None:
    found = load_cifar10(tmp_path, real("cifar10-jpeg.zip"), quiet)
    assert found.train_images.shape == (50000, 32, 32, 3)
    assert found.test_images.shape == (10000, 32, 32, 3)
    assert np.bincount(found.train_labels).tolist() == [5000] * 10
    assert np.bincount(found.test_labels).tolist() == [1000] * 10
    # Close to the well-known mean and standard deviation of the training images.
    some = found.train_images[::20].astype(np.float32) / 255
    np.testing.assert_allclose(some.mean((0, 1, 2)), [0.4914, 0.4822, 0.4465], atol=0.01)
    np.testing.assert_allclose(some.std((0, 1, 2)), [0.2470, 0.2435, 0.2616], atol=0.01)
