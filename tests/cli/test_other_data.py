"""`evaluate` on data other than what a model was trained on, several models, and splits that lack something."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_support import call, good, refused
from own_images import CLASSES, PLACES, class_folders, only_numbers, require_numbers, strict, table, tiny

SPLITS = {"train": [[2, 3, 9], [8, 2, 2]], "test": [[2, 2, 3], [3, 2, 2]]}
SOURCES: dict[str, Callable[[Path], Path]] = {
    "plain": lambda root: class_folders(root, {"train": 12, "test": 5}),
    "biased": lambda root: table(root, SPLITS, ("path", "label", "bias", "split")),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data sets `plain`, without bias labels, and `biased`, with three bias values, and two models of each."""
    folder = tmp_path_factory.mktemp("models")
    for name, source in SOURCES.items():
        root = ("--data-root", folder / "data")
        good("make-data", "folder", "--source", source(folder / name), "--size", 16, "--name", name, *root)
        for seed in (0, 1):
            good("train-poe", *tiny(name, *root, "--out", folder / "runs", "--seed", seed))
    return folder


def of_another_tool(folder: Path, biases: int) -> Path:
    """A data set folder as LfF's code writes it: no manifest, and so no names."""
    random = np.random.RandomState(0)
    for split, count in (("train", 12), ("valid", 40)):
        (folder / split).mkdir(parents=True)
        np.save(folder / split / "images.npy", random.randint(0, 256, (count, 16, 16, 3)).astype(np.uint8))
        labels = [np.arange(count) % 2, np.arange(count) // 2 % biases] if biases else [np.arange(count) % 2]
        np.save(folder / split / "attrs.npy", np.stack(labels, axis=1).astype(np.int64))
    return folder


def metrics_of(*words: object) -> Any:
    return strict(good("evaluate", *words, "--json").out)["results"][0]["metrics"]["shallow"]


class TestOtherData:
    @pytest.mark.parametrize("biases", [0, 2, 3, 5])
    @pytest.mark.parametrize("trained_on", SOURCES)
    def test_of_another_tool(self, home: Path, tmp_path: Path, trained_on: str, biases: int) -> None:
        other = of_another_tool(tmp_path / "other", biases)
        model = home / "runs" / trained_on / "seed0"
        metrics = metrics_of(model, "--data", other)
        assert (metrics["groups"] is None) is (biases == 0)
        shown = good("evaluate", model, "--data", other).out
        assert only_numbers(shown)
        if biases:
            assert np.array(metrics["groups"]).shape == (2, biases)
            heading = next(line for line in shown.splitlines() if line.split()[:1] == ["target"])
            assert len(heading.split()) == 1 + biases, f"each column of groups has a name: {heading}"

    @pytest.mark.parametrize(("trained_on", "other", "judged"), [("plain", "biased", True), ("biased", "plain", False)])
    def test_of_ours(self, home: Path, trained_on: str, other: str, judged: bool) -> None:
        model, data = home / "runs" / trained_on / "seed0", home / "data" / other
        metrics = metrics_of(model, "--data", data)
        assert (metrics["groups"] is not None) is judged, "what can be judged is up to the data, not to the model"
        shown = good("evaluate", model, "--data", data).out
        assert ("worst group" in shown) is judged
        assert all((place in shown) is judged for place in PLACES)

    def test_raw_images_are_no_data_set(self, home: Path) -> None:
        outcome = call("evaluate", home / "runs" / "plain" / "seed0", "--data", home / "plain")
        refused(3, outcome, home / "plain", "make-data")


class TestMeans:
    def test_without_bias_labels(self, home: Path) -> None:
        runs = [home / "runs" / "plain" / f"seed{seed}" for seed in (0, 1)]
        shown = good("evaluate", *runs).out
        assert "accuracy*" in shown
        assert "worst class" in shown
        assert not any(word in shown for word in ("unbiased", "aligned", "conflicting", "worst group"))
        assert only_numbers(shown)
        summary = strict(good("evaluate", *runs, "--json").out)["summary"]
        assert all(metrics.keys() == {"accuracy", "worst_class"} for metrics in summary.values())

    def test_with_bias_labels(self, home: Path) -> None:
        runs = [home / "runs" / "biased" / f"seed{seed}" for seed in (0, 1)]
        shown = good("evaluate", *runs).out
        assert all(word in shown for word in ("unbiased", "accuracy*", "aligned", "conflicting", "worst group"))

    def test_of_different_data(self, home: Path) -> None:
        runs = [home / "runs" / name / "seed0" for name in SOURCES]
        refused(2, call("evaluate", *runs), "no mean over checkpoints of different training data")


class TestSplitsThatLackSomething:
    def made(self, splits: dict[str, list[list[int]]], *more: str) -> Path:
        source = table(Path.cwd() / "images", splits, ("path", "label", "split", *more))
        good("make-data", "folder", "--source", source, "--size", 16)
        return Path.cwd() / "runs" / "mine" / "seed0"

    def test_a_class_without_a_test_image(self) -> None:
        run = self.made(SPLITS | {"test": [[2, 2, 3], [0, 0, 0]]}, "bias")
        good("train-poe", *tiny("mine"))
        good("distill", run, "--epochs", 1, "--batch-size", 8)
        require_numbers(run)
        metrics = strict(good("evaluate", run, "--json").out)["results"][0]["metrics"]["target"]
        assert metrics["groups"][1] == [None, None, None]
        assert metrics["worst_class_of"] == 0, "a class without images is not the worst one"
        shown = good("evaluate", run).out
        assert "3 of 6 groups have no image here" in shown
        assert only_numbers(shown)

    def test_a_valid_split_without_a_conflicting_image(self) -> None:
        """There is nothing to select by: no figure becomes NaN, and of equal epochs the first is kept."""
        run = self.made(SPLITS | {"valid": [[0, 0, 4], [4, 0, 0]]}, "bias")
        outcome = call("train-poe", *tiny("mine", "--set", "train_poe.selection_metric=shallow.conflicting"))
        if outcome.code == 2:  # to refuse it is as good
            refused(2, outcome, "shallow.conflicting")
            return
        assert outcome.code == 0, outcome
        require_numbers(run)
        assert strict((run / "train-poe" / "results.json").read_text())["rules"]["valid"]["epoch"] == 1

    def test_too_few_images_to_select_on(self) -> None:
        self.made({"train": [[8], [8]], "test": [[1], [1]]})
        outcome = call("train-poe", *tiny("mine"))
        refused(3, outcome, "test of ", "no group with two images or more", "at least two images")
        assert not Path("runs").exists()

    def test_a_test_split_of_two_images_beside_a_valid_one(self) -> None:
        run = self.made({"train": [[8], [8]], "valid": [[1], [1]], "test": [[1], [1]]})
        good("train-poe", *tiny("mine", "--select", "valid"))
        assert "2 images" in good("evaluate", run).out


class TestNames:
    NAMES = ("[bold]black", "[red]", "größe :smile:")

    def test_what_looks_like_markup_is_shown_as_it_is(self, tmp_path: Path) -> None:
        source = class_folders(tmp_path / "[images]", {"train": 8, "test": 3}, classes=self.NAMES)
        shown = [good("make-data", "folder", "--source", source, "--size", 16, "--name", "mine")]
        shown += [good("validate", source), good("validate", tmp_path / "data" / "mine")]
        assert all(name in outcome.out for name in self.NAMES for outcome in shown)
        assert (tmp_path / "[images]-sheet.png").is_file()
        good("train-poe", *tiny("mine"))
        result = strict(good("evaluate", tmp_path / "runs" / "mine" / "seed0", "--json").out)["results"][0]
        assert result["evaluated_on"]["class_names"] == sorted(self.NAMES)
        worst = result["metrics"]["shallow"]["worst_class_of"]
        assert f"({sorted(self.NAMES)[worst]})" in good("evaluate", tmp_path / "runs" / "mine" / "seed0").out

    def test_bias_values_that_look_like_markup(self, tmp_path: Path) -> None:
        source = table(tmp_path / "images", SPLITS, ("path", "label", "bias", "split"))
        source.write_text(source.read_text().replace("barn", "[bold]").replace("home", "[/]").replace("park", "p,x"))
        source.write_text(source.read_text().replace("p,x", '"p,x"'))
        good("make-data", "folder", "--source", source, "--size", 16)
        good("train-poe", *tiny("mine"))
        shown = good("evaluate", tmp_path / "runs" / "mine" / "seed0").out
        assert all(name in shown for name in ("[bold]", "[/]", "p,x", *CLASSES)), shown

    def test_paths_with_spaces_come_quoted(self, tmp_path: Path) -> None:
        source = class_folders(tmp_path / "my images", {"train": 8, "test": 3})
        good("make-data", "folder", "--source", source, "--size", 16, "--name", "my data")
        outcome = good("train-poe", *tiny("my data"))
        assert "Next: denetdm distill 'runs/my data/seed0'" in outcome.out
        assert os.listdir(tmp_path / "runs") == ["my data"]  # noqa: PTH208
        run = tmp_path / "runs" / "my data" / "seed0"
        distilled = good("distill", run, "--epochs", 1, "--batch-size", 8)
        assert "Next: denetdm evaluate 'runs/my data/seed0/distill'" in distilled.out
