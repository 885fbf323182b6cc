"""Where CIFAR-10 is looked for, and what is kept of a download."""

import http.server
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from cifar10_files import Tree, assert_same, batches_of, canonical, make_tar, put, quiet, shout

from denetdm_cli.data.raw import cifar10 as cifar
from denetdm_cli.data.raw.cifar10 import Cifar10, lazy_cifar10, load_cifar10
from denetdm_cli.utils.errors import DownloadError


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


@pytest.mark.slow  # it starts a process that imports torchvision
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
