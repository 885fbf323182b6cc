"""Which runs share a mean, what the means are, and what is beside them."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from run_folders import finished, groups_of

from denetdm_cli.results.aggregate import ChangedSetting
from denetdm_cli.results.paper import RATIOS, TABLE_1, PaperFigure, paper_figure
from denetdm_cli.utils.errors import ConfigError

UNBIASED = ("target", "unbiased", "last")


class TestMeans:
    def test_mean_and_sample_deviation_over_seeds(self, tmp_path: Path) -> None:
        for seed, value in ((4, 0.5), (0, 0.54), (11, 0.58)):
            finished(tmp_path, seed, value)
        (group,) = groups_of(tmp_path)
        assert group.seeds == [0, 4, 11]
        cell = group.metrics["target", "unbiased", "valid"]
        assert cell.values == pytest.approx((55, 51, 59))
        assert (cell.mean, cell.std) == pytest.approx((55.0, 4.0))
        conflicting = group.metrics["target", "conflicting", "paper"]
        assert conflicting.std == pytest.approx(np.std([46.0, 42.0, 50.0], ddof=1))
        assert conflicting.mean == pytest.approx(46.0)

    def test_one_seed_has_no_deviation(self, tmp_path: Path) -> None:
        finished(tmp_path, 0, 0.5)
        (group,) = groups_of(tmp_path)
        assert group.metrics[UNBIASED].std is None
        assert group.metrics[UNBIASED].mean == pytest.approx(50.0)

    def test_all_figures_of_all_predictors_and_rules(self, tmp_path: Path) -> None:
        finished(tmp_path, 0, 0.5, stage="train-poe")
        (group,) = groups_of(tmp_path)
        assert len(group.metrics) == 3 * 6 * 3
        assert group.predictors == ["shallow", "deep", "product"]
        assert group.main_metrics == ["unbiased", "conflicting", "aligned"]
        assert group.metrics["deep", "aligned", "last"].mean == pytest.approx(55.0)

    def test_figures_that_there_are_not(self, tmp_path: Path) -> None:
        folder = finished(tmp_path, 0, 0.5)
        document = json.loads((folder / "results.json").read_text())
        for kept in document["rules"].values():
            for name in ("unbiased", "aligned", "conflicting", "worst_group", "groups"):
                kept["metrics"]["target"][name] = None
        document["reported_metric"] = "accuracy"
        (folder / "results.json").write_text(json.dumps(document))
        (group,) = groups_of(tmp_path)
        assert group.main_metrics == ["accuracy", "worst_class"]
        assert {metric for _, metric, _ in group.metrics} == {"accuracy", "worst_class"}

    def test_which_cells_are_selected_on_test_data(self, tmp_path: Path) -> None:
        finished(tmp_path, 0, 0.5)
        finished(tmp_path, 0, 0.5, teacher="paper")
        honest, official = groups_of(tmp_path)
        assert [cell.rule for cell in honest.metrics.values() if cell.on_test_data] == ["paper"] * 6
        assert all(cell.on_test_data for cell in official.metrics.values())


class TestGroups:
    def test_data_sets_ratios_stages_and_teachers_are_apart(self, tmp_path: Path) -> None:
        for seed in (0, 1):
            finished(tmp_path, seed, 0.5)
            finished(tmp_path, seed, 0.5, stage="train-poe")
            finished(tmp_path, seed, 0.5, teacher="valid")
            finished(tmp_path, seed, 0.6, settings=("dataset.ratio=0.05",), digest="f" * 64)
            finished(tmp_path, seed, 0.4, preset="corruptedcifar10")
        groups = groups_of(tmp_path)
        assert [(g.dataset, g.ratio, g.stage, g.teacher, g.seeds) for g in groups] == [
            ("coloredmnist", 0.01, "distill", "last", [0, 1]),
            ("coloredmnist", 0.05, "distill", "last", [0, 1]),
            ("coloredmnist", 0.01, "distill", "valid", [0, 1]),
            ("coloredmnist", 0.01, "train-poe", None, [0, 1]),
            ("corruptedcifar10", 0.01, "distill", "last", [0, 1]),
        ]
        assert all(group.settings == () for group in groups)

    def test_other_settings_are_another_method_and_named(self, tmp_path: Path) -> None:
        finished(tmp_path / "a", 0, 0.5)
        finished(tmp_path / "b", 1, 0.6, settings=("train_poe.epochs=3", "distill.w_dist=0.0"))
        preset, other = groups_of(tmp_path)
        assert (preset.settings, preset.seeds) == ((), [0])
        assert other.settings == (
            ChangedSetting("distill.w_dist", 0.0, 1.0),
            ChangedSetting("train_poe.epochs", 3, 100),
        )
        assert other.seeds == [1]

    def test_stage_1_does_not_depend_on_the_settings_of_stage_2(self, tmp_path: Path) -> None:
        finished(tmp_path / "a", 0, 0.5, stage="train-poe")
        more = ("distill.epochs=3", "model.target.depth=4")
        finished(tmp_path / "b", 1, 0.6, stage="train-poe", settings=more)
        (group,) = groups_of(tmp_path)
        assert group.seeds == [0, 1]

    @pytest.mark.parametrize(
        "setting",
        ["device=cpu", "threads=2", "out=elsewhere", "dataset.root=/other", "data.cache=stream", "selection=paper"],
    )
    def test_where_a_run_was_does_not_count(self, tmp_path: Path, setting: str) -> None:
        finished(tmp_path / "a", 0, 0.5)
        finished(tmp_path / "b", 1, 0.6, settings=(setting,))
        assert [group.seeds for group in groups_of(tmp_path)] == [[0, 1]]

    def test_a_setting_that_an_older_version_did_not_have(self, tmp_path: Path) -> None:
        folder = finished(tmp_path / "a", 0, 0.5)
        finished(tmp_path / "b", 1, 0.6)
        document = json.loads((folder / "results.json").read_text())
        del document["config"]["distill"]["tau"]
        (folder / "results.json").write_text(json.dumps(document))
        assert [group.seeds for group in groups_of(tmp_path)] == [[0, 1]]

    def test_start_weights_are_told_by_what_they_hold(self, tmp_path: Path) -> None:
        digests = {0: "1" * 64, 1: "1" * 64, 2: "2" * 64}
        for seed, digest in digests.items():
            weights = {"target": {"file": f"/home/{seed}/w.pth", "sha256": digest}}
            setting = (f"model.target.weights=/home/{seed}/w.pth",)
            finished(tmp_path, seed, 0.5, preset="corruptedcifar10", settings=setting, start_weights=weights)
        same, other = groups_of(tmp_path)
        assert (same.seeds, other.seeds) == ([0, 1], [2])
        assert same.settings == (ChangedSetting("model.target.weights", f"w.pth {'1' * 12}", "imagenet"),)

    def test_names_of_data_sets(self, tmp_path: Path) -> None:
        finished(tmp_path / "a", 0, 0.5, preset="corruptedcifar10", settings=("dataset.type=1",))
        finished(tmp_path / "b", 0, 0.5, preset="folder", settings=("dataset.folder=pets",))
        assert [(group.dataset, group.ratio, group.settings) for group in groups_of(tmp_path)] == [
            ("corruptedcifar10 type 1", 0.01, ()),
            ("pets", None, ()),
        ]


class TestRefusals:
    def test_different_data(self, tmp_path: Path) -> None:
        one, two = finished(tmp_path, 0, 0.5), finished(tmp_path, 1, 0.5, digest="1" * 64)
        with pytest.raises(ConfigError, match="different data") as refused:
            groups_of(tmp_path)
        assert all(str(folder) in refused.value.what for folder in (one, two))

    def test_different_evaluation_data(self, tmp_path: Path) -> None:
        folder = finished(tmp_path, 0, 0.5)
        finished(tmp_path, 1, 0.5)
        text = (folder / "results.json").read_text()
        (folder / "results.json").write_text(text.replace("e" * 64, "1" * 64))
        with pytest.raises(ConfigError, match="different data"):
            groups_of(tmp_path)

    @pytest.mark.parametrize(
        ("key", "value"), [("rule", "paper"), ("metric", "target.aligned"), ("picked_on", []), ("reported_on", "test")]
    )
    def test_different_selection(self, tmp_path: Path, key: str, value: object) -> None:
        one, two = finished(tmp_path, 0, 0.5), finished(tmp_path, 1, 0.5)
        document = json.loads((one / "results.json").read_text())
        rule = "paper" if key in ("picked_on", "reported_on") else "valid"
        document["rules"][rule][key] = value
        (one / "results.json").write_text(json.dumps(document))
        with pytest.raises(ConfigError, match="selected in different ways") as refused:
            groups_of(tmp_path)
        assert all(str(folder) in refused.value.what for folder in (one, two))

    def test_two_runs_of_one_seed(self, tmp_path: Path) -> None:
        one, two = finished(tmp_path / "a", 0, 0.5), finished(tmp_path / "b", 0, 0.51)
        with pytest.raises(ConfigError, match="two runs of seed 0") as refused:
            groups_of(tmp_path)
        assert all(str(folder) in refused.value.what for folder in (one, two))

    def test_a_copy_counts_once(self, tmp_path: Path) -> None:
        one, two = finished(tmp_path / "a", 0, 0.5), finished(tmp_path / "b", 0, 0.5)
        told: list[str] = []
        (group,) = groups_of(tmp_path, told)
        assert group.seeds == [0]
        assert told == [f"{two} equals {one} and is counted once"]


class TestPaper:
    def test_beside_its_figures(self, tmp_path: Path) -> None:
        finished(tmp_path, 0, 0.5)
        finished(tmp_path, 0, 0.5, settings=("dataset.ratio=0.05",))
        finished(tmp_path, 0, 0.5, settings=("dataset.ratio=0.3",))
        one, five, thirty = groups_of(tmp_path)
        assert one.metrics[UNBIASED].paper == (85.22, 0.76)
        assert one.metrics[UNBIASED].difference == pytest.approx(50 - 85.22)
        assert five.metrics["target", "unbiased", "paper"].difference == pytest.approx(52 - 93.54)
        assert thirty.metrics[UNBIASED].paper is None
        assert thirty.metrics[UNBIASED].difference is None
        assert one.metrics["target", "worst_group", "last"].paper is None

    def test_its_figures(self) -> None:
        assert paper_figure("coloredmnist", 0.005, "distill", "target", "unbiased") == PaperFigure(74.72, 0.99)
        assert paper_figure("corruptedcifar10", 0.02, "distill", "target", "unbiased") == PaperFigure(47.35, 0.70)
        assert paper_figure("corruptedcifar10 type 1", 0.02, "distill", "target", "unbiased") is None
        assert paper_figure("bffhq", None, "distill", "target", "conflicting") == PaperFigure(75.7, 2.8)
        assert paper_figure("celeba", None, "distill", "target", "worst_group") == PaperFigure(81.04)
        assert paper_figure("coloredmnist", 0.01, "train-poe", "shallow", "conflicting") == PaperFigure(83.17, 0.96)
        assert paper_figure("coloredmnist", 0.01, "train-poe", "deep", "aligned") == PaperFigure(99.92)
        assert paper_figure("coloredmnist", 0.01, "train-poe", "shallow", "unbiased") is None

    def test_table_1_is_whole(self) -> None:
        for methods in TABLE_1.values():
            assert list(methods) == ["Group DRO", "ERM", "JTT", "LfF", "DFA", "LC", "DeNetDM"]
            for figures in methods.values():
                assert len(figures) == len(RATIOS)
                assert list(figures) == sorted(figures)  # every method gains from more conflicting images
        assert math.isclose(sum(TABLE_1["coloredmnist"]["ERM"][i].mean for i in range(4)), 225.60)
        assert math.isclose(sum(TABLE_1["corruptedcifar10"]["LC"][i].mean for i in range(4)), 174.26)
