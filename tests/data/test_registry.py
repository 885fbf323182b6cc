"""Data sets by name: what several of them have in common is done once, and nothing stays when they are stopped."""

import functools
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from own_images import paint

from denetdm_cli.config.load import load_config, preset_path
from denetdm_cli.config.schema import DatasetConfig
from denetdm_cli.data import registry as catalog
from denetdm_cli.data.registry import ensure_datasets
from denetdm_cli.utils.errors import DataError

RATIOS = (0.2, 0.3)


class Log:
    """What was told, a line each; it may stop the work at one of them."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.lines: list[str] = []
        self._stop_at = stop_at

    def info(self, line: str) -> None:
        self.lines.append(line)
        if len(self.lines) == self._stop_at:
            raise Stop

    def advance(self, what: str, done: int, total: int) -> None:
        self.info(f"{what}: {done} of {total}")


class Stop(BaseException):
    """What is neither an error nor a KeyboardInterrupt."""


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where archives are unpacked to; nothing may stay there."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """DFA's Colored MNIST, a fifth of the training images bias-conflicting; both ratios are content with that."""
    places = [("20pct/align", 4, 0), ("20pct/conflict", 1, 1), ("20pct/valid", 1, 1)]
    places += [(part.replace("20", "30"), count, off) for part, count, off in places] + [("test", 1, 1)]
    tree = tmp_path / "tree"
    for part, count, off in places:
        for label in range(10):
            for number in range(count):
                paint(tree / "cmnist" / part / f"{number}_{label}_{(label + off) % 10}.png", label % 3, label, number)
    return zipped(tree)


def zipped(tree: Path) -> Path:
    with zipfile.ZipFile(tree.parent / "dfa.zip", "w") as file:
        for path in sorted(tree.rglob("*.png")):
            file.write(path, path.relative_to(tree))
    return tree.parent / "dfa.zip"


def wanted(tmp_path: Path, *ratios: float) -> list[DatasetConfig]:
    root = str(tmp_path / "data")
    options = [{"dataset.root": root, "dataset.ratio": ratio} for ratio in ratios]
    return [load_config(preset_path("cmnist"), (), each).dataset for each in options]


def test_an_archive_is_unpacked_and_hashed_once_for_several_ratios(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = []
    sha256 = catalog.sha256
    monkeypatch.setattr(catalog, "sha256", lambda path: hashed.append(path) or sha256(path))
    log = Log()
    made = ensure_datasets(wanted(tmp_path, *RATIOS), source=archive, reporter=log)
    assert [(dataset.path.name, new) for dataset, new in made] == [("cmnist-0.2", True), ("cmnist-0.3", True)]
    assert log.lines.count("Looking into dfa.zip") == 1
    assert len([line for line in log.lines if line.startswith("unpacking")]) == 130
    assert hashed == [archive]
    again = Log()
    found = ensure_datasets(wanted(tmp_path, *RATIOS), source=archive, reporter=again)
    assert [new for _, new in found] == [False, False]
    assert again.lines == [], "the very archive need not be unpacked again"
    assert hashed == [archive] * 2


def test_what_is_there_is_compared_with_another_archive_that_is_unpacked_once(archive: Path, tmp_path: Path) -> None:
    ensure_datasets(wanted(tmp_path, *RATIOS), source=archive, reporter=Log())
    same = archive.rename(archive.with_name("same.zip"))
    with zipfile.ZipFile(same, "a") as file:
        file.writestr("readme.txt", "other bytes, the same images")
    log = Log()
    found = ensure_datasets(wanted(tmp_path, *RATIOS), source=same, reporter=log)
    assert [new for _, new in found] == [False, False]
    assert log.lines.count("Looking into same.zip") == 1


def test_it_is_said_which_of_several_is_at_hand(archive: Path, tmp_path: Path) -> None:
    log = Log()
    ensure_datasets(wanted(tmp_path, *RATIOS), source=archive, reporter=log)
    told = [line for line in log.lines if "reading images" in line]
    assert told == [
        f"ratio {ratio}: {split}: reading images: {count} of {count}"
        for ratio in RATIOS
        for split, count in (("train", 50), ("valid", 10), ("test", 10))
    ]
    log = Log()
    ensure_datasets(wanted(tmp_path / "one", 0.2), source=archive, reporter=log)
    assert "train: reading images: 50 of 50" in log.lines, "where there is but one, all is about that"


def test_nothing_half_made_stays_whenever_it_is_stopped(archive: Path, tmp_path: Path, scratch: Path) -> None:
    log = Log()
    ensure_datasets(wanted(tmp_path / "whole", *RATIOS), source=archive, reporter=log)
    first = next(number for number, line in enumerate(log.lines, 1) if "reading images" in line)
    for stop_at in [1, 2, 60, *range(first, len(log.lines) + 1)]:
        root = tmp_path / str(stop_at)
        with pytest.raises(Stop):
            ensure_datasets(wanted(root, *RATIOS), source=archive, reporter=Log(stop_at))
        whole = ["cmnist-0.2"] if stop_at >= first + 3 else []
        assert [path.name for path in (root / "data").glob("*")] == whole, stop_at
        assert list(scratch.iterdir()) == [], stop_at


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda tree: [path.unlink() for path in tree.glob("20pct/valid/*")], "dfa.zip: cmnist/20pct/valid is missing"),
        (lambda tree: (tree / "test/0_3_4.png").rename(tree / "test/x.png"), "dfa.zip: cmnist/test: file names"),
        (lambda tree: (tree / "test/0_3_4.png").write_bytes(b""), "dfa.zip: cmnist: no image can be read of some"),
        (lambda tree: (tree / "20pct").rename(tree / "5pct"), "dfa.zip: looked for the layout of DFA"),
    ],
)  # fmt: skip
def test_errors_name_the_archive_and_not_where_it_was_unpacked_to(
    archive: Path,
    tmp_path: Path,
    scratch: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], object],
    said: str,
) -> None:
    damage(tmp_path / "tree" / "cmnist")
    monkeypatch.setattr(catalog, "pack", functools.partial(catalog.pack, max_unreadable=0.5))
    with pytest.raises(DataError) as caught:
        ensure_datasets(wanted(tmp_path, 0.2), source=zipped(tmp_path / "tree"), reporter=Log())
    assert f"{tmp_path}/{said}" in caught.value.what
    assert str(scratch) not in str(caught.value)
    assert not list(tmp_path.glob("data/*"))
