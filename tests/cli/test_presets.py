"""Every shipped configuration: it is listed, can be read, and says where its data come from."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from cli_support import call, good, refused
from own_images import class_folders, tiny

from denetdm_cli.config.load import from_mapping, load_config, preset_path
from denetdm_cli.config.presets import preset_names

NAMES = preset_names()
MADE = ("coloredmnist", "corruptedcifar10")
"""Those that are made from what can be downloaded; the others are imported."""


def test_all_of_them_are_listed() -> None:
    known = {*MADE, "bffhq", "bar", "celeba", "waterbirds", "cmnist", "cifar10c", "folder"}
    assert set(good("configs", "ls").out.split()) == known == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_show_prints_a_whole_configuration(name: str) -> None:
    text = good("configs", "show", name).out
    assert text.startswith(preset_path(name).read_text("utf-8").splitlines()[0])
    tree = yaml.safe_load(text)
    assert tree["dataset"]["name"] == name
    assert from_mapping(tree, "here") == load_config(preset_path(name))
    assert tree.keys() == load_config(preset_path(name)).model_dump().keys(), "every key is there"
    assert f"configs cp {name} " in text, "the file says how to make it one's own"


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_reads_as_the_preset(name: str, tmp_path: Path) -> None:
    good("configs", "cp", name, "mine.yaml")
    assert load_config(tmp_path / "mine.yaml") == load_config(preset_path(name))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in MADE])
def test_without_data_an_import_says_how_to_get_them(name: str, tmp_path: Path) -> None:
    for command in (["train-poe", "--dataset", name, "--device", "cpu"], ["make-data", name]):
        outcome = call(*command)
        refused(3, outcome, f"data set {name} is not in {tmp_path / 'data'}", "cannot be downloaded")
        told = re.search(r"denetdm make-data (\S+) .*--source ", outcome.err)
        assert told, outcome.err
        assert told[1] == name
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [name for name in NAMES if name not in MADE])
def test_a_source_of_another_layout(name: str, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "notes.txt").write_text("hello")
    outcome = call("make-data", name, "--source", "source")
    refused(3, outcome, "source", "notes.txt")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["notes.txt"]


def remedy(text: str, source: Path) -> list[str]:
    """The make-data command of a message, its place of the source filled in."""
    told = re.search(r"`denetdm (make-data .*?)`", text)
    assert told, text
    return [str(source) if word == "FOLDER_OR_ARCHIVE" else word for word in shlex.split(told[1])]


class TestRemedies:
    """A command that a message says to give makes the very data set that was missing."""

    @pytest.mark.parametrize(
        ("words", "path", "told"),
        [
            (("cmnist", "--ratio", 0.05), "cmnist-0.05", r"--ratio 0\.05"),
            (("cifar10c", "--ratio", 0.02), "cifar10c-0.02", r"--ratio 0\.02"),
            (("bar", "--ratio", 0.05), "bar-0.05", r"--ratio 0\.05"),
            (("celeba", "--set", "dataset.subsample=true"), "celeba-subsampled", r"dataset\.subsample=true"),
            (("bffhq", "--set", "dataset.size=64"), "bffhq", "size[ =]64"),
            (("folder", "--set", "dataset.folder=other"), "other", r"(--name |dataset\.folder=)other"),
        ],
    )
    def test_settings_are_in_it(self, tmp_path: Path, words: tuple[str, ...], path: str, told: str) -> None:
        outcome = call("train-poe", "--device", "cpu", "--dataset", *words)
        refused(3, outcome, tmp_path / "data" / path)
        assert re.search(told, " ".join(remedy(outcome.err, tmp_path))), outcome.err

    def test_it_makes_what_was_missing(self, tmp_path: Path) -> None:
        source = class_folders(tmp_path / "images", {"train": 8, "test": 3})
        outcome = call("train-poe", *tiny("my other"))
        refused(3, outcome, "cannot be downloaded")
        good(*remedy(outcome.err, source))
        assert [path.name for path in (tmp_path / "data").iterdir()] == ["my other"]
        assert call("train-poe", *tiny("my other")).code == 0

    def test_replacing_one_leaves_the_others(self, tmp_path: Path) -> None:
        source = class_folders(tmp_path / "images", {"train": 8, "test": 3})
        for name in ("mine", "other"):
            good("make-data", "folder", "--source", source, "--size", 16, "--name", name)
        before = (tmp_path / "data" / "mine" / "manifest.json").read_bytes()
        outcome = call("make-data", "folder", "--source", source, "--size", 24, "--name", "other")
        refused(3, outcome, "size 16, asked for 24", "--force")
        good(*remedy(outcome.err.partition("To replace it")[2], source))
        assert (tmp_path / "data" / "mine" / "manifest.json").read_bytes() == before, "it was `other` to replace"
        assert "24x24" in good("make-data", "folder", "--name", "other", "--size", 24).out
