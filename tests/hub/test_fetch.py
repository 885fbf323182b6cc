"""The authors' file from Google Drive, addresses, local files, folders and zips."""

import json
import pickle
from pathlib import Path

import pytest
from google_drive import GoogleDrive, too_many
from loopback import Heard, Site, cut, dropped, status
from published_files import PAGE, PATH, WHOLE, digest, have, names, part, zipped

from denetdm_cli.hub.pretrained import RECORDS, get_pretrained
from denetdm_cli.hub.published import DRIVE_ADDRESS
from denetdm_cli.utils.errors import CheckpointError, DownloadError

pytestmark = pytest.mark.usefixtures("_impatient")


def test_a_drive_without_the_file(drive: GoogleDrive, folder: Path) -> None:
    drive.files = {"models/a.th": b"", "b.txt": b""}
    with pytest.raises(DownloadError, match=f"there is no {PATH}, only b.txt, models/a.th"):
        have(folder)


def test_a_page_in_place_of_a_model(drive: GoogleDrive, folder: Path, site: Site, tmp_path: Path) -> None:
    drive.files[PATH] = PAGE
    with pytest.raises(DownloadError, match=r"is a web page, not a model; its download quota"):
        have(folder)
    site.content = b"\n <html>Sign in</html>"
    with pytest.raises(DownloadError, match=r"127.0.0.1:\d+/x is a web page, not a model\n"):
        have(folder, url=f"{site.address}/x?key=secret")
    (tmp_path / "saved.th").write_bytes(b"\xef\xbb\xbf" + PAGE)
    with pytest.raises(CheckpointError, match=r"saved.th is a web page"):
        have(folder, source=tmp_path / "saved.th")
    (tmp_path / "saved.th").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"saved.th is empty"):
        have(folder, source=tmp_path / "saved.th")
    assert not folder.exists()


@pytest.mark.parametrize("place", ["x.th", PATH, f"models/{PATH}", "coloredmnist.th", "debiased_model.th"])
def test_from_a_file_a_folder_or_a_zip(folder: Path, tmp_path: Path, model: bytes, place: str) -> None:
    file = tmp_path / "given" / place
    file.parent.mkdir(parents=True)
    file.write_bytes(model)
    have(folder, source=file)
    assert names(folder) == WHOLE
    if place == "x.th":
        return
    have(folder, source=tmp_path / "given", force=True)
    archive = tmp_path / "a.zip"
    archive.write_bytes(zipped({place: model, "read me": b""}))
    heard = have(folder, source=archive, force=True)
    assert f"{place} in {archive}" in heard.said[-1]
    assert names(folder) == WHOLE
    record = json.loads((folder / RECORDS).read_text())["coloredmnist"]
    assert (record["sha256"], record["source"]) == (digest(model), f"a.zip {place}")


def test_of_several_files_the_right_one_is_taken(folder: Path, tmp_path: Path, model: bytes, other: bytes) -> None:
    for path, content in ((PATH, model), ("bffhq/debiased_model.th", other), ("old/debiased_model.th", other)):
        (tmp_path / "given" / path).parent.mkdir(parents=True)
        (tmp_path / "given" / path).write_bytes(content)
    have(folder, source=tmp_path / "given")
    assert (folder / "coloredmnist.th").read_bytes() == model
    (tmp_path / "given" / PATH).unlink()
    with pytest.raises(CheckpointError, match=r"more than one debiased_model.th: bffhq/debiased_model.th, old/debi"):
        have(folder, source=tmp_path / "given", force=True)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({f"../{PATH}": b"x"}, "it holds '../colored_mnist/debiased_model.th', a name that leads out of it"),
        ({PATH: b"1", "/etc/x": b"x"}, "it holds '/etc/x', a name that leads out of it"),
        ({"a.txt": b"x"}, f"there is no {PATH}, only a.txt"),
        ({PATH: bytes(2_000_000)}, rf"{PATH} is too large \(2,000,000 bytes, at most 1,000,000 are read\)"),
    ],
)
def test_a_zip_that_is_refused(
    folder: Path, tmp_path: Path, members: dict[str, bytes], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("denetdm_cli.hub.fetch._MEMBER_LIMIT", 1_000_000)
    (tmp_path / "a.zip").write_bytes(zipped(members))
    with pytest.raises(CheckpointError, match=f"^{tmp_path / 'a.zip'} was not unpacked: .*{words}"):
        have(folder, source=tmp_path / "a.zip")
    assert not folder.exists()


def test_a_page_in_a_zip(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zipped({PATH: PAGE}))
    with pytest.raises(CheckpointError, match=r"debiased_model.th in .*a.zip is a web page"):
        have(folder, source=tmp_path / "a.zip")


@pytest.mark.parametrize(
    ("source", "words"), [("nowhere", "does not exist"), (".", "there is no"), ("/dev/null", "no")]
)
def test_a_source_that_is_none(folder: Path, tmp_path: Path, source: str, words: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=words):
        have(folder, source=tmp_path / "empty" / source)


def test_damage_is_named_by_the_file_given(folder: Path, tmp_path: Path, model: bytes) -> None:
    (tmp_path / "x.th").write_bytes(model[: len(model) // 2])
    with pytest.raises(CheckpointError, match=r"x\.th") as error:
        have(folder, source=tmp_path / "x.th")
    assert ".part" not in str(error.value)
    assert not folder.exists()


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('it ran')",)


def test_nothing_in_a_file_is_run(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "x.th").write_bytes(zipped({"archive/data.pkl": pickle.dumps(Bomb(), 2), "archive/version": b"3"}))
    with pytest.raises(CheckpointError, match=r"x\.th"):
        have(folder, source=tmp_path / "x.th")
    assert not folder.exists()


def test_from_an_address(site: Site, folder: Path, model: bytes) -> None:
    heard = have(folder, url=f"{site.address}/a/b.th?key=secret", sha256=digest(model))
    assert names(folder) == WHOLE
    assert (folder / "coloredmnist.th").read_bytes() == model
    everything = b"".join(path.read_bytes() for path in folder.iterdir()) + "".join(heard.said).encode()
    assert b"secret" not in everything
    assert json.loads((folder / RECORDS).read_text())["coloredmnist"]["source"] == f"{site.address}/a/b.th"
    heard = have(folder, url=f"{site.address}/c.th")
    assert "the same file as before" in heard.said[-1]


def test_from_the_address_of_a_zip(site: Site, folder: Path, model: bytes) -> None:
    site.content = zipped({PATH: model})
    have(folder, url=f"{site.address}/a.zip", sha256=digest(model))
    assert names(folder) == WHOLE


def test_what_arrived_is_kept_for_the_next_time(site: Site, folder: Path, model: bytes) -> None:
    site.answers = [cut(600_000), *[dropped] * 3]
    with pytest.raises(DownloadError, match=r"could not be fetched from .*/x\.th: ") as error:
        have(folder, url=f"{site.address}/x.th")
    kept = part(folder).stat().st_size
    assert f"The {kept:,} bytes received so far are kept in" in error.value.fix
    have(folder, url=f"{site.address}/x.th")
    assert site.asked[-1]["Range"] == f"bytes={kept}-"
    assert (folder / "coloredmnist.th").read_bytes() == model
    assert names(folder) == WHOLE


def test_what_arrived_is_of_no_use_once_the_model_is_here(site: Site, drive: GoogleDrive, folder: Path) -> None:
    site.answers = [cut(600_000), *[dropped] * 3]
    with pytest.raises(DownloadError):
        have(folder, url=f"{site.address}/x.th")
    have(folder)
    assert names(folder) == WHOLE


def test_a_stop_keeps_what_arrived(site: Site, folder: Path) -> None:
    class Stopped(Heard):
        def advance(self, what: str, done: int, total: int) -> None:
            if done > 500:
                raise KeyboardInterrupt

    heard = Stopped()
    with pytest.raises(KeyboardInterrupt):
        get_pretrained("coloredmnist", folder, url=f"{site.address}/x.th", reporter=heard)
    kept = part(folder).stat().st_size
    assert kept > 400_000
    assert heard.said[-1].startswith(f"coloredmnist: The {kept:,} bytes received so far are kept in")
    have(folder, url=f"{site.address}/x.th")
    assert "Range" in site.asked[-1]
    assert names(folder) == WHOLE


def test_an_address_without_the_file(site: Site, folder: Path) -> None:
    site.answers = [status(404)]
    with pytest.raises(DownloadError, match="the server answers 404 Not Found"):
        have(folder, url=f"{site.address}/x.th")
    assert not folder.exists()


def test_a_bad_file_of_the_users_is_named_in_the_advice(site: Site, folder: Path, tmp_path: Path) -> None:
    site.content = PAGE
    (tmp_path / "a.zip").write_bytes(zipped({PATH: PAGE}))
    given: list[tuple[dict[str, object], str]] = [
        ({"url": f"{site.address}/x?key=secret"}, f"{site.address}/x"),
        ({"source": tmp_path / "a.zip"}, str(tmp_path / "a.zip")),
    ]
    for options, shown in given:
        with pytest.raises((CheckpointError, DownloadError)) as error:
            have(folder, **options)  # type: ignore[arg-type]
        assert shown in error.value.fix
        assert DRIVE_ADDRESS not in error.value.fix
        assert "secret" not in error.value.fix


def test_a_quota_is_told_with_the_way_around_it(drive: GoogleDrive, folder: Path) -> None:
    drive.asking = too_many
    with pytest.raises(DownloadError, match="Drive folder: Failed to retrieve file url: Too many users") as error:
        have(folder)
    assert DRIVE_ADDRESS in error.value.fix
    assert "--from FILE" in error.value.fix
    assert PATH in error.value.fix
    assert str(folder / "coloredmnist.th") in error.value.fix
    assert not folder.exists()
