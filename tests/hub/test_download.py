"""Transfers with the real gdown, from a web server on this machine."""

import gzip
import io
import random
import shutil
import socket
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from google_drive import GoogleDrive, drive_serving, too_many
from loopback import Heard, Request, Site, cut, dropped, endless, serving, silent, status, whole, without_length

from denetdm_cli.data.raw.sources import UnusableError
from denetdm_cli.hub import download
from denetdm_cli.hub.download import Transfer, address_key, shown_address
from denetdm_cli.hub.published import DRIVE_ID
from denetdm_cli.utils.errors import StorageError

PATH = "bffhq/debiased_model.th"
CHUNK = 512 * 1024
"""gdown writes so many bytes at once, so a broken transfer keeps a multiple of them."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PAUSES", (0.0, 0.0, 0.0))
    monkeypatch.setattr(download, "_TIMEOUTS", (1.0, 0.2))
    monkeypatch.setattr(random, "uniform", lambda low, high: 0.0)  # the pauses of gdown


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as made:
        made.content *= 5
        yield made


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "model"


def transfer(output: Path, heard: Heard, limit: int = 1 << 21) -> Transfer:
    return Transfer(output, limit=limit, what="fetching it", reporter=heard)


def get(site: Site, output: Path, limit: int = 1 << 21) -> Heard:
    heard = Heard()
    transfer(output, heard, limit).from_url(f"{site.address}/model.th")
    return heard


def refused(site: Site, output: Path, words: str, **options: Any) -> None:
    with pytest.raises(UnusableError, match=words):
        get(site, output, **options)
    assert not output.exists()


def kept(output: Path) -> int:
    part = transfer(output, Heard()).kept_part()
    return 0 if part is None else part.stat().st_size


def zipped(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", content)
    return buffer.getvalue()


# http


def test_a_file_is_fetched_with_progress(site: Site, output: Path, capfd: pytest.CaptureFixture[str]) -> None:
    heard = get(site, output)
    assert output.read_bytes() == site.content
    assert list(output.parent.iterdir()) == [output]
    assert heard.said == []
    assert [done for _, done, _ in heard.advanced] == [524, 1048, 1280]
    assert {(what, total) for what, _, total in heard.advanced} == {("fetching it, kB", 1280)}
    assert site.asked[0]["Accept-Encoding"] == "identity"
    assert "Range" not in site.asked[0]
    assert capfd.readouterr() == ("", "")


def test_an_unknown_size_is_no_obstacle(site: Site, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_SECONDS_BETWEEN_LINES", 0.0)
    site.answers = [without_length]
    heard = get(site, output)
    assert output.read_bytes() == site.content
    assert heard.advanced == []
    assert heard.said[-1] == "fetching it: 1,280 kB so far; the server does not say how many"


def test_compressed_content_is_decoded(site: Site, output: Path) -> None:
    packed = gzip.compress(site.content)
    site.answers = [status(200, packed, **{"Content-Encoding": "gzip", "ETag": '"1"'})]
    get(site, output)
    assert output.read_bytes() == site.content
    output.unlink()
    site.answers = [status(200, packed, **{"Content-Encoding": "gzip"})]
    refused(site, output, "more than 0.00 GB", limit=len(site.content) - 1)


@pytest.mark.parametrize("first", [cut(600_000), silent(600_000, 0.5)])
def test_a_broken_transfer_is_resumed(site: Site, output: Path, first: Callable[[Request], None]) -> None:
    site.answers = [first]
    get(site, output)
    assert output.read_bytes() == site.content
    assert site.asked[1]["Range"] == f"bytes={CHUNK}-"
    assert site.asked[1]["If-Range"] == '"1"'


def test_a_later_transfer_resumes_too(site: Site, output: Path) -> None:
    site.content = zipped(site.content)
    site.answers = [cut(600_000), *[dropped] * 3]
    refused(site, output, "Connection aborted|Remote end closed")
    assert len(site.asked) == 4
    assert kept(output) == CHUNK
    heard = get(site, output)
    assert output.read_bytes() == site.content
    assert heard.said == []
    assert site.asked[-1]["Range"] == f"bytes={CHUNK}-"
    assert kept(output) == 0


@pytest.mark.parametrize("archive", [True, False])
def test_bytes_of_two_files_are_not_joined(site: Site, output: Path, archive: bool) -> None:
    """gdown joins them; only the checksums in a zip tell, so that anything else is fetched from the start."""
    site.content = zipped(b"a" * 900_000) if archive else b"a" * 900_000
    site.answers = [cut(600_000), *[dropped] * 3]
    refused(site, output, "Connection aborted|Remote end closed")
    site.content, site.tag = site.content.replace(b"a" * 1000, b"b" * 1000), '"2"'
    if archive:
        site.content = zipped(b"b" * 900_000)
    heard = get(site, output)
    assert output.read_bytes() == site.content
    assert heard.said == ["the kept bytes and the new ones are not of one file; retrying in 0 s"]


def test_a_file_that_changes_during_a_transfer_starts_over(site: Site, output: Path) -> None:
    def change(request: Request) -> None:
        site.content, site.tag = b"other" * 300_000, '"2"'
        whole(request)

    site.answers = [cut(600_000), change]
    heard = get(site, output)
    assert output.read_bytes() == b"other" * 300_000
    assert heard.said == ["the server did not continue the broken transfer; retrying in 0 s"]


def test_a_server_without_ranges_starts_over(site: Site, output: Path) -> None:
    site.answers = [cut(600_000), status(200, site.content)]
    get(site, output)
    assert output.read_bytes() == site.content
    assert "Range" not in site.asked[-1]


def test_a_part_that_is_whole_or_longer_starts_over(site: Site, output: Path) -> None:
    for more in (b"", b"more"):
        output.with_name("model12345678.part").write_bytes(site.content + more)
        get(site, output)
        assert output.read_bytes() == site.content
        output.unlink()
    assert list(output.parent.iterdir()) == []


def test_a_truncated_file_is_not_accepted(site: Site, output: Path) -> None:
    site.answers = [cut(600_000)] * 8
    refused(site, output, "did not continue")


def test_a_server_error_is_retried(site: Site, output: Path) -> None:
    site.answers = [status(500), status(503), status(429)]
    heard = get(site, output)
    assert output.read_bytes() == site.content
    assert heard.said[0] == "the server answers 500 Internal Server Error; retrying in 0 s"
    output.unlink()
    site.answers = [status(503)] * 4
    refused(site, output, "the server answers 503")


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_other_answers_are_final(site: Site, output: Path, code: int) -> None:
    site.answers = [status(code)]
    refused(site, output, f"the server answers {code}")
    assert len(site.asked) == 1
    assert list(output.parent.iterdir()) == []


def test_redirects_lead_to_web_addresses_only(site: Site, output: Path) -> None:
    site.answers = [status(302, Location="/elsewhere")]
    get(site, output)
    assert site.asked[1]["path"] == "/elsewhere"
    output.unlink()
    for target in ("file:///etc/hostname", "ftp://127.0.0.1/x"):
        site.answers = [status(302, Location=target)]
        refused(site, output, f"No connection adapters were found for '{target}'")
    site.answers = [status(302, Location="/again") for _ in range(40)]
    refused(site, output, "30 redirects")


def test_the_limit_holds_whatever_the_server_says(site: Site, output: Path) -> None:
    refused(site, output, "more than 0.00 GB", limit=1_279_999)
    site.answers = [endless]
    refused(site, output, "more than 0.01 GB", limit=5_000_000)
    assert list(output.parent.iterdir()) == [], "a part of it is of no use"


def test_a_full_disk_is_noticed_early(site: Site, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(StorageError, match=r"takes 0.00 GB"):
        get(site, output)


def test_an_error_of_the_disk_passes(site: Site, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> NoReturn:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Transfer, "_progress", full)
    with pytest.raises(OSError, match="No space") as error:
        get(site, output)
    assert error.value.filename == str(output)


def test_an_address_where_nobody_listens(output: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/model.th?key=secret"
        with pytest.raises(UnusableError, match=r"^Failed to establish a new connection: .*refused") as error:
            transfer(output, Heard()).from_url(address)
    assert "secret" not in str(error.value)


def test_the_pauses_grow(site: Site, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    site.answers = [status(503)] * 4
    refused(site, output, "503")
    assert slept == [1.0, 2.0, 4.0]


def test_an_address_keeps_its_secrets() -> None:
    address = "https://me:word@example.org:81/a/b.th?token=1#x"
    assert shown_address(address) == "https://example.org:81/a/b.th"
    assert len(address_key(address)) == 8
    assert address_key(address) != address_key(f"{address}2")


# Google Drive


@pytest.fixture
def drive() -> Iterator[GoogleDrive]:
    with drive_serving({PATH: b"model" * 1000, "read me.txt": b""}) as made:
        yield made


def take(output: Path, choose: Callable[[Sequence[str]], str] = lambda paths: paths[0], limit: int = 1 << 21) -> Heard:
    heard = Heard()
    assert transfer(output, heard, limit).from_drive(DRIVE_ID, choose) == PATH
    return heard


def test_a_file_of_a_folder(drive: GoogleDrive, output: Path, capfd: pytest.CaptureFixture[str]) -> None:
    heard = take(output)
    assert output.read_bytes() == b"model" * 1000
    assert heard.advanced == [("fetching it, kB", 5, 5)]
    assert capfd.readouterr() == ("", "")


def test_a_folder_without_the_file(drive: GoogleDrive, output: Path) -> None:
    def choose(paths: Sequence[str]) -> NoReturn:
        raise UnusableError(f"not among {', '.join(paths)}")

    with pytest.raises(UnusableError, match=r"^not among bffhq/debiased_model.th, read me.txt$"):
        take(output, choose)
    assert drive.asked("uc") == 0


@pytest.mark.parametrize("first", [status(404), status(429), dropped])
def test_a_folder_listing_is_retried(drive: GoogleDrive, output: Path, first: Callable[[Request], None]) -> None:
    drive.site.answers = [first]
    assert len(take(output).said) == 1
    drive.site.answers = [first] * 4
    with pytest.raises(UnusableError, match=r"status code|Connection aborted"):
        take(output)


def test_a_transfer_from_the_drive_is_resumed(drive: GoogleDrive, output: Path) -> None:
    content = drive.files[PATH] = zipped(b"model" * 200_000)
    drive.site.content = content
    drive.site.answers = [drive.site.usual] * 3 + [cut(600_000, **drive.headers), *[dropped] * 3]
    with pytest.raises(UnusableError, match=r"Connection aborted|Remote end closed"):
        take(output)
    assert kept(output) == CHUNK
    drive.site.answers = [drive.site.usual] * 4 + [whole]
    assert take(output).said == []
    assert output.read_bytes() == content
    assert drive.site.asked[-1]["Range"] == f"bytes={CHUNK}-"


def test_a_used_up_quota_is_final(drive: GoogleDrive, output: Path) -> None:
    drive.asking = too_many
    with pytest.raises(UnusableError, match=r"^Failed to retrieve file url: Too many users have viewed .* later$"):
        take(output)
    assert drive.asked("uc") == 1


def test_a_page_that_gdown_cannot_read_is_an_error_of_its_own(drive: GoogleDrive, output: Path) -> None:
    drive.site.answers = [drive.site.usual] * 2 + [status(200)]
    with pytest.raises(UnusableError, match=r"^gdown failed with KeyError: content-type$"):
        take(output)


def test_a_file_too_large_for_a_model(drive: GoogleDrive, output: Path) -> None:
    with pytest.raises(UnusableError, match="too much for a model"):
        take(output, limit=4999)
