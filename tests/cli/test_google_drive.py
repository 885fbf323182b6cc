"""The authors' models through gdown itself, from a stand-in for Google Drive on this machine."""

import io
import json
import random
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cli_support import Outcome, call, good, plain, refused
from google_drive import TOO_MANY, GoogleDrive, drive_serving, too_many
from loopback import cut, silent, status
from official_reference import Reference

from denetdm_cli.hub import download
from denetdm_cli.hub.published import DRIVE_ADDRESS, DRIVE_ID

PATH = "colored_mnist/debiased_model.th"


@pytest.fixture(scope="module")
def model() -> bytes:
    buffer = io.BytesIO()
    torch.save(Reference("coloredmnist", "distill").state_dict(), buffer)
    return buffer.getvalue()


@pytest.fixture
def drive(model: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[GoogleDrive]:
    monkeypatch.setattr(download, "PAUSES", (0.0, 0.0, 0.0))
    monkeypatch.setattr(random, "uniform", lambda low, high: 0.0)  # the pauses of gdown
    with drive_serving({PATH: model, "bffhq/debiased_model.th": b"not asked for", "read me.txt": b""}) as made:
        yield made


def fails(*words: str) -> Outcome:
    """Nothing is fetched, nothing left, and the way around it is told."""
    outcome = call("download-pretrained", "coloredmnist")
    refused(5, outcome, *words, DRIVE_ADDRESS, PATH, "--from FILE", "pretrained/coloredmnist.th")
    assert not Path("pretrained").exists()
    return outcome


def test_a_model_comes_through_the_pages_of_the_drive(drive: GoogleDrive, model: bytes) -> None:
    outcome = good("download-pretrained", "coloredmnist")
    assert outcome.out == "pretrained/coloredmnist.safetensors\n"
    assert plain(outcome.err)
    assert Path("pretrained/coloredmnist.th").read_bytes() == model
    record = json.loads(Path("pretrained/pretrained.json").read_text())["coloredmnist"]
    assert record["source"] == f"{DRIVE_ADDRESS} {PATH}"
    assert [drive.asked(page) for page in ("embeddedfolderview", "uc", "download")] == [3, 1, 1]
    assert not any("Cookie" in request for request in drive.site.asked)


def test_a_quota_is_told_at_once(drive: GoogleDrive) -> None:
    drive.asking = too_many
    outcome = fails(f"Failed to retrieve file url: {TOO_MANY.rstrip('.')}")
    assert "retrying" not in outcome.err
    assert "Gdown" not in outcome.err
    assert drive.asked("uc") == 1


def test_a_page_without_the_file_is_told(drive: GoogleDrive) -> None:
    drive.asking = lambda _: "<html>Sign in</html>"
    fails("Cannot retrieve the public link of the file")


def test_a_page_that_comes_as_the_file_is_no_model(drive: GoogleDrive) -> None:
    drive.files[PATH] = b"<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head></html>"
    fails("is a web page, not a model", "quota is used up")


def test_a_transfer_that_breaks_off_is_tried_again(drive: GoogleDrive, model: bytes) -> None:
    drive.headers["Content-Length"] = str(len(model) + 1)
    outcome = fails("the server did not continue the broken transfer")
    assert outcome.err.count("retrying") == 3
    assert not any(word in outcome.err for word in ("kept in", "--continue", ".part"))
    del drive.headers["Content-Length"]
    drive.site.answers = [drive.site.usual] * 4 + [cut(1000, **drive.headers)]
    drive.site.content = model
    assert good("download-pretrained", "coloredmnist").err.count("retrying") == 0
    assert Path("pretrained/coloredmnist.th").read_bytes() == model


@pytest.mark.parametrize("code", [404, 429])
def test_a_folder_that_is_not_shown_is_tried_again(drive: GoogleDrive, code: int) -> None:
    drive.site.answers = [status(code)] * 4
    outcome = fails(f"Failed to retrieve folder contents for folder ID: {DRIVE_ID} (status code {code})")
    assert outcome.err.count("retrying") == 3
    assert "FAQ" not in outcome.err
    drive.site.answers = [status(code)]
    good("download-pretrained", "coloredmnist")


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("<html>{1}</html>", "The page structure may have changed"),
        ("<html><title>Drive</title></html>", f"there is no {PATH}, only nothing of that kind"),
    ],
)
def test_a_folder_page_of_another_kind_is_told(drive: GoogleDrive, page: str, words: str) -> None:
    drive.listing = page.format
    fails(words)


def test_a_folder_without_the_model_is_told(drive: GoogleDrive) -> None:
    drive.files = {"models/a.th": b"", "read me.txt": b""}
    fails(f"there is no {PATH}, only models/a.th, read me.txt")
    assert drive.asked("uc") == 0


def test_what_gdown_does_not_expect_is_no_traceback(drive: GoogleDrive) -> None:
    drive.site.answers = [drive.site.usual] * 3 + [status(200)]
    fails("gdown failed with KeyError")


def test_a_drive_that_falls_silent_is_given_up(drive: GoogleDrive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_TIMEOUTS", (1.0, 0.1))
    headers = {"Content-Type": "application/x-zip", "Content-Disposition": 'attachment; filename="a.th"'}
    drive.site.answers = [drive.site.usual] * 4 + [silent(1000, 0.3, **headers)] * 4
    fails("Read timed out")


def test_a_drive_out_of_reach_is_tried_again(drive: GoogleDrive) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        drive.site.address = f"http://127.0.0.1:{free.getsockname()[1]}"
    assert fails("Connection refused").err.count("retrying") == 3
