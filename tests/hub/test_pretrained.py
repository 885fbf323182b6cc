"""The models in the folder: verified, converted, recorded, never replaced by another file."""

import json
import re
import shutil
from pathlib import Path

import pytest
from google_drive import GoogleDrive
from loopback import Site
from published_files import PATH, WHOLE, digest, have, names, official

from denetdm_cli.hub.fetch import FetchedFile, FetchRequest
from denetdm_cli.hub.official import ARCHITECTURES
from denetdm_cli.hub.pretrained import RECORDS, listing
from denetdm_cli.hub.published import DRIVE_ADDRESS, PUBLISHED
from denetdm_cli.training import checkpoint
from denetdm_cli.utils.errors import CheckpointError, ConfigError, DownloadError
from denetdm_cli.utils.files import PART, folder_lock

pytestmark = pytest.mark.usefixtures("_impatient")


def test_what_is_published() -> None:
    assert [known.name for known in PUBLISHED] == ["coloredmnist", "corruptedcifar10", "bffhq"]
    assert {known.dataset for known in PUBLISHED} == set(ARCHITECTURES)
    assert all("not published" in known.note and known.stage == "distill" for known in PUBLISHED)


def test_from_the_drive(drive: GoogleDrive, folder: Path, model: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    assert [(known.size, known.sha256, known.path) for known in listing(folder)] == [(None, None, None)] * 3
    heard = have(folder)
    assert names(folder) == WHOLE
    assert (folder / "coloredmnist.th").read_bytes() == model
    record = json.loads((folder / RECORDS).read_text())["coloredmnist"]
    assert record["sha256"] == digest(model)
    assert record["source"] == f"{DRIVE_ADDRESS} {PATH}"
    metadata = checkpoint.load(folder / "coloredmnist.safetensors")[1]
    said = {
        "published_as": "coloredmnist",
        "fetched_from": record["source"],
        "sha256": digest(model),
        "bytes": len(model),
        "file": "debiased_model.th",
    }
    assert said.items() <= metadata["source"].items()
    first = listing(folder)[0]
    assert (first.size, first.sha256, first.path) == (len(model), digest(model), folder / "coloredmnist.safetensors")
    assert heard.said[-1].endswith(f"({len(model):,} bytes, SHA-256 {digest(model)})")
    assert capsys.readouterr().out == ""


def test_what_is_here_is_not_fetched_again(drive: GoogleDrive, folder: Path, model: bytes) -> None:
    have(folder)
    drive.site.asked.clear()
    heard = have(folder, sha256=f"SHA256:{digest(model).upper()}")
    assert "is here already" in heard.said[0]
    assert drive.site.asked == []
    with pytest.raises(CheckpointError, match=f"SHA-256 is {digest(model)}, not {'0' * 64}"):
        have(folder, sha256="0" * 64)
    (folder / "coloredmnist.safetensors").unlink()
    have(folder)
    assert drive.site.asked == [], "it is made of what is here"
    assert json.loads((folder / RECORDS).read_text())["coloredmnist"]["source"].startswith(DRIVE_ADDRESS)
    (folder / "coloredmnist.th").unlink()
    have(folder)
    assert drive.site.asked == []
    have(folder, force=True)
    assert drive.asked("download") == 1
    assert names(folder) == WHOLE


def test_a_file_put_there_by_hand_is_taken(drive: GoogleDrive, folder: Path, model: bytes) -> None:
    folder.mkdir()
    (folder / "coloredmnist.th").write_bytes(model)
    have(folder)
    assert drive.site.asked == []
    assert names(folder) == WHOLE


@pytest.mark.parametrize("asked", ["bffhq", "corruptedcifar10"])
def test_a_model_of_another_data_set_is_not_kept(folder: Path, tmp_path: Path, model: bytes, asked: str) -> None:
    (tmp_path / "x.th").write_bytes(model)
    with pytest.raises(CheckpointError, match=f"is a model of coloredmnist, distill, not of {asked}, distill"):
        have(folder, asked, source=tmp_path / "x.th")
    assert not folder.exists()


def test_a_model_of_another_stage_is_not_kept(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "x.th").write_bytes(official(1, stage="train-poe"))
    with pytest.raises(CheckpointError, match="is a model of coloredmnist, train-poe, not of"):
        have(folder, source=tmp_path / "x.th")


def test_a_wrong_digest_is_not_kept(site: Site, folder: Path, model: bytes) -> None:
    with pytest.raises(CheckpointError, match=f"SHA-256 is {digest(model)}, not {'a' * 64}"):
        have(folder, url=f"{site.address}/x.th", sha256="a" * 64)
    assert not folder.exists()


def test_another_file_than_before_stops_with_both_digests(site: Site, folder: Path, model: bytes, other: bytes) -> None:
    have(folder, url=f"{site.address}/x.th")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    site.content, site.tag = other, '"2"'
    with pytest.raises(CheckpointError, match=f"its SHA-256 is {digest(other)}, not {digest(model)} ") as error:
        have(folder, url=f"{site.address}/x.th")
    assert "--force" in error.value.fix
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    for path in before:
        if path.name != RECORDS:
            path.unlink()
    with pytest.raises(CheckpointError, match=digest(other)):
        have(folder, url=f"{site.address}/x.th")
    have(folder, url=f"{site.address}/x.th", force=True)
    assert listing(folder)[0].sha256 == digest(other)


@pytest.mark.parametrize("file", WHOLE[:2])
def test_a_file_that_was_changed_is_not_replaced(drive: GoogleDrive, folder: Path, file: str) -> None:
    have(folder)
    (folder / file).write_bytes(b"mine")
    with pytest.raises(CheckpointError, match=f"{file} is not the file that was (made|fetched) here: its SHA-256 is "):
        have(folder)
    assert (folder / file).read_bytes() == b"mine"
    have(folder, force=True)
    assert (folder / file).read_bytes() != b"mine"


@pytest.mark.parametrize("recorded", [False, True])
def test_another_original_is_not_replaced_by_what_is_given(
    site: Site, folder: Path, tmp_path: Path, model: bytes, recorded: bool
) -> None:
    (tmp_path / "x.th").write_bytes(model)
    if recorded:
        have(folder, source=tmp_path / "x.th")
    folder.mkdir(exist_ok=True)
    (folder / "coloredmnist.th").write_bytes(b"mine")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    given: list[dict[str, object]] = [{"source": tmp_path / "x.th"}, {"url": f"{site.address}/x.th"}]
    for options in given:
        with pytest.raises(CheckpointError, match=r"coloredmnist\.th exists, and is another file") as error:
            have(folder, **options)  # type: ignore[arg-type]
        assert "--force" in error.value.fix
        assert {path: path.read_bytes() for path in folder.iterdir()} == before
    have(folder, source=tmp_path / "x.th", force=True)
    assert (folder / "coloredmnist.th").read_bytes() == model


@pytest.mark.parametrize("missing", WHOLE[:2])
def test_what_is_missing_is_put_back_from_the_recorded_file(
    folder: Path, tmp_path: Path, model: bytes, missing: str
) -> None:
    (tmp_path / "x.th").write_bytes(model)
    have(folder, source=tmp_path / "x.th")
    whole = (folder / missing).read_bytes()
    (folder / missing).unlink()
    have(folder, source=tmp_path / "x.th")
    assert (folder / missing).read_bytes() == whole
    (folder / missing).write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=re.escape(missing)) as error:
        have(folder, source=tmp_path / "x.th")
    assert "--force" in error.value.fix
    assert (folder / missing).read_bytes() == b"damaged"
    have(folder, source=tmp_path / "x.th", force=True)
    assert (folder / missing).read_bytes() == whole


def test_what_a_killed_process_left_is_removed(
    drive: GoogleDrive, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[Path] = []

    def killed(request: FetchRequest, scratch: Path, **_: object) -> FetchedFile:
        (scratch / "fetched").write_bytes(b"half")
        shutil.copytree(scratch, scratch.with_name(scratch.name.replace(PART, f"0{PART}")))
        left.append(scratch)
        raise DownloadError("killed", "")

    with monkeypatch.context() as patched:
        patched.setattr("denetdm_cli.hub.pretrained.fetch_file", killed)
        for _ in range(2):
            with pytest.raises(DownloadError):
                have(folder)
            assert len(names(folder)) == 1, "the copy, which nobody holds"
    have(folder)
    assert names(folder) == WHOLE
    (folder / left[0].name).mkdir()
    assert "is here already" in have(folder).said[-1]
    assert names(folder) == WHOLE


def test_a_file_of_another_origin_is_not_replaced(drive: GoogleDrive, folder: Path) -> None:
    folder.mkdir()
    (folder / "coloredmnist.safetensors").write_bytes(b"mine")
    with pytest.raises(CheckpointError, match="exists, and was not made by this command"):
        have(folder)
    assert drive.site.asked == []


def test_damaged_records(folder: Path) -> None:
    folder.mkdir()
    (folder / RECORDS).write_text('{"coloredmnist": {"sha256": "12"}}')
    with pytest.raises(CheckpointError, match=r"pretrained.json, which records"):
        listing(folder)


def test_what_others_recorded_stays(drive: GoogleDrive, folder: Path, tmp_path: Path, model: bytes) -> None:
    have(folder)
    records = json.loads((folder / RECORDS).read_text())
    records["of a later version"] = records["coloredmnist"]
    (folder / RECORDS).write_text(json.dumps(records))
    have(folder, force=True)
    assert json.loads((folder / RECORDS).read_text()).keys() == records.keys()


def test_two_at_once(drive: GoogleDrive, folder: Path) -> None:
    folder.mkdir()
    with folder_lock(folder), pytest.raises(CheckpointError, match="another process is fetching models into"):
        have(folder)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "mnist"}, "no published model is named 'mnist'"),
        ({"sha256": "12"}, "'12' is no SHA-256 digest"),
        ({"url": "file:///etc/hostname"}, r"no http\(s\) address"),
        ({"url": "http://[::1/x"}, r"no http\(s\) address"),
        ({"url": "x.th"}, r"no http\(s\) address"),
        ({"url": "http://a/x", "source": Path("x")}, "both a local source and an address"),
    ],
)
def test_wrong_arguments(folder: Path, options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        have(folder, **options)  # type: ignore[arg-type]
    assert not folder.exists()
