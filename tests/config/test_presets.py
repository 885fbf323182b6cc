"""The shipped configurations."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from denetdm_cli.config.load import (
    from_mapping,
    leaves,
    load_config,
    preset_path,
    to_commented_yaml,
    to_yaml,
)
from denetdm_cli.config.presets import preset_folder, preset_names
from denetdm_cli.config.schema import SELECTION_RULES, Config
from denetdm_cli.utils.errors import ConfigError

PRESET = preset_path("coloredmnist")


def at(loaded: Config, key: str) -> Any:
    value: Any = loaded
    for name in key.split("."):
        value = getattr(value, name)
    return value


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


class TestPresets:
    def test_every_yaml_that_ships_is_a_preset(self) -> None:
        assert preset_names() == sorted(path.stem for path in preset_folder().glob("*.y*ml"))
        assert "coloredmnist" in preset_names()

    @pytest.mark.parametrize("name", preset_names())
    def test_each_holds_only_what_differs(self, name: str) -> None:
        loaded = load_config(preset_path(name))
        assert loaded.dataset.name == name
        lines = preset_path(name).read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 25
        given = dict(leaves(yaml.safe_load("\n".join(lines))))
        default = dict(leaves(from_mapping({"dataset": {"name": name}}, "here").model_dump()))
        networks = ("model.", "dataset.name")  # a network is given whole
        assert [key for key, value in given.items() if default.get(key) == value and not key.startswith(networks)] == []

    @pytest.mark.parametrize("name", preset_names())
    def test_each_is_shown_in_full_with_comments(self, name: str, tmp_path: Path) -> None:
        loaded = load_config(preset_path(name))
        text = to_commented_yaml(loaded)
        assert load_config(written(tmp_path, text)) == loaded
        assert all(f"{key.rpartition('.')[2]}: " in text for key, _ in leaves(loaded.model_dump()))
        assert all(f" {rule} " in text for rule in SELECTION_RULES)

    @pytest.mark.parametrize("name", preset_names())
    def test_each_comes_back_from_the_yaml_of_a_run_folder(self, name: str, tmp_path: Path) -> None:
        loaded = load_config(preset_path(name))
        assert load_config(written(tmp_path, to_yaml(loaded))) == loaded

    @pytest.mark.parametrize("name", preset_names())
    def test_the_branches_of_each_can_be_those_of_another_size(self, name: str) -> None:
        changed = load_config(preset_path(name), ["model.shallow={name: mlp, depth: 4, width: 32}",
                                           "model.deep={name: mlp, depth: 7, width: 32}",
                                           "model.target={name: convnext_tiny, weights: null, width: 32}"])  # fmt: skip
        assert changed.model.deep.feature_width == 32

    def test_the_published_settings_of_the_other_sets(self) -> None:
        """paper.md's tables, number by number."""
        cifar, bffhq = load_config(preset_path("corruptedcifar10")), load_config(preset_path("bffhq"))
        assert (cifar.train_poe.epochs, cifar.train_poe.batch_size, cifar.train_poe.learning_rate) == (100, 256, 1e-3)
        assert (cifar.distill.epochs, cifar.distill.batch_size, cifar.distill.learning_rate) == (200, 256, 1e-4)
        assert (cifar.train_poe.weight_decay, cifar.distill.weight_decay) == (1e-3, 0)
        assert (cifar.distill.w_poe, cifar.distill.w_dist, cifar.distill.tau) == (1, 1, 2)
        assert (bffhq.train_poe.epochs, bffhq.train_poe.batch_size, bffhq.train_poe.learning_rate) == (10, 64, 1e-3)
        assert (bffhq.distill.epochs, bffhq.distill.batch_size, bffhq.distill.learning_rate) == (100, 64, 1e-4)
        assert (bffhq.train_poe.weight_decay, bffhq.distill.weight_decay) == (0, 0)
        assert (bffhq.distill.w_poe, bffhq.distill.w_dist) == (1, 0)
        for found in (cifar, bffhq):
            assert found.data.mean == [0.4914, 0.4822, 0.4465]
            assert found.data.std == [0.2023, 0.1994, 0.2010]
            assert (found.data.random_crop_padding, found.data.horizontal_flip) == (4, True)
            assert (found.train_poe.drop_last, found.distill.drop_last) == (True, False)
        assert bffhq.train_poe.selection_metric == "shallow.conflicting"
        assert bffhq.distill.selection_metric == "target.conflicting"
        assert load_config(preset_path("bar")).distill.selection_metric == "target.conflicting"
        for name in ("celeba", "waterbirds"):
            assert load_config(preset_path(name)).distill.selection_metric == "target.worst_group"
        assert load_config(preset_path("corruptedcifar10")).distill.selection_metric == "target.unbiased"
        assert load_config(preset_path("folder")).distill.selection_metric == "target.accuracy"

    def test_the_values_of_the_paper(self) -> None:
        loaded = load_config(PRESET)
        assert (loaded.dataset.ratio, loaded.dataset.severity) == (0.01, 4)
        assert (loaded.model.shallow.depth, loaded.model.deep.depth, loaded.model.target.depth) == (3, 5, 5)
        assert loaded.train_poe.model_dump() == {
            "epochs": 100,
            "batch_size": 64,
            "learning_rate": 1e-3,
            "weight_decay": 1e-3,
            "optimizer": "Adam",
            "momentum": 0.0,
            "drop_last": True,
            "selection_metric": "shallow.conflicting",
        }
        assert (loaded.distill.w_poe, loaded.distill.w_dist, loaded.distill.tau) == (1, 1, 2)
        assert loaded.selection == "last"

    def test_are_found_from_any_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert load_config(preset_path("coloredmnist")).dataset.name == "coloredmnist"

    @pytest.mark.parametrize("name", ["colormnist", "ColoredMNIST", "coloured_mnist"])
    def test_an_unknown_one_is_refused_with_the_nearest(self, name: str) -> None:
        with pytest.raises(ConfigError, match=f"'{name}'; did you mean 'coloredmnist'\\?") as caught:
            preset_path(name)
        assert "denetdm configs ls" in caught.value.fix

    def test_a_name_far_from_all_gets_the_list(self) -> None:
        with pytest.raises(ConfigError) as caught:
            preset_path("../pyproject")
        assert "did you mean" not in caught.value.what
        assert "coloredmnist" in caught.value.fix
