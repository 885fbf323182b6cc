"""Images of one's own from import to evaluation, with and without bias labels and splits."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from cli_support import call, good, no_leftovers, plain, refused
from own_images import CLASSES, class_folders, only_numbers, paint, require_numbers, strict, table, tiny

from denetdm_cli.data.store import open_dataset
from denetdm_cli.data.writer import new_dataset

GROUPS = [[2, 3, 9], [8, 2, 2]]  # cats mostly in the park, dogs mostly in the barn
SPLITS = {"train": GROUPS, "valid": [[2, 2, 2], [2, 2, 2]], "test": [[2, 2, 3], [3, 2, 2]]}
ALL = {"": [[6, 6, 18], [16, 6, 6]]}
LABELLED = ("unbiased", "aligned", "conflicting", "worst group")

SOURCES: dict[str, Callable[[Path], Path]] = {
    "folders": lambda root: class_folders(root, {"": 20}),
    "folders with splits": lambda root: class_folders(root, {"train": 12, "val": 4, "test": 5}),
    "table": lambda root: table(root, ALL, ("path", "label")),
    "table with splits": lambda root: table(root, SPLITS, ("path", "label", "split")),
    "table with bias": lambda root: table(root, ALL, ("path", "label", "bias")),
    "table with bias and splits": lambda root: table(root, SPLITS, ("split", "bias", "label", "path")),
}  # fmt: skip


def made(source: Path, name: str = "mine", *more: object) -> Path:
    """The data set folder that an import makes."""
    good("make-data", "folder", "--source", source, "--name", name, "--size", 16, *more)
    return Path.cwd() / "data" / name


def results(folder: Path) -> Any:
    return strict((folder / "results.json").read_text())


def scored(*words: object) -> Any:
    """What `evaluate --json` says of one checkpoint."""
    (result,) = strict(good("evaluate", *words, "--device", "cpu", "--json").out)["results"]
    return result


class TestFromImportToEvaluation:
    @pytest.mark.parametrize("kind", SOURCES)
    def test_every_kind_of_source(self, tmp_path: Path, kind: str) -> None:
        source = SOURCES[kind](tmp_path / "images")
        biased = "bias" in kind
        imported = good("make-data", "folder", "--source", source, "--name", "mine", "--size", 16)
        assert "made now" in imported.out
        assert ("No bias labels" in imported.out) is not biased
        assert ("drawn with seed 0" in imported.err) is ("splits" not in kind), "a drawing must be said, and only then"
        outputs = [imported, good("train-poe", *tiny("mine"))]
        run = tmp_path / "runs" / "mine" / "seed0"
        outputs += [good("distill", run, "--epochs", 2, "--batch-size", 8), good("evaluate", run)]
        outputs += [good("evaluate", run / "train-poe", "--predictions", "p.csv", "--json")]
        for outcome in outputs:
            for text in (outcome.out, outcome.err):
                assert only_numbers(text), text
                assert plain(text)
        for outcome in outputs[1:4]:
            assert ("worst class" in outcome.out) is not biased, "the worst class is shown where no group can be"
            assert all((word in outcome.out) is biased for word in LABELLED), outcome.out
            assert "accuracy*" in outcome.out, "the figure to report is marked"
        require_numbers(run)
        assert no_leftovers(tmp_path)

        dataset = open_dataset(tmp_path / "data" / "mine")
        (result,) = strict(outputs[-1].out)["results"]
        assert result["reported_metric"] == "accuracy"
        for metrics in result["metrics"].values():
            given = {key for key, value in metrics.items() if value is not None}
            assert given >= {"accuracy", "worst_class", "worst_class_of"}
            assert (given >= {"unbiased", "aligned", "conflicting", "worst_group", "groups"}) is biased
            assert biased or given == {"accuracy", "worst_class", "worst_class_of"}
        with (tmp_path / "p.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [int(row["target"]) for row in rows] == dataset.evaluation.target.tolist()
        expected = [""] * len(rows) if dataset.evaluation.bias is None else map(str, dataset.evaluation.bias.tolist())
        assert [row["bias"] for row in rows] == list(expected), "an unknown bias is an empty cell"

    @pytest.mark.parametrize("rule", ["valid", "paper"])
    @pytest.mark.parametrize("biased", [False, True])
    def test_selection_without_bias_labels(self, tmp_path: Path, rule: str, biased: bool) -> None:
        columns = ("path", "label", "split", "bias") if biased else ("path", "label", "split")
        made(table(tmp_path / "images", SPLITS, columns))
        metrics = ("--set", "train_poe.selection_metric=product.worst_class")
        good("train-poe", *tiny("mine", "--epochs", 3, *metrics, "--select", rule))
        run = tmp_path / "runs" / "mine" / "seed0"
        good("distill", run, "--epochs", 2, "--batch-size", 8, "--set", "distill.selection_metric=target.accuracy")
        for stage, metric in (("train-poe", "product.worst_class"), (f"distill-from-{rule}", "target.accuracy")):
            kept = results(run / stage)["rules"][rule]
            assert (kept["metric"], kept["used_bias_labels"]) == (metric, False)
            part = {"valid": "valid", "paper": "evaluation"}[rule]
            records = [strict(line) for line in (run / stage / "metrics.jsonl").read_text().splitlines()]
            figures = [record[part][metric.split(".")[0]][metric.split(".")[1]] for record in records]
            assert kept["epoch"] == 1 + figures.index(max(figures)), "of equal epochs the first"
            said = scored(run / stage)["selection"]
            assert (said["rule"], said["used_bias_labels"]) == (rule, False)
            assert said["selected_on_test_data"] is (rule == "paper")

    def test_valid_without_bias_labels_selects_by_accuracy_beside_a_test_split_with_them(self, tmp_path: Path) -> None:
        source = table(tmp_path / "images", SPLITS, ("path", "label", "split", "bias"))
        source.write_text(re.sub(r",valid,\w+", ",valid,", source.read_text()))
        made(source)
        metric = ("--set", "train_poe.selection_metric=shallow.conflicting")
        good("train-poe", *tiny("mine", *metric, "--epochs", 8, "--seed", 1))
        folder = tmp_path / "runs" / "mine" / "seed1" / "train-poe"
        kept = results(folder)["rules"]["valid"]
        records = [strict(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        figures = [record["valid"]["shallow"]["accuracy"] for record in records]
        assert kept["metric"] == "shallow.accuracy"
        assert kept["epoch"] == 1 + figures.index(max(figures))
        assert kept["epoch"] > 1, "or keeping the first epoch would not show"

    def test_a_class_that_is_not_tested_is_told(self, tmp_path: Path) -> None:
        source = table(
            tmp_path / "images", {"train": GROUPS, "test": [[2, 2, 2], [0, 0, 0]]}, ("path", "label", "split")
        )
        assert "Split test has no image of dog" in good("make-data", "folder", "--source", source, "--size", 16).err
        good("train-poe", *tiny("mine"))
        out = good("evaluate", tmp_path / "runs" / "mine" / "seed0").out
        assert "No image here of dog; the worst class is one of the others." in out

    def test_images_that_picked_the_epoch_are_those_of_the_own_valid_split(self, tmp_path: Path) -> None:
        source = table(tmp_path / "images", SPLITS, ("path", "label", "split", "bias"))
        made(source)
        good("train-poe", *tiny("mine", "--select", "valid"))
        swapped = source.with_name("swapped.csv")
        other = {"valid": "test", "test": "valid"}
        swapped.write_text(re.sub(",(valid|test),", lambda found: f",{other[found[1]]},", source.read_text()))
        made(swapped, "swapped")
        fewer = source.with_name("fewer.csv")
        fewer.write_text(re.sub(r".*,valid,.*\n", "", source.read_text(), count=1))
        made(fewer, "fewer")

        def picked_on(name: str, part: str) -> bool | None:
            words = ("--data", tmp_path / "data" / name, "--split", part, "--json")
            (result,) = json.loads(good("evaluate", tmp_path / "runs" / "mine" / "seed0", *words).out)["results"]
            return cast("bool | None", result["selected_on_these_images"])

        assert picked_on("mine", "valid") is True
        assert picked_on("mine", "test") is False
        assert picked_on("fewer", "valid") is None, "the images of its test split alone are the same"
        assert picked_on("swapped", "valid") is None, "images of one source may be in any split of another draw"

    def test_selection_with_bias_labels_says_so(self, tmp_path: Path) -> None:
        made(table(tmp_path / "images", SPLITS, ("path", "label", "split", "bias")))
        good("train-poe", *tiny("mine", "--set", "train_poe.selection_metric=shallow.conflicting"))
        rules = results(tmp_path / "runs" / "mine" / "seed0" / "train-poe")["rules"]
        assert {rule: kept["used_bias_labels"] for rule, kept in rules.items()} == {
            "last": False,
            "valid": True,
            "paper": True,
        }

    @pytest.mark.parametrize("metric", ["shallow.conflicting", "shallow.unbiased", "product.worst_group"])
    def test_a_metric_that_needs_bias_labels_is_refused(self, tmp_path: Path, metric: str) -> None:
        made(class_folders(tmp_path / "images", {"": 10}))
        outcome = call("train-poe", *tiny("mine", "--set", f"train_poe.selection_metric={metric}"))
        instead = f"--set train_poe.selection_metric={metric.split('.')[0]}.accuracy"
        refused(2, outcome, f"train_poe.selection_metric: '{metric}' needs bias labels", "test", "has none", instead)
        assert not (tmp_path / "runs").exists()

    def test_stage_2_refuses_such_a_metric_too(self, tmp_path: Path) -> None:
        made(class_folders(tmp_path / "images", {"": 10}))
        good("train-poe", *tiny("mine"))
        run = tmp_path / "runs" / "mine" / "seed0"
        options = ("--epochs", 1, "--batch-size", 8, "--set", "distill.selection_metric=target.unbiased")
        instead = "--set distill.selection_metric=target.accuracy"
        # No more than what is wrong: the warning on the branches of the teacher may come before it.
        outcome = call("distill", run, *options)
        refused(2, outcome, "distill.selection_metric: 'target.unbiased' needs bias labels", instead)
        assert not (run / "distill").exists()


class TestGroups:
    """Data sets whose groups are not as many as the square of the classes."""

    def test_aligned_is_the_commonest_bias_value_of_a_class(self, tmp_path: Path) -> None:
        path = made(table(tmp_path / "images", SPLITS, ("path", "label", "bias", "split")))
        manifest = json.loads((path / "manifest.json").read_text())
        assert (manifest["class_names"], manifest["bias_names"]) == (["cat", "dog"], ["barn", "home", "park"])
        assert manifest["aligned"] == [2, 0]
        assert manifest["splits"]["train"]["group_counts"] == GROUPS
        good("train-poe", *tiny("mine"))
        result = scored(tmp_path / "runs" / "mine" / "seed0")
        for metrics in result["metrics"].values():
            groups = np.array(metrics["groups"])
            assert groups.shape == (2, 3)
            aligned = [groups[0, 2], groups[1, 0]]
            assert metrics["aligned"] == pytest.approx(np.mean(aligned))
            assert metrics["conflicting"] == pytest.approx((groups.sum() - sum(aligned)) / 4)
            assert metrics["unbiased"] == pytest.approx(groups.mean())
            assert metrics["worst_group"] == groups.min() == groups[tuple(metrics["worst_group_of"])]
        table_of_groups = good("evaluate", tmp_path / "runs" / "mine" / "seed0").out.partition("accuracy by group")[2]
        assert all(name in table_of_groups for name in (*CLASSES, "barn", "home", "park"))

    def judged_but_not_taught(self, name: str) -> Path:
        """A data set folder of 2 classes and 3 bias values whose training images nobody labelled with a bias."""
        settings = {"name": "folder", "size": 16, "fit": "crop", "valid_share": 0.1, "test_share": 0.2, "seed": 0}
        path = Path.cwd() / "data" / name
        path.parent.mkdir(exist_ok=True)
        random = np.random.RandomState(0)
        with new_dataset(path, replace=False) as writer:
            for split, count in (("train", 32), ("test", 24)):
                target = (np.arange(count) % 2).astype(np.uint8)
                bias = (np.arange(count) // 2 % 3).astype(np.uint8) if split == "test" else None
                with writer.split(split) as out:
                    out.add(random.randint(0, 256, (count, 16, 16, 3)).astype(np.uint8), target, bias)
            writer.describe(
                recipe=settings,
                attribute_names=("label", "bias"),
                class_names=("cat", "dog"),
                bias_names=("barn", "home", "park"),
                aligned=(2, 0),
            )
        return path

    def test_bias_labels_in_the_evaluation_split_alone(self, tmp_path: Path) -> None:
        path = self.judged_but_not_taught("judged")
        good("validate", path)
        metric = ("--set", "train_poe.selection_metric=shallow.conflicting")
        shown = good("train-poe", *tiny("judged", *metric, "--select", "valid")).out
        assert all(word in shown for word in LABELLED), "the evaluation split has what it takes to judge by group"
        run = tmp_path / "runs" / "judged" / "seed0"
        good("distill", run, "--epochs", 1, "--batch-size", 8)
        require_numbers(run)
        for split, judged in (("test", True), ("train", False)):
            outcome = good("evaluate", run, "--split", split)
            assert ("worst group" in outcome.out) is judged
            assert ("worst class" in outcome.out) is not judged
            metrics = scored(run, "--split", split, "--predictions", f"{split}.csv")["metrics"]["target"]
            assert (metrics["groups"] is not None) is judged
            rows = list(csv.DictReader((tmp_path / f"{split}.csv").read_text().splitlines()))
            assert ({row["bias"] for row in rows} == {""}) is not judged
        assert np.array(scored(run, "--split", "test")["metrics"]["target"]["groups"]).shape == (2, 3)

    def test_the_groups_of_an_import_are_counted_however_many(self, tmp_path: Path) -> None:
        """DFA's sets have a hundred groups."""
        root = tmp_path / "cifar10c"
        for label in range(10):
            for k in range(19):
                paint(root / "5pct" / "align" / str(label) / f"{k}_{label}_{label}.png", 0, 0, 100 * label + k)
            other = (label + 1) % 10
            paint(root / "5pct" / "conflict" / str(label) / f"{label}_{label}_{other}.png", 0, 1, label)
            paint(root / "5pct" / "valid" / f"{label}_{label}_3.png", 0, 1, 20 + label)
            paint(root / "test" / str(label) / f"{label}_{label}_{9 - label}.png", 0, 1, 40 + label)
        for again in ((), ("--force",)):
            imported = good("make-data", "cifar10c", "--ratio", 0.05, "--source", "cifar10c", *again).out
            for split in ("train", "valid", "test"):
                assert f"{split}: images by group" in imported
            train = imported.partition("train: images by group")[2].partition("valid: images by group")[0]
            rows = {line.split()[0]: line.split()[1:] for line in train.splitlines()[4:14]}
            assert rows["airplane"] == ["19", "1", *"--------"]
            assert rows["truck"] == ["1", *"--------", "19"]
        assert "images by group" not in good("make-data", "cifar10c", "--ratio", 0.05).out

    def test_bar_as_published(self, tmp_path: Path) -> None:
        kinds = ("climbing", "diving", "fishing", "pole vaulting", "racing", "throwing")
        for split, count in (("train", 4), ("test", 3)):
            for label, kind in enumerate(kinds):
                for k in range(count):
                    paint(tmp_path / "BAR" / split / f"{kind}_{k}.png", label % 3, label // 3, 10 * label + k)
        imported = good("make-data", "bar", "--source", "BAR", "--size", 16)
        assert "other place" in imported.out, "six classes and seven places fit on a screen"
        networks = ("--device", "cpu", "--epochs", 1, "--batch-size", 8, "--set", "dataset.size=16")
        branches = [
            word
            for branch in ("shallow", "deep", "target")
            for word in ("--set", f"model.{branch}={{name: mlp, depth: 3, width: 16}}")
        ]
        good("train-poe", "--dataset", "bar", *networks, *branches)
        run = tmp_path / "runs" / "bar" / "seed0"
        distilled = good("distill", run, "--epochs", 1, "--batch-size", 8)
        assert "conflicting*" in distilled.out
        require_numbers(run)
        metrics = scored(run)["metrics"]["target"]
        assert metrics["aligned"] is None, "all test images were taken in another place"
        assert metrics["conflicting"] == pytest.approx(metrics["unbiased"])
        assert np.array(metrics["groups"], dtype=float).shape == (6, 7)
        assert "aligned" in good("evaluate", run).out


VALID, TEST = 12, 20


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with both stages, its labels in valid the wrong way round: whoever counts them is found out."""
    home = tmp_path_factory.mktemp("own")
    class_folders(home / "images", {"train": 16, "test": TEST // 2})
    class_folders(home / "images", {"valid": VALID // 2}, classes=CLASSES[::-1])
    good("make-data", "folder", "--source", home / "images", "--size", 16, "--data-root", home / "data")
    words = ("--data-root", home / "data", "--out", home / "runs", "--epochs", 4, "--select", "valid")
    good("train-poe", *tiny("mine", *words))
    good("distill", home / "runs" / "mine" / "seed0", "--epochs", 4, "--batch-size", 8)
    return home / "runs" / "mine" / "seed0"


class TestOwnSplits:
    """Data sets with a split to select on and another one to report on."""

    @pytest.mark.parametrize("stage", ["train-poe", "distill-from-valid"])
    def test_the_rule_valid_selects_on_valid_and_reports_on_test(self, finished: Path, stage: str) -> None:
        folder = finished / stage
        document = results(folder)
        assert document["dataset"]["own_valid_split"] is True
        assert document["dataset"]["evaluation_split"] == "test"
        kept = document["rules"]["valid"]
        assert (kept["selected_on"], kept["reported_on"], kept["selected_on_test_data"]) == ("valid", "test", False)
        records = [strict(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        predictor = "shallow" if stage == "train-poe" else "target"
        figures = [record["valid"][predictor]["accuracy"] for record in records]
        assert kept["epoch"] == 1 + figures.index(max(figures))
        assert figures[-1] < 0.5 < records[-1]["test"][predictor]["accuracy"], "or the test shows nothing"
        for name, metrics in kept["metrics"].items():
            there = records[kept["epoch"] - 1]["test"][name]
            assert {key: metrics[key] for key in there} == there, "a figure reported is one of the test split"
        assert all(record["evaluation"] == record["test"] for record in records)

    @pytest.mark.parametrize(
        ("words", "part", "images", "seen"),
        [
            ((), "test", TEST, False),
            (("--split", "test"), "test", TEST, False),
            (("--split", "evaluation"), "evaluation", TEST, False),
            (("--split", "valid"), "valid", VALID, True),
            (("--split", "train"), "train", 32, False),
        ],
    )
    def test_what_is_evaluated(
        self, finished: Path, words: tuple[str, ...], part: str, images: int, seen: bool
    ) -> None:
        result = scored(finished, *words)
        assert (result["evaluated_on"]["split"], result["evaluated_on"]["images"]) == (part, images)
        assert result["evaluated_on"]["folder"] == ("test" if part == "evaluation" else part)
        assert result["selected_on_these_images"] is seen
        assert ("picked an epoch" in good("evaluate", finished, *words).out) is seen

    def test_other_rules_on_these_splits(self, finished: Path) -> None:
        stage_1 = finished / "train-poe"
        assert scored(stage_1, "--select", "paper")["selected_on_these_images"] is True
        assert scored(stage_1, "--select", "paper", "--split", "valid")["selected_on_these_images"] is False
        assert scored(stage_1, "--select", "last", "--split", "valid")["selected_on_these_images"] is False
        assert scored(stage_1, "--select", "last")["evaluated_on"]["images"] == TEST

    def test_figures_are_those_of_the_predictions(self, finished: Path, tmp_path: Path) -> None:
        for part in ("valid", "test"):
            result = scored(finished, "--split", part, "--predictions", "p.csv")
            rows = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
            right = [row["target"] == row["predicted_target"] for row in rows]
            assert result["metrics"]["target"]["accuracy"] == pytest.approx(np.mean(right))

    def test_a_lone_valid_is_what_is_reported(self, tmp_path: Path) -> None:
        made(class_folders(tmp_path / "images", {"train": 10, "valid": 10}))
        good("train-poe", *tiny("mine", "--select", "valid"))
        result = scored(tmp_path / "runs" / "mine" / "seed0")
        assert (result["evaluated_on"]["folder"], result["evaluated_on"]["images"]) == ("valid", 18), "but a tenth"
        assert scored(tmp_path / "runs" / "mine" / "seed0", "--split", "valid")["evaluated_on"]["images"] == 2

    def test_another_data_set_of_the_same_classes(self, finished: Path, tmp_path: Path) -> None:
        other = made(class_folders(tmp_path / "more", {"train": 4, "test": 6}), "other")
        result = scored(finished, "--data", other)
        # Nine tenths of its test split, for it has no valid split of its own.
        assert (result["evaluated_on"]["images"], result["selected_on_these_images"]) == (12, None)
        for words in ((), ("--split", "valid")):
            result = scored(finished / "train-poe", "--select", "paper", "--data", other, *words)
            assert result["selected_on_these_images"] is None, "images of a folder may be in two sets"
        shutil.rmtree(other)
        made(class_folders(tmp_path / "wrong", {"train": 4, "test": 6}, classes=("dog", "fox")), "other")
        refused(3, call("evaluate", finished, "--data", other), "has the classes dog, fox", "cat, dog", "same classes")
