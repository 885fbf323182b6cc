"""`denetdm make-data` on Colored MNIST."""

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_support import Outcome, call, contents, good, no_leftovers, refused
from PIL import Image

from denetdm_cli.data.raw.mnist import MNIST_FILES


class TestMakeData:
    def write_idx(self, folder: Path, change: Callable[[int, bytes], tuple[str, bytes]]) -> Path:
        """Four files that begin as those of MNIST do; `change` gives suffix and content of each."""
        folder.mkdir()
        for number, file in enumerate(MNIST_FILES):
            suffix, content = change(number, file.header + bytes(1000))
            (folder / f"{file.name}{suffix}").write_bytes(content)
        return folder

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda n, content: ("", content), ["train-images-idx3-ubyte", "is cut off"]),
            (lambda n, content: ("", content[:7]), ["train-images-idx3-ubyte", "is cut off"]),
            (lambda n, content: ("", b""), ["train-images-idx3-ubyte", "starts with nothing"]),
            (lambda n, content: (".gz", gzip.compress(content)[:-20]), ["train-images-idx3-ubyte.gz", "is cut off"]),
            (lambda n, content: (".gz", gzip.compress(content)[:20] + b"x" * 20), ["-ubyte.gz", "is damaged (gzip"]),
            (lambda n, content: ("", b"<html>" + content), ["train-images-idx3-ubyte", "is not the idx file"]),
            (lambda n, content: ("", content[:4] + b"\0\0\0\x05" + content[8:]), ["5x28x28", "60000x28x28"]),
            (lambda n, content: ("" if n else ".bak", content), ["has no train-images-idx3-ubyte"]),
        ],
    )
    def test_an_idx_file_that_is_not_whole(
        self, tmp_path: Path, change: Callable[[int, bytes], tuple[str, bytes]], words: list[str]
    ) -> None:
        source = self.write_idx(tmp_path / "mnist", change)
        before = contents(tmp_path)
        for command in (["make-data", "coloredmnist"], ["train-poe", "--dataset", "coloredmnist"]):
            refused(3, call(*command, "--source", source), f"MNIST source {source}", *words, "(each may end in .gz)")
        assert contents(tmp_path) == before
        assert no_leftovers(tmp_path)

    def test_a_source_that_is_not_there(self, tmp_path: Path) -> None:
        refused(3, call("make-data", "coloredmnist", "--source", "nowhere"), "source nowhere does not exist")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("name", ["colormnist", "mnist"])
    def test_an_unknown_data_set(self, name: str) -> None:
        refused(2, call("make-data", name), f"unknown data set or preset '{name}'", "coloredmnist")

    def test_what_is_there_is_shown_and_kept(self, data: Path, tmp_path: Path) -> None:
        before = contents(data)
        outcome = good("make-data", "coloredmnist", "--ratio", 0.1, "--preview", "sheet.png")
        assert "was there already" in outcome.out
        assert str(data.parent.name) in outcome.out
        assert "Digest " in outcome.out
        assert contents(data) == before
        with Image.open(tmp_path / "sheet.png") as sheet:
            assert sheet.format == "PNG"

    def test_other_settings_are_refused(self, data: Path, train: Callable[..., Outcome]) -> None:
        before = contents(data)
        for outcome in (
            call("make-data", "coloredmnist", "--ratio", 0.1, "--seed", 7),
            train("--set", "dataset.seed=7", "--data-root", data.parent),
        ):
            refused(3, outcome, data.name, "made with other settings: seed 0, asked for 7", "--force")
        assert contents(data) == before
