import hashlib
import io
import json
import pickle
import random
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from google_drive import GoogleDrive, drive_serving, too_many
from loopback import Heard, Site, cut, dropped, status

from denetdm_cli.hub import download
from denetdm_cli.hub.fetch import FetchedFile, FetchRequest
from denetdm_cli.hub.official import ARCHITECTURES, Dataset, Official, Stage, to_official
from denetdm_cli.hub.pretrained import RECORDS, get_pretrained, listing
from denetdm_cli.hub.published import DRIVE_ADDRESS, PUBLISHED
from denetdm_cli.methods.denetdm.models import ProductOfExperts, TargetModel
from denetdm_cli.training import checkpoint
from denetdm_cli.utils.errors import CheckpointError, ConfigError, DownloadError
from denetdm_cli.utils.files import PART, folder_lock

PATH = "colored_mnist/debiased_model.th"
PAGE = b"<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head></html>"


def official(seed: int, dataset: Dataset = "coloredmnist", stage: Stage = "distill") -> bytes:
    """A file as the official code writes it."""
    made = ARCHITECTURES[dataset]
    build = TargetModel if stage == "distill" else ProductOfExperts
    model = build(made.model, made.image_shape, made.classes, seed)
    buffer = io.BytesIO()
    torch.save(to_official(model.state_dict(), Official(dataset, stage)), buffer)
    return buffer.getvalue()


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def model() -> bytes:
    return official(1)


@pytest.fixture(scope="module")
def other() -> bytes:
    return official(2)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PAUSES", (0.0, 0.0, 0.0))
    monkeypatch.setattr(random, "uniform", lambda low, high: 0.0)  # the pauses of gdown


@pytest.fixture
def drive(model: bytes) -> Iterator[GoogleDrive]:
    with drive_serving({PATH: model, "bffhq/debiased_model.th": b"not asked for", "read me.txt": b""}) as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "pretrained"


def have(folder: Path, name: str = "coloredmnist", **options: object) -> Heard:
    heard = Heard()
    path = get_pretrained(name, folder, reporter=heard, **options)  # type: ignore[arg-type]
    assert path == folder / f"{name}.safetensors"
    assert path.is_file()
    return heard


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def part(folder: Path) -> Path:
    """What is kept of a broken transfer."""
    (found,) = folder.glob("coloredmnist.th.download-*.part")
    return found


WHOLE = ["coloredmnist.safetensors", "coloredmnist.th", RECORDS]


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


def test_a_quota_is_told_with_the_way_around_it(drive: GoogleDrive, folder: Path) -> None:
    drive.asking = too_many
    with pytest.raises(DownloadError, match="Drive folder: Failed to retrieve file url: Too many users") as error:
        have(folder)
    assert DRIVE_ADDRESS in error.value.fix
    assert "--from FILE" in error.value.fix
    assert PATH in error.value.fix
    assert str(folder / "coloredmnist.th") in error.value.fix
    assert not folder.exists()


def test_a_file_put_there_by_hand_is_taken(drive: GoogleDrive, folder: Path, model: bytes) -> None:
    folder.mkdir()
    (folder / "coloredmnist.th").write_bytes(model)
    have(folder)
    assert drive.site.asked == []
    assert names(folder) == WHOLE


def test_a_drive_without_the_file(drive: GoogleDrive, folder: Path) -> None:
    drive.files = {"models/a.th": b"", "b.txt": b""}
    with pytest.raises(DownloadError, match=f"there is no {PATH}, only b.txt, models/a.th"):
        have(folder)


def test_a_page_in_place_of_a_model(drive: GoogleDrive, folder: Path, site: Site, tmp_path: Path) -> None:
    drive.files[PATH] = PAGE
    with pytest.raises(DownloadError, match=r"is a web page, not a model; it says .* too many"):
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


# Local sources


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
    with pytest.raises(CheckpointError, match=f"^nothing was taken from {tmp_path / 'a.zip'}: .*{words}"):
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


# Addresses


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


# Digests


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


def test_a_file_of_another_origin_is_not_replaced(drive: GoogleDrive, folder: Path) -> None:
    folder.mkdir()
    (folder / "coloredmnist.safetensors").write_bytes(b"mine")
    with pytest.raises(CheckpointError, match="exists, and was not made by this command"):
        have(folder)
    assert drive.site.asked == []


def test_damaged_records(folder: Path) -> None:
    folder.mkdir()
    (folder / RECORDS).write_text('{"coloredmnist": {"sha256": "12"}}')
    with pytest.raises(CheckpointError, match=r"pretrained.json, which remembers"):
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
