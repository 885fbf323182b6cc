"""What the tests of refused imports share."""

import zipfile
from collections.abc import Callable
from pathlib import Path

from cli_support import call, contents, no_leftovers, refused

MAKE = ("make-data", "folder", "--size", 16)


def is_refused(tmp_path: Path, source: object, *words: object, code: int = 3) -> None:
    """Both commands that import refuse the source and leave no file behind."""
    before = contents(tmp_path)
    refused(code, call(*MAKE, "--source", source), *words)
    training = ("--dataset", "folder", "--device", "cpu", "--set", "dataset.size=16")
    refused(code, call("train-poe", *training, "--source", source), *words)
    assert contents(tmp_path) == before
    assert no_leftovers(tmp_path)
    assert not (tmp_path / "data" / "mine").exists()
    assert not (tmp_path / "runs").exists()
    assert list((tmp_path / "tmp").iterdir()) == []


def zipped(file: Path, members: dict[str, bytes], change: Callable[[zipfile.ZipInfo], None] = lambda _: None) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        change(archive.infolist()[-1])
    return file
