import gzip
import importlib.util
import inspect
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import requests
from loopback import Drive, Heard, Request, Site, cut, dropped, endless, serving, silent, status, whole, without_length

from denetdm_cli.data.raw.sources import UnusableError
from denetdm_cli.hub import download as transfer
from denetdm_cli.hub.download import download, download_from_drive, forget, kept_bytes, shown_address
from denetdm_cli.utils.errors import StorageError


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PAUSES", (0.0, 0.0, 0.0))
    monkeypatch.setattr(transfer, "_SILENCE_SECONDS", 0.2)


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as made:
        yield made


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "model.th.part"


def get(site: Site, part: Path, limit: int = 1 << 20, path: str = "/model.th") -> Heard:
    heard = Heard()
    download(site.address + path, part, limit=limit, what="fetching it", reporter=heard)
    return heard


def refused(site: Site, part: Path, words: str, **options: Any) -> None:
    with pytest.raises(UnusableError, match=words):
        get(site, part, **options)


# http


def test_a_file_is_fetched_with_progress(site: Site, part: Path) -> None:
    heard = get(site, part)
    assert part.read_bytes() == site.content
    assert list(part.parent.iterdir()) == [part]
    assert heard.said == []
    assert heard.advanced[0] == ("fetching it, kB", 0, 256)
    assert heard.advanced[-1] == ("fetching it, kB", 256, 256)
    assert [done for _, done, _ in heard.advanced] == sorted(done for _, done, _ in heard.advanced)
    assert site.asked[0]["Accept-Encoding"] == "identity"
    assert "Range" not in site.asked[0]


def test_a_size_that_is_not_told_is_no_obstacle(site: Site, part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_SECONDS_BETWEEN_LINES", 0.0)
    site.answers = [without_length]
    heard = get(site, part)
    assert part.read_bytes() == site.content
    assert heard.advanced == []
    assert heard.said[-1] == "fetching it: 256 kB so far, of how many the server does not say"


def test_an_empty_file_is_a_file(site: Site, part: Path) -> None:
    site.content = b""
    get(site, part)
    assert part.read_bytes() == b""


def test_what_is_packed_for_the_journey_is_unpacked(site: Site, part: Path) -> None:
    packed = gzip.compress(site.content)
    site.answers = [status(200, packed, **{"Content-Encoding": "gzip", "ETag": '"1"'})]
    get(site, part)
    assert part.read_bytes() == site.content
    site.answers = [status(200, packed, **{"Content-Encoding": "gzip"})]
    refused(site, part, "more than 0.00 GB", limit=len(site.content) - 1)


@pytest.mark.parametrize("first", [cut(100_000), silent(100_000, 0.5)])
def test_a_broken_transfer_goes_on_where_it_broke_off(site: Site, part: Path, first: Callable[[Request], None]) -> None:
    site.answers = [first]
    heard = get(site, part)
    assert part.read_bytes() == site.content
    begun = int(site.asked[1]["Range"].removeprefix("bytes=").removesuffix("-"))
    assert 0 < begun <= 100_000
    assert site.asked[1]["If-Range"] == '"1"'
    assert len(heard.said) == 1
    assert heard.said[0].endswith("; trying again in 0 s")


def test_a_later_call_goes_on_too(site: Site, part: Path) -> None:
    site.answers = [cut(100_000), *[dropped] * 3]
    refused(site, part, "Connection aborted|Remote end closed")
    kept = kept_bytes(part)
    assert 0 < kept <= 100_000
    get(site, part)
    assert part.read_bytes() == site.content
    assert site.asked[-1]["Range"] == f"bytes={kept}-"
    assert kept_bytes(part) == 0, "it is whole"


def test_of_two_addresses_the_parts_are_not_joined(site: Site, part: Path) -> None:
    site.answers = [cut(100_000), *[status(500)] * 3]
    refused(site, part, "the server answers 500 Internal Server Error")
    get(site, part, path="/other.th")
    assert part.read_bytes() == site.content
    assert "Range" not in site.asked[-1]


def test_a_file_that_changed_in_between_is_fetched_anew(site: Site, part: Path) -> None:
    def change(request: Request) -> None:
        site.content, site.tag = b"other" * 30_000, '"2"'
        whole(request)

    site.answers = [cut(100_000), change]
    get(site, part)
    assert part.read_bytes() == b"other" * 30_000


@pytest.mark.parametrize(
    "headers",
    [
        {"ETag": '"2"', "Content-Range": "bytes 100000-255999/256000"},  # does not know If-Range
        {"ETag": '"1"', "Content-Range": "bytes 100000-299999/300000"},
        {"ETag": '"1"', "Content-Range": "bytes 0-255999/256000"},
        {"ETag": '"1"'},
    ],
)
def test_a_part_of_something_else_is_not_joined(site: Site, part: Path, headers: dict[str, object]) -> None:
    part.write_bytes(site.content[:100_000])
    transfer._notes(part).write_text(
        transfer._Kept(
            url=transfer._fingerprint(f"{site.address}/model.th"), header="ETag", value='"1"', total=256_000
        ).model_dump_json()
    )
    site.answers = [status(206, b"wrong", **headers)]
    heard = get(site, part)
    assert part.read_bytes() == site.content
    assert heard.said[0].startswith("the file has changed")
    assert [request.get("Range") for request in site.asked] == ["bytes=100000-", None]


@pytest.mark.parametrize("tag", ["", 'W/"1"'])
def test_without_range_or_a_tag_it_begins_anew(site: Site, part: Path, tag: str) -> None:
    site.tag = tag
    site.answers = [cut(100_000)]
    get(site, part)
    assert part.read_bytes() == site.content
    assert "Range" not in site.asked[1]
    site.tag = '"1"'
    site.answers = [cut(100_000), status(200, site.content)]
    get(site, part)
    assert part.read_bytes() == site.content
    assert "Range" in site.asked[-1]


def test_a_date_will_do(site: Site, part: Path) -> None:
    date = "Tue, 01 Oct 2024 10:00:00 GMT"
    site.tag = date
    site.answers = [cut(100_000, **{"ETag": 'W/"1"', "Last-Modified": date})]
    get(site, part)
    assert part.read_bytes() == site.content
    assert site.asked[1]["If-Range"] == date


def test_a_whole_part_needs_no_more_bytes(site: Site, part: Path) -> None:
    site.answers = [cut(len(site.content) - 1), *[status(503)] * 3]
    refused(site, part, "503")
    part.write_bytes(site.content)
    assert transfer._notes(part).exists()
    get(site, part)
    assert part.read_bytes() == site.content
    part.write_bytes(site.content + b"more")
    site.answers = []
    get(site, part)
    assert part.read_bytes() == site.content


def test_a_transfer_that_always_breaks_off_is_given_up(site: Site, part: Path) -> None:
    site.answers = [cut(100_000)] + [dropped] * 3
    refused(site, part, "Connection aborted")
    assert len(site.asked) == 4
    assert kept_bytes(part) > 0
    forget(part)
    assert list(part.parent.iterdir()) == []


def test_bytes_that_never_come_are_not_taken_for_a_file(site: Site, part: Path) -> None:
    site.tag = ""
    site.answers = [cut(100_000)] * 4
    refused(site, part, "IncompleteRead|broke off")
    assert kept_bytes(part) == 0


def test_a_server_error_passes(site: Site, part: Path) -> None:
    site.answers = [status(500), status(503), status(429)]
    heard = get(site, part)
    assert part.read_bytes() == site.content
    assert heard.said[0] == "the server answers 500 Internal Server Error; trying again in 0 s"


@pytest.mark.parametrize("code", [401, 403, 404, 410, 204, 206, 304])
def test_other_answers_are_final(site: Site, part: Path, code: int) -> None:
    site.answers = [status(code)]
    refused(site, part, f"the server answers {code}")
    assert len(site.asked) == 1
    assert not part.exists()


def test_redirects_lead_to_web_addresses_only(site: Site, part: Path) -> None:
    site.answers = [status(302, Location="/elsewhere")]
    get(site, part)
    assert site.asked[1]["path"] == "/elsewhere"
    for target in ("file:///etc/hostname", "ftp://127.0.0.1/x"):
        site.answers = [status(302, Location=target)]
        refused(site, part, f"No connection adapters were found for '{target}'")
    site.answers = [status(302, Location="/again") for _ in range(40)]
    refused(site, part, "30 redirects")


def test_the_limit_holds_whether_the_size_is_told_or_not(site: Site, part: Path) -> None:
    refused(site, part, "more than 0.00 GB", limit=255_999)
    assert not part.exists(), "no byte of it was fetched"
    site.answers = [endless]
    refused(site, part, "more than 0.01 GB", limit=5_000_000)
    assert part.stat().st_size <= 5_000_000


def test_a_full_disk_is_known_before(site: Site, part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(StorageError, match=r"takes 0.00 GB"):
        get(site, part)


def test_an_address_where_nobody_listens(part: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/model.th?key=secret"
    heard = Heard()
    with pytest.raises(UnusableError, match=r"^Failed to establish a new connection: .*refused") as error:
        download(address, part, limit=10, what="it", reporter=heard)
    assert len(heard.said) == 3
    assert not any("secret" in line for line in [str(error.value), *heard.said])


def test_the_pauses_grow(site: Site, part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    site.answers = [status(503)] * 4
    refused(site, part, "503")
    assert slept == [1.0, 2.0, 4.0]


def test_what_may_be_secret_in_an_address_is_not_shown() -> None:
    assert shown_address("https://me:word@example.org:81/a/b.th?token=1#x") == "https://example.org:81/a/b.th"


# Google Drive


@pytest.fixture
def drive(monkeypatch: pytest.MonkeyPatch) -> Drive:
    made = Drive()
    monkeypatch.setitem(sys.modules, "gdown", made)  # type: ignore[arg-type]
    return made


def take(tmp_path: Path, choose: Callable[[Sequence[str]], str] = lambda paths: paths[0], limit: int = 10_000) -> Heard:
    heard = Heard()
    path = download_from_drive("folder", choose, tmp_path / "file", limit=limit, what="fetching it", reporter=heard)
    assert path == "bffhq/debiased_model.th"
    return heard


def test_a_file_of_a_folder(drive: Drive, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heard = take(tmp_path)
    assert (tmp_path / "file").read_bytes() == b"model" * 1000
    assert heard.advanced == [("fetching it, kB", 2, 5), ("fetching it, kB", 5, 5)]
    assert capsys.readouterr().out == ""
    listed, fetched = drive.calls
    assert listed["id"] == "folder"
    assert listed["skip_download"] is True
    assert fetched["id"] == "id of bffhq/debiased_model.th"
    assert all(call["quiet"] and not call["use_cookies"] and call["timeout"] for call in drive.calls)


def test_the_paths_of_windows(drive: Drive, tmp_path: Path) -> None:
    drive.files = {"bffhq\\debiased_model.th": b""}
    take(tmp_path)


def test_a_folder_without_the_file(drive: Drive, tmp_path: Path) -> None:
    def choose(paths: Sequence[str]) -> NoReturn:
        raise UnusableError(f"not among {', '.join(paths)}")

    with pytest.raises(UnusableError, match=r"^not among bffhq/debiased_model.th, read me.txt$"):
        take(tmp_path, choose)
    assert len(drive.calls) == 1


@pytest.mark.parametrize(
    "error",
    [
        Drive.DownloadError("Download is incomplete"),
        requests.ConnectionError("no route"),
        requests.exceptions.ReadTimeout("slow"),
    ],
)
def test_what_may_pass_is_tried_again(drive: Drive, tmp_path: Path, error: Exception) -> None:
    drive.listing_errors = [error]
    drive.errors = [error, error]
    heard = take(tmp_path)
    assert heard.said == [f"{error}; trying again in 0 s"] * 3
    drive.errors = [error] * 4
    with pytest.raises(UnusableError, match=str(error)):
        take(tmp_path)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            Drive.FileURLRetrievalError("Failed to retrieve file url:\n\n\tToo many users have viewed"),
            "^Failed to retrieve file url: Too many users have viewed$",
        ),
        (Drive.DownloadCancelled("Download cancelled"), "^it was not here after 1,800 s$"),
        (AssertionError(), "^gdown failed with AssertionError: AssertionError$"),
        (KeyError("Content-Type"), "^gdown failed with KeyError: Content-Type$"),
        (requests.exceptions.SSLError("bad certificate"), "^bad certificate$"),
    ],
)
def test_what_does_not_pass_is_final(drive: Drive, tmp_path: Path, error: Exception, words: str) -> None:
    drive.errors = [error]
    with pytest.raises(UnusableError, match=words):
        take(tmp_path)
    assert len(drive.calls) == 2


def test_a_file_too_large_for_a_model(drive: Drive, tmp_path: Path) -> None:
    with pytest.raises(UnusableError, match="too much for a model"):
        take(tmp_path, limit=4999)


def test_a_disk_that_is_full_is_no_matter_of_the_drive(drive: Drive, tmp_path: Path) -> None:
    drive.errors = [OSError(28, "No space left on device")]
    with pytest.raises(OSError, match="No space"):
        take(tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("gdown") is None, reason="gdown is not installed")
def test_gdown_takes_the_arguments_that_it_is_given(drive: Drive, tmp_path: Path, monkeypatch: Any) -> None:
    take(tmp_path)
    monkeypatch.undo()
    import gdown

    inspect.signature(gdown.download_folder).bind(**drive.calls[0])
    inspect.signature(gdown.download).bind(**drive.calls[1])
    assert issubclass(gdown.FileURLRetrievalError, gdown.DownloadError)
    assert not issubclass(gdown.DownloadCancelled, gdown.DownloadError)
