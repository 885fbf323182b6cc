"""Tables and folders that cannot be imported, and stopped imports: nothing half-written stays."""

import errno
import os
import signal
import tempfile
from pathlib import Path

import pytest
from bad_sources import MAKE, is_refused, zipped
from cli_support import call, child, contents, good, no_leftovers, refused
from own_images import class_folders, paint, table, written_table

from denetdm_cli.data.writer import SplitWriter


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where archives are unpacked to."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def rows_of(**columns: list[str]) -> list[dict[str, str]]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


class TestTables:
    @pytest.fixture
    def images(self, tmp_path: Path) -> Path:
        for k in range(4):
            paint(tmp_path / "images" / f"{k}.png", k % 2, 0, k)
        return tmp_path / "images"

    @pytest.mark.parametrize(
        ("columns", "words"),
        [
            (
                {"path": ["0.png", "9.png", "8.png"], "label": ["a", "b", "a"]},
                ["no such file", "line 3: 9.png", "line 4: 8.png"],
            ),
            ({"path": ["0.png", "1.png"], "label": ["a", "b"], "colour": ["r", "g"]}, ["unknown column 'colour'"]),
            ({"path": ["0.png", "1.png"], "class": ["a", "b"]}, ["no column label", "unknown column 'class'"]),
            (
                {"path": ["0.png", "1.png", "./0.png"], "label": ["a", "b", "a"]},
                ["has a second row", "line 4: ./0.png, as line 2"],
            ),
            ({"path": ["0.png", "1.png"], "label": ["a", "a"]}, ["has one class only: a"]),
            (
                {"path": ["0.png", "1.png", "2.png"], "label": ["a", "b", "c"], "split": ["train", "train", "test"]},
                ["classes without a training image: c", "Add training images"],
            ),
            (
                {"path": ["0.png", "1.png"], "label": ["a", "b"], "split": ["train", "dev"]},
                ["split is not train, valid (or val) or test", "line 3: dev"],
            ),
            ({"path": ["0.png", "1.png"], "label": ["a", ""]}, ["no label", "line 3"]),
            (
                {"path": ["0.png", "1.png"], "label": ["a", "b"], "bias": ["x", ""]},
                ["no bias, while others of the same split have one", "line 3"],
            ),
            ({"path": ["0.png", "1.png"], "label": ["a", "b"]}, ["one image a class", "Add images"]),
        ],
    )
    def test_what_does_not_fit(
        self, images: Path, tmp_path: Path, columns: dict[str, list[str]], words: list[str]
    ) -> None:
        file = written_table(images / "labels.csv", rows_of(**columns), list(columns))
        is_refused(tmp_path, file, file, *words)

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"", ["no column path", "no column label"]),
            (b"path,label\n", ["has no rows"]),
            (b"path,label\n0.png,a,x\n", ["line 2: 3 values"]),
            (b"path,label\n0.png,\xff\xfe\n", ["cannot be read as a table"]),
            (b'path,label\n"0.png,a\n', ["cannot be read as a table"]),
            (b"path;label\n0.png;a\n1.png;b\n", ["no column path", "separated by commas"]),
        ],
    )
    def test_what_is_no_table(self, images: Path, tmp_path: Path, content: bytes, words: list[str]) -> None:
        (images / "labels.csv").write_bytes(content)
        is_refused(tmp_path, images / "labels.csv", "labels.csv", *words)

    def test_a_table_that_is_not_there(self, tmp_path: Path) -> None:
        is_refused(tmp_path, "nowhere.csv", "nowhere.csv")


class TestFolders:
    def test_one_class_only(self, tmp_path: Path) -> None:
        is_refused(tmp_path, class_folders(tmp_path / "images", {"train": 4}, classes=("cat",)), "one class only: cat")

    def test_a_class_without_a_training_image(self, tmp_path: Path) -> None:
        source = class_folders(tmp_path / "images", {"train": 3, "test": 2})
        paint(source / "test" / "fox" / "0.png", 2, 0, 0)
        is_refused(tmp_path, source, "classes without a training image: fox")

    @pytest.mark.parametrize("name", ["../mine", "a/b", ".hidden", "", "/abs"])
    def test_names_that_lead_elsewhere(self, tmp_path: Path, name: str) -> None:
        source = class_folders(tmp_path / "images", {"": 4})
        before = contents(tmp_path)
        refused(2, call(*MAKE, "--source", source, "--name", name), "dataset.folder", "plain name")
        assert contents(tmp_path) == before

    def test_a_name_that_is_taken_by_something_else(self, tmp_path: Path) -> None:
        source = class_folders(tmp_path / "images", {"": 4})
        (tmp_path / "data" / "mine").mkdir(parents=True)
        (tmp_path / "data" / "mine" / "thesis.txt").write_text("precious")
        before = contents(tmp_path)
        for more in ((), ("--force",)):
            refused(3, call(*MAKE, "--source", source, *more), "is not a data set folder", "left as it is")
        assert contents(tmp_path) == before


class TestStoppedImports:
    READING = """
import os, signal, sys, threading
from denetdm_cli.data.importers import pack as importing
read, lock, count = importing.read_image, threading.Lock(), 0
def reading(*words, **more):
    global count
    with lock:
        count += 1
        if count > 20:
            os.kill(os.getpid(), signal.SIGKILL)
    return read(*words, **more)
importing.read_image = reading
"""
    COMMAND = "from denetdm_cli.cli import app as cli; cli.main()"
    CORE = """
from pathlib import Path
from denetdm_cli.config.load import load_config, preset_path
from denetdm_cli.data.registry import ensure_datasets
class Silent:
    def info(self, line): pass
    def advance(self, what, done, total): pass
options = {"dataset.size": 16, "dataset.root": str(Path("data").resolve())}
wanted = load_config(preset_path("folder"), (), options)
ensure_datasets([wanted.dataset], source=Path(sys.argv[1]), force=True, reporter=Silent())
"""

    def killed(self, code: str, *words: object) -> None:
        """Run code in a process that is killed while it reads the 21st image."""
        environment = os.environ | {"TMPDIR": tempfile.gettempdir()}
        done = child("-c", self.READING + code, *words, env=environment)
        assert done.returncode == -signal.SIGKILL, done

    @pytest.mark.slow
    def test_the_same_command_after_a_kill(self, tmp_path: Path) -> None:
        source = table(tmp_path / "images", {"": [[6, 6, 18], [16, 6, 6]]}, ("path", "label", "bias"))
        command = (*MAKE, "--source", source)
        good(*command, "--data-root", "straight")
        self.killed(self.COMMAND, *command)
        assert not (tmp_path / "data" / "mine").exists(), "what is half-made has no name that anyone would open"
        refused(3, call("train-poe", "--dataset", "folder", "--device", "cpu", "--set", "dataset.size=16"), "mine")
        assert "made now" in good(*command).out
        assert no_leftovers(tmp_path), "what the killed process left is cleared away"
        assert contents(tmp_path / "data") == contents(tmp_path / "straight")

    @pytest.mark.slow
    def test_force_keeps_what_is_there_until_the_new_one_is_whole(self, tmp_path: Path) -> None:
        good(*MAKE, "--source", class_folders(tmp_path / "old", {"train": 5, "test": 2}))
        before = contents(tmp_path / "data" / "mine")
        new = class_folders(tmp_path / "new", {"train": 15, "test": 5})
        self.killed(self.CORE, new)  # what the command does, without its long imports
        assert contents(tmp_path / "data" / "mine") == before
        good("validate", tmp_path / "data" / "mine")
        good(*MAKE, "--source", new, "--force")
        assert contents(tmp_path / "data" / "mine") != before
        assert no_leftovers(tmp_path)

    @pytest.mark.parametrize(
        ("error", "code", "words"),
        [
            (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 7, ["No space left on device", "Make room"]),
            (KeyboardInterrupt(), 130, ["nothing is half-made"]),
        ],
    )
    def test_a_full_disk_and_ctrl_c(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, words: list[str]
    ) -> None:
        source = class_folders(tmp_path / "images", {"train": 8, "test": 3})
        before = contents(tmp_path)

        def stop(*_: object) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(SplitWriter, "close", stop)
            outcome = call(*MAKE, "--source", source)
        assert (outcome.code, outcome.out) == (code, "")
        assert all(word in outcome.err for word in words), outcome.err
        assert "Traceback" not in outcome.err
        assert contents(tmp_path) == before
        assert no_leftovers(tmp_path)
        good(*MAKE, "--source", source)


class TestAnotherSource:
    def sources(self, root: Path, kind: str) -> tuple[Path, Path]:
        """Two of a kind that do not hold the same."""
        if kind == "table":
            tables = [table(root / f"table{n}", {"": [[6, n], [6, 6]]}, ("path", "label")) for n in (6, 7)]
            return tables[0], tables[1]
        folders = [class_folders(root / f"folder{n}", {"train": n, "test": 2}) for n in (5, 6)]
        if kind == "archive":
            files = [{str(p.relative_to(f)): p.read_bytes() for p in sorted(f.rglob("*.png"))} for f in folders]
            return zipped(root / "a.zip", files[0]), zipped(root / "b.zip", files[1])
        return folders[0], folders[1]

    @pytest.mark.parametrize("kind", ["folder", "table", "archive"])
    def test_of_the_same_name(self, tmp_path: Path, kind: str) -> None:
        first, second = self.sources(tmp_path, kind)
        assert "made now" in good(*MAKE, "--source", first).out
        before = contents(tmp_path)
        assert "was there already" in " ".join(good(*MAKE, "--source", first).out.split())
        words = (
            "was imported from other files than",
            second,
            "images then, ",
            "sizes of files differ",
            "--name",
            "--force",
        )
        refused(3, call(*MAKE, "--source", second), tmp_path / "data" / "mine", *words)
        training = ("--dataset", "folder", "--device", "cpu", "--set", "dataset.size=16")
        refused(3, call("train-poe", *training, "--source", second), *words)
        assert contents(tmp_path) == before
        assert "made now" in good(*MAKE, "--source", second, "--name", "other").out
        assert "made now" in good(*MAKE, "--source", second, "--force").out

    def test_other_settings(self, tmp_path: Path) -> None:
        source = class_folders(tmp_path / "images", {"": 10})
        good(*MAKE, "--source", source)
        before = contents(tmp_path)
        refused(3, call("make-data", "folder", "--size", 24, "--source", source), "size 16, asked for 24", "--force")
        outcome = call(*MAKE, "--source", source, "--set", "dataset.test_share=0.5")
        refused(3, outcome, "test_share 0.2, asked for 0.5")
        advice = "To train on it as it is: `--set dataset.size=16`. To replace it: `denetdm make-data folder "
        refused(3, call("train-poe", "--dataset", "folder", "--device", "cpu"), "size 16, asked for 224", advice)
        outcome = call("make-data", "folder", "--set", "dataset.test_share=0.5", "--set", "dataset.fit=stretch")
        advice = "`--set dataset.size=16 --set dataset.fit=crop --set dataset.test_share=0.2`"
        refused(3, outcome, "fit 'crop', asked for 'stretch'", "test_share 0.2, asked for 0.5", advice)
        assert contents(tmp_path) == before

    def test_another_data_set_under_its_name(self, tmp_path: Path) -> None:
        source = class_folders(tmp_path / "images", {"": 10})
        good(*MAKE, "--source", source, "--name", "bffhq")
        before = contents(tmp_path)
        outcome = call("train-poe", "--dataset", "bffhq", "--device", "cpu")
        said = f"{tmp_path / 'data' / 'bffhq'} holds another data set: folder, asked for bffhq."
        refused(3, outcome, said, "To train on it: `--dataset folder --set dataset.folder=bffhq`.")
        assert "dataset.fit" not in outcome.err, "no other setting makes it the one that was asked for"
        assert contents(tmp_path) == before
        (tmp_path / "data" / "bffhq" / "manifest.json").write_bytes(
            (tmp_path / "data" / "bffhq" / "manifest.json").read_bytes().replace(b'"folder"', b'"bffhq"')
        )
        outcome = call(*MAKE, "--source", source, "--name", "bffhq")
        refused(3, outcome, "holds another data set: bffhq, asked for folder", "To train on it: `--dataset bffhq`.")
