"""Exports and files of the authors' models that several tests share."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from exports import FILES, NETWORKS, make_checkpoint
from google_drive import GoogleDrive, drive_serving
from published_files import PATH, official
from shipping import Listener

from denetdm_cli.hub import download
from denetdm_cli.hub.export import export


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One export of every kind of network, beside its checkpoint."""
    folder = tmp_path_factory.mktemp("exports")
    for name in NETWORKS:
        written = export(make_checkpoint(folder, name), folder / name, onnx=False, reporter=Listener())
        assert sorted(path.name for path in written) == sorted([*FILES, *["network.py"] * (name == "cifar_resnet")])
        assert all(path.is_file() for path in written)
    return folder


@pytest.fixture(scope="session")
def model() -> bytes:
    """A file as the official code writes it."""
    return official(1)


@pytest.fixture(scope="session")
def other() -> bytes:
    """Another model of the same architecture."""
    return official(2)


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PAUSES", (0.0, 0.0, 0.0))
    monkeypatch.setattr(random, "uniform", lambda low, high: 0.0)  # the pauses of gdown


@pytest.fixture
def drive(model: bytes) -> Iterator[GoogleDrive]:
    """The authors' Google Drive folder."""
    with drive_serving({PATH: model, "bffhq/debiased_model.th": b"not asked for", "read me.txt": b""}) as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder for the models, which does not exist yet."""
    return tmp_path / "pretrained"
