"""`denetdm validate`: what it says of packed data sets and of images that are not imported yet."""

import shutil
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest
from cli_support import call, contents, good, no_leftovers, plain, refused
from own_images import CLASSES, PLACES, class_folders, paint, table
from PIL import Image

GROUPS = {"train": [[2, 3, 9], [8, 2, 2]], "test": [[2, 2, 2], [2, 2, 2]]}


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go; nothing may stay there."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    source = table(tmp_path / "images", GROUPS, ("path", "label", "bias", "split"))
    good("make-data", "folder", "--source", source, "--size", 16)
    return tmp_path / "data" / "mine"


def archive(folder: Path, file: Path) -> Path:
    if file.suffix == ".zip":
        with zipfile.ZipFile(file, "w") as zipped:
            for path in sorted(folder.rglob("*")):
                zipped.write(path, path.relative_to(folder.parent))
    else:
        with tarfile.open(file, "w:gz") as packed:
            packed.add(folder, folder.name)
    return file


def only_new(tmp_path: Path, before: dict[str, bytes]) -> set[str]:
    """The files that were not there before; those that were have not changed."""
    after = contents(tmp_path)
    assert {name: after.get(name) for name in before} == before
    assert no_leftovers(tmp_path)
    return after.keys() - before.keys()


def is_sheet(file: Path) -> bool:
    with Image.open(file) as sheet:
        return sheet.format == "PNG" and min(sheet.size) > 300


class TestPacked:
    def test_sound(self, packed: Path, tmp_path: Path) -> None:
        before = contents(tmp_path)
        outcome = good("validate", packed)
        assert "(sound)" in outcome.out
        for split in ("train", "test"):
            assert f"{split}: images by group" in outcome.out
        assert all(name in outcome.out for name in (*CLASSES, *PLACES)), "the group table names what it counts"
        train = outcome.out.partition("train: images by group")[2].partition("test: images by group")[0]
        assert [line.split() for line in train.splitlines() if line.strip().startswith(CLASSES)] == [
            ["cat", "2", "3", "9"],
            ["dog", "8", "2", "2"],
        ]
        assert outcome.err == "contact sheet of mine: mine-sheet.png\n"
        assert plain(outcome.out + outcome.err)
        assert only_new(tmp_path, before) == {"mine-sheet.png"}
        assert is_sheet(tmp_path / "mine-sheet.png")

    def test_one_of_another_tool(self, packed: Path, tmp_path: Path) -> None:
        (packed / "manifest.json").unlink()
        assert "(sound)" in good("validate", packed).out
        assert is_sheet(tmp_path / "mine-sheet.png")

    def test_settings_are_not_for_it(self, packed: Path, tmp_path: Path) -> None:
        before = contents(tmp_path)
        refused(2, call("validate", packed, "--set", "dataset.size=8"), "--set: ", "mine is a data set already")
        assert only_new(tmp_path, before) == set()

    @pytest.mark.parametrize("file", ["train/images.npy", "test/attrs.npy", "manifest.json"])
    def test_a_damaged_byte(self, packed: Path, tmp_path: Path, file: str) -> None:
        content = bytearray((packed / file).read_bytes())
        content[-20] ^= 1
        (packed / file).write_bytes(content)
        before = contents(tmp_path)
        refused(3, call("validate", packed), file, "make-data ... --force")
        assert only_new(tmp_path, before) == set()

    @pytest.mark.parametrize("name", ["train/images.npy", "test/attrs.npy"])
    def test_what_is_missing(self, packed: Path, tmp_path: Path, name: str) -> None:
        (packed / name).unlink()
        refused(3, call("validate", packed), name, "is missing")
        assert not list(tmp_path.glob("*.png"))

    def test_what_is_given_by_relative_paths(
        self, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(packed)
        good("validate", ".")
        assert is_sheet(packed / "mine-sheet.png")


class TestRaw:
    @pytest.mark.parametrize("kind", ["folder", "table", "zip", "tar.gz"])
    def test_what_make_data_would_make(self, tmp_path: Path, kind: str) -> None:
        if kind == "table":
            source = table(tmp_path / "images", GROUPS, ("path", "label", "bias", "split"))
        else:
            source = class_folders(tmp_path / "images", {"train": 12, "test": 5})
            source = source if kind == "folder" else archive(source, tmp_path / f"images.{kind}")
        before = contents(tmp_path)
        outcome = good("validate", source.relative_to(tmp_path))
        said = " ".join(outcome.out.split())
        assert source.name in said
        assert "make-data folder" in said, "it says that nothing is imported yet"
        assert ("train: images by group" in outcome.out) is (kind == "table")
        assert ("images by class" in outcome.out) is (kind != "table")
        assert plain(outcome.out + outcome.err)
        sheet = f"{'labels' if kind == 'table' else 'images'}-sheet.png"
        assert outcome.err.splitlines()[-1].endswith(f": {sheet}")
        assert only_new(tmp_path, before) == {sheet}
        assert is_sheet(tmp_path / sheet)

    def test_settings_reach_it(self, tmp_path: Path) -> None:
        source = class_folders(tmp_path / "images", {"": 10})
        outcome = good("validate", source, "--set", "dataset.test_share=0.5", "--set", "dataset.seed=7")
        assert "drawn with seed 7: train 8, valid 2, test 10 images" in outcome.err
        refused(2, call("validate", source, "--set", "dataset.test_share=1.5"), "dataset.test_share: 1.5")

    @pytest.mark.parametrize("setting", ["dataset.root=elsewhere", "dataset.folder=mine"])
    def test_nothing_is_kept_so_there_is_no_place_to_set(self, tmp_path: Path, setting: str) -> None:
        source = class_folders(tmp_path / "images", {"": 10})
        before = contents(tmp_path)
        outcome = call("validate", source, "--set", setting)
        refused(2, outcome, f"--set {setting.partition('=')[0]}: validate keeps no data set")
        assert only_new(tmp_path, before) == set()

    @pytest.mark.parametrize(("words", "needed"), [((), "0.00 GB"), (("--set", "dataset.size=2048"), "0.25 GB")])
    def test_no_space_for_them_at_the_size_that_may_be_set(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], needed: str
    ) -> None:
        source = class_folders(tmp_path / "images", {"": 10})
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
        outcome = call("validate", source, *words)
        refused(7, outcome, f"20 images take {needed}", "are free in ", "TMPDIR")
        assert "--data-root" not in outcome.err, "which validate does not have"

    def test_few_broken_images_are_named(self, tmp_path: Path) -> None:
        source = class_folders(tmp_path / "images", {"train": 60, "test": 5})
        broken = source / "train" / "cat" / "7.png"
        broken.write_bytes(broken.read_bytes()[:60])
        outcome = good("validate", source)
        assert "1 of 130 images cannot be read and are left out:" in outcome.err
        assert "train/cat/7.png" in outcome.err

    def test_many_broken_images_are_refused(self, tmp_path: Path) -> None:
        source = class_folders(tmp_path / "images", {"train": 10, "test": 5})
        for number in (1, 2):
            (source / "train" / "dog" / f"{number}.png").write_bytes(b"no image")
        before = contents(tmp_path)
        refused(3, call("validate", source), "train/dog/1.png", "train/dog/2.png", "cannot be read", "Replace")
        assert only_new(tmp_path, before) == set()

    def test_what_holds_no_images(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        (tmp_path / "notes.txt").write_text("hello")
        before = contents(tmp_path)
        for source in ("empty", "nowhere", "notes.txt"):
            refused(3, call("validate", source), source)
        assert only_new(tmp_path, before) == set()


class TestSheet:
    def test_where_it_is_asked_for(self, packed: Path, tmp_path: Path) -> None:
        before = contents(tmp_path)
        outcome = good("validate", packed, "--preview", "new/look.png")
        assert outcome.err == "contact sheet of mine: new/look.png\n"
        assert only_new(tmp_path, before) == {"new/look.png"}
        assert is_sheet(tmp_path / "new" / "look.png")

    def test_an_older_sheet_is_replaced(self, packed: Path, tmp_path: Path) -> None:
        paint(tmp_path / "mine-sheet.png", 0, 0, 0)
        good("validate", packed)
        assert is_sheet(tmp_path / "mine-sheet.png")

    @pytest.mark.parametrize("raw", [False, True])
    def test_files_of_another_kind_are_not_replaced(self, packed: Path, tmp_path: Path, raw: bool) -> None:
        (tmp_path / "thesis.txt").write_text("precious")
        before = contents(tmp_path)
        source = tmp_path / "images" / "labels.csv" if raw else packed
        refused(2, call("validate", source, "--preview", "thesis.txt"), "--preview thesis.txt", ".png")
        outcome = call("validate", source, "--preview", tmp_path / "images")  # a folder
        assert outcome.code in (2, 7), outcome
        assert "error: " in outcome.err
        assert "\nwhat to do: " in outcome.err
        assert only_new(tmp_path, before) == set()

    @pytest.mark.parametrize("name", ["look.jpg", "look.JPEG", "look.png.bak", "new/look.csv"])
    def test_a_name_that_says_another_kind_of_file(self, packed: Path, tmp_path: Path, name: str) -> None:
        before = contents(tmp_path)
        ending = Path(name).suffix
        refused(2, call("validate", packed, "--preview", name), f"--preview {name} ends in {ending}", ".png")
        again = call("make-data", "folder", "--source", "images/labels.csv", "--size", 16, "--preview", name, "--force")
        refused(2, again, f"--preview {name} ends in {ending}", ".png")
        assert only_new(tmp_path, before) == set()

    def test_an_ending_in_capitals(self, packed: Path, tmp_path: Path) -> None:
        for _ in range(2):
            good("validate", packed, "--preview", "LOOK.PNG")
        assert is_sheet(tmp_path / "LOOK.PNG")

    def test_a_name_that_is_no_name_of_a_picture(self, packed: Path, tmp_path: Path) -> None:
        before = contents(tmp_path)
        good("validate", packed, "--preview", "look")
        assert only_new(tmp_path, before) == {"look"}
        assert is_sheet(tmp_path / "look")

    def test_nothing_of_the_data_is_written_to(self, packed: Path) -> None:
        before = contents(packed)
        good("validate", packed)
        assert contents(packed) == before
        shutil.rmtree(packed / "test")
        refused(3, call("validate", packed), "valid or test")
