"""The configuration: what is read, what is refused, and how a refusal helps."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from denetdm_cli.config.load import (
    differences,
    from_mapping,
    load_config,
    preset_path,
    to_yaml,
)
from denetdm_cli.config.schema import Config
from denetdm_cli.utils.errors import ConfigError

PRESET = preset_path("coloredmnist")


def at(loaded: Config, key: str) -> Any:
    value: Any = loaded
    for name in key.split("."):
        value = getattr(value, name)
    return value


def refused(*settings: str, path: Path = PRESET, options: dict[str, object] | None = None) -> list[str]:
    """The problems that are reported, one an entry."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, settings, options)
    assert caught.value.exit_code == 2
    assert caught.value.fix
    first, *problems = caught.value.what.split("\n  ")
    assert str(path) in first
    return problems or [first]


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


DATASETS = "coloredmnist, corruptedcifar10, cmnist, cifar10c, bffhq, bar, celeba, waterbirds, folder"


class TestYaml:
    @pytest.mark.parametrize(
        ("text", "value"),
        [("1e-3", 1e-3), ("1E-3", 1e-3), ("5.e2", 500.0), (".5e-1", 0.05), ("+1e+0", 1.0), ("2", 2.0), ("1_0.5", 10.5)],
    )
    def test_numbers(self, text: str, value: float) -> None:
        assert load_config(PRESET, [f"train_poe.learning_rate={text}"]).train_poe.learning_rate == value

    @pytest.mark.parametrize("text", ["'1e-3'", "1e-3x", "1e", "e3", "1,5", "[1]", "null", "", "true", "2024-01-01"])
    def test_what_is_no_number(self, text: str) -> None:
        (problem,) = refused(f"train_poe.learning_rate={text}")
        assert problem.startswith("train_poe.learning_rate: ")
        assert problem.endswith("is not allowed; must be a finite number above 0")

    @pytest.mark.parametrize("text", [".nan", ".inf", "-.inf", "1e999"])
    @pytest.mark.parametrize("key", ["dataset.ratio", "distill.weight_decay", "distill.tau"])
    def test_numbers_are_finite(self, key: str, text: str) -> None:
        (problem,) = refused(f"{key}={text}")
        assert problem.startswith(f"{key}: ")
        assert "must be a finite number" in problem

    @pytest.mark.parametrize("key", ["seed", "train_poe.epochs", "model.deep.depth"])
    @pytest.mark.parametrize("text", ["true", "yes", "3.0", "1e1", "'3'", "3.5"])
    def test_whole_numbers_are_nothing_else(self, key: str, text: str) -> None:
        (problem,) = refused(f"{key}={text}")
        assert problem.startswith(f"{key}: ")
        assert "must be a whole number" in problem

    @pytest.mark.parametrize("text", ["1", "0", "'true'", "y"])
    def test_truth_values_are_nothing_else(self, text: str) -> None:
        (problem,) = refused(f"distill.drop_last={text}")
        assert problem.startswith("distill.drop_last: ")
        assert problem.endswith("must be true or false")

    def test_text_is_nothing_else(self) -> None:
        (problem,) = refused("out=5")
        assert problem == "out: 5 is not allowed; must be text, if need be in quotes"
        assert load_config(PRESET, ['out="5"']).out == "5"

    @pytest.mark.parametrize(
        "out", ["1e3", "5", "true", "null", "~", " padded ", "a: b", "#x", "grün", "[a", "'q'", ""]
    )
    def test_any_text_comes_back(self, tmp_path: Path, out: str) -> None:
        loaded = load_config(PRESET, [], {"out": out, "train_poe.learning_rate": 1e-07, "distill.tau": 123456789.125})
        assert load_config(written(tmp_path, to_yaml(loaded))) == loaded

    @pytest.mark.parametrize(
        ("text", "line", "reason"),
        [
            ("seed: 1\nout: a\nseed: 2\n", 3, "the key 'seed' is given twice"),
            ("model:\n  deep:\n    depth: 3\n    depth: 3\n", 4, "the key 'depth' is given twice"),
            ("train_poe:\n\tepochs: 3\n", 2, "cannot start any token"),
            ("seed: 1\nout: [a\n", 3, "expected ',' or ']'"),
            ("seed: 1\nout: a: b\n", 2, "mapping values are not allowed"),
            ("seed: 1\n1: 2\n", 2, "the key '1' is not text"),
            ("seed: 1\non: 2\n", 2, "the key 'on' is not text"),
            ("seed: 1\n? [a]\n: 2\n", 2, "is not text"),
            ("seed: !!python/object:os.system 1\n", 1, "could not determine a constructor"),
            ("seed: 1\n---\nseed: 2\n", 2, "but found another document"),
        ],
    )
    def test_a_mistake_is_found_by_file_and_line(self, tmp_path: Path, text: str, line: int, reason: str) -> None:
        path = written(tmp_path, text)
        with pytest.raises(ConfigError) as caught:
            load_config(path)
        assert f"{path}, line {line}, column " in caught.value.what
        assert reason in caught.value.what
        assert "\n" not in caught.value.what

    @pytest.mark.parametrize("text", ["", "# nothing\n", "- a\n- b\n", "just words\n", "3\n", "null\n"])
    def test_a_file_that_is_no_mapping(self, tmp_path: Path, text: str) -> None:
        (problem,) = refused(path=written(tmp_path, text))
        assert "holds no mapping of keys to values" in problem

    def test_a_file_that_is_no_text(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.yaml"
        for content in (b"\xff\xfe\x00seed", b"seed: \x00\n"):
            path.write_bytes(content)
            with pytest.raises(ConfigError, match=str(path)):
                load_config(path)

    def test_a_file_that_cannot_be_read(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="no configuration file") as caught:
            load_config(tmp_path / "absent.yaml")
        assert "--dataset NAME" in caught.value.fix
        for path in (tmp_path, PRESET / "below"):
            with pytest.raises(ConfigError, match="cannot read the configuration"):
                load_config(path)

    def test_anchors_and_merge_keys_work(self, tmp_path: Path) -> None:
        branches = "  shallow: &branch {name: mlp, depth: 3, width: 100}\n  deep: {<<: *branch, depth: 6}\n"
        text = f"dataset: {{name: coloredmnist}}\nmodel:\n{branches}"
        assert load_config(written(tmp_path, text)).model.deep.model_dump() == {"name": "mlp", "depth": 6, "width": 100}


class TestSet:
    @pytest.mark.parametrize(
        ("setting", "key", "value"),
        [
            ("train_poe.epochs=7", "train_poe.epochs", 7),
            (" train_poe.epochs = 7 ", "train_poe.epochs", 7),
            ("model.shallow={name: mlp, depth: 4, width: 100}", "model.shallow.depth", 4),
            ("out=a=b", "out", "a=b"),
            ("distill.w_poe=0", "distill.w_poe", 0.0),
        ],
    )
    def test_changes_one_key(self, setting: str, key: str, value: object) -> None:
        loaded = load_config(PRESET, [setting])
        assert at(loaded, key) == value
        assert [changed for changed, _, _ in differences(loaded, load_config(PRESET))] == [key]

    def test_comes_after_the_file_and_before_the_options(self) -> None:
        loaded = load_config(PRESET, ["seed=5", "out=there"], {"seed": None, "train_poe.epochs": 3})
        assert (loaded.seed, loaded.out, loaded.train_poe.epochs) == (5, "there", 3)

    @pytest.mark.parametrize("setting", ["seed", "=3", "", " =3"])
    def test_must_have_a_key_and_a_value(self, setting: str) -> None:
        (problem,) = refused(setting)
        assert problem.startswith(f"--set {setting!r}: must have the form KEY=VALUE")

    def test_the_same_key_twice_is_refused_unless_equal(self) -> None:
        assert refused("seed=1", "seed=2") == ["seed: --set gives it twice, 1 and 2; give it once"]
        assert load_config(PRESET, ["seed=1", "seed=1"]).seed == 1

    def test_an_option_that_contradicts_is_refused(self) -> None:
        assert refused("seed=1", options={"seed": 2}) == ["seed: --set gives 1 and its own option 2; give one of them"]
        assert load_config(PRESET, ["seed=1"], {"seed": 1}).seed == 1

    @pytest.mark.parametrize("text", ["{a", "[1, 2", "'open", "{a: 1, a: 2}", "{1: 2}", "a\tb: c: d", "*x"])
    def test_a_value_that_is_no_yaml(self, text: str) -> None:
        (problem,) = refused(f"out={text}")
        assert problem.startswith(f"out: {text!r} is not a YAML value (")

    def test_a_section_must_be_a_whole_section(self) -> None:
        (problem,) = refused("train_poe=4")
        assert problem.startswith("train_poe: 4 is not allowed; must be a section with the keys epochs, batch_size,")
        problems = refused("model.deep={depth: 3}")
        assert problems == [
            "model.deep.name: missing; must be one of mlp, cnn, cifar_resnet, a classifier of torchvision such as "
            "resnet18",
        ]

    def test_a_value_has_no_keys_below(self) -> None:
        (problem,) = refused("train_poe.epochs.most=3")
        assert problem == "train_poe.epochs: {'most': 3} is not allowed; must be a whole number at least 1"


class TestRefusals:
    def test_all_problems_come_at_once(self, tmp_path: Path) -> None:
        text = "dataset: {name: coloredmnist, severty: 4}\n"
        problems = refused(
            "model.deep.name=perceptron",
            "distill.tau=0",
            "nonsense",
            path=written(tmp_path, text),
            options={"dataset.ratio": 1.0, "train_poe.epochs": 0, "device": "gpu"},
        )
        keys = [problem.split(":")[0] for problem in problems]
        assert keys == [
            "--set 'nonsense'",
            "dataset.ratio",
            "dataset.severty",
            "model.deep.name",
            "device",
            "train_poe.epochs",
            "distill.tau",
        ]

    @pytest.mark.parametrize(
        ("key", "value", "must"),
        [
            ("dataset.ratio", 0.0, "a finite number above 0 and below 1"),
            ("dataset.ratio", 1, "a finite number above 0 and below 1"),
            ("dataset.ratio", -0.1, "a finite number above 0 and below 1"),
            ("dataset.severity", 0, "a whole number at least 1 and at most 5"),
            ("dataset.severity", 6, "a whole number at least 1 and at most 5"),
            ("dataset.seed", 2**32, f"a whole number at least 0 and below {2**32}"),
            ("seed", -1, f"a whole number at least 0 and below {2**63}"),
            ("seed", 2**63, f"a whole number at least 0 and below {2**63}"),
            ("model.deep.depth", 1, "a whole number at least 2 and at most 100"),
            ("train_poe.batch_size", 0, "a whole number at least 1"),
            ("train_poe.learning_rate", 0, "a finite number above 0"),
            ("distill.weight_decay", -1, "a finite number at least 0"),
            ("selection", "lsat", "one of last, valid, paper; did you mean 'last'?"),
            ("dataset.name", "ColoredMnist", f"one of {DATASETS}; did you mean 'coloredmnist'?"),
            ("device", "cuda:", "auto, cpu, cuda, cuda:N or mps; did you mean 'cuda'?"),
            ("device", "cpu\n", "auto, cpu, cuda, cuda:N or mps; did you mean 'cpu'?"),
        ],
    )
    def test_a_value_out_of_range(self, key: str, value: object, must: str) -> None:
        assert refused(options={key: value}) == [f"{key}: {value!r} is not allowed; must be {must}"]

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("dataset.ratio", 1e-9),
            ("dataset.ratio", 1 - 1e-9),
            ("dataset.severity", 1),
            ("dataset.severity", 5),
            ("dataset.seed", 2**32 - 1),
            ("seed", 0),
            ("seed", 2**63 - 1),
            ("model.deep.depth", 2),
            ("train_poe.batch_size", 1),
            ("distill.weight_decay", 0),
            ("distill.w_dist", 0),
            ("device", "cuda:12"),
            ("device", "mps"),
        ],
    )
    def test_a_value_at_the_edge(self, key: str, value: object) -> None:
        assert at(load_config(PRESET, (), {key: value}), key) == value

    @pytest.mark.parametrize(
        ("key", "nearest"),
        [
            ("train_poe.epoch", "'train_poe.epochs'"),
            ("train.epochs", "'train_poe'"),
            ("epochs", "'erm.epochs' or 'train_poe.epochs' or 'distill.epochs'"),
            ("Seed", "'seed'"),
            ("model.shalow.depth", "'model.shallow'"),
            ("distill.batchsize", "'distill.batch_size'"),
            ("dataset.width", "'model.shallow.width' or 'model.deep.width' or 'model.target.width'"),
            ("learning-rate", "'erm.learning_rate' or 'train_poe.learning_rate' or 'distill.learning_rate'"),
        ],
    )
    def test_an_unknown_key_gets_the_nearest(self, key: str, nearest: str) -> None:
        (problem,) = refused(f"{key}=3")
        assert problem.startswith(f"{key.split('.')[0]}")
        assert problem.endswith(f"; did you mean {nearest}?")

    def test_an_unknown_key_says_what_there_is(self) -> None:
        (problem,) = refused("distill.zzz=1")
        assert problem.startswith("distill.zzz: unknown key (value 1); distill has epochs, batch_size, ")
        assert problem.endswith(", teacher, w_poe, w_dist, tau")
        (problem,) = refused("zzz=1")
        assert "; the top has dataset, data, model, selection, compute, seed, device, " in problem

    def test_a_long_value_is_cut(self) -> None:
        (problem,) = refused(f"distill.tau={'x' * 1000}")
        assert len(problem) < 200

    def test_branches_of_different_width(self) -> None:
        (problem,) = refused("model.deep.width=50")
        assert problem.startswith("model: the branches share one head")
        assert problem.endswith("they end in: shallow 100, deep 50, target 100")

    def test_nothing_to_train(self) -> None:
        (problem,) = refused("distill.w_poe=0", "distill.w_dist=0")
        assert problem.startswith("distill: w_poe and w_dist are both 0")

    def test_a_missing_key_has_its_default_but_for_the_data_set(self) -> None:
        tree = {"dataset": {"name": "coloredmnist"}, "distill": {"tau": 3.0}, "model": {"target": {"depth": 6}}}
        loaded = from_mapping(tree, "somewhere")
        assert (loaded.seed, loaded.distill.tau, loaded.distill.w_dist) == (0, 3.0, 1.0)
        assert loaded.model.target.model_dump() == {"name": "mlp", "depth": 6, "width": 100}
        with pytest.raises(ConfigError, match="dataset: missing; must be a section with a name"):
            from_mapping({}, "somewhere")


def test_nothing_can_be_changed_afterwards() -> None:
    loaded = load_config(PRESET)
    with pytest.raises(ValidationError):
        loaded.seed = 3  # type: ignore[misc]
    with pytest.raises(ValidationError):
        loaded.dataset.ratio = 0.5  # type: ignore[misc]


def test_differences_name_every_leaf() -> None:
    ours, theirs = load_config(PRESET, ["seed=1", "model.deep.depth=7"]), load_config(PRESET, ["distill.tau=3"])
    assert differences(ours, theirs) == [("model.deep.depth", 7, 5), ("seed", 1, 0), ("distill.tau", 2.0, 3.0)]
    assert differences(ours, ours) == []


class TestSectionsChosenByName:
    @pytest.mark.parametrize(
        ("setting", "problem"),
        [
            ("model.deep.depth=21", "model.deep: depth: 21 is no depth of a CIFAR ResNet"),
            ("model.shallow.depth=5", "model.shallow.depth: 5 is not allowed; must be one of 3, 4"),
            ("model.target.weights=3", "model.target.weights: 3 is not allowed; must be text, if need be in quotes or"),
            ("model.target.wieghts=a", "model.target.wieghts: unknown key (value 'a'); model.target has name, weights"),
            ("data.mean=[0.5, 0.5]", "data.mean: [0.5, 0.5] is not allowed; must be a list of 3 numbers or null"),
            ("data.mean=[1, 1, x]", "data.mean: 'x' is not allowed"),
            ("data.std=[0.5, 0.5, 0]", "data.std: 0 is not allowed; must be a list of 3 numbers above 0 or null"),
            ("data.std=null", "data: mean and std go together"),
            ("data.random_resized_crop=[0.1, 1.0]", "data: random_crop_padding and random_resized_crop exclude each"),
            ("data.cache=ram", "data.cache: 'ram' is not allowed; must be one of auto, device, host, stream"),
            ("dataset.type=2", "dataset.type: 2 is not allowed; must be one of 0, 1"),
            ("dataset.size=32", "dataset.size: unknown key (value 32); dataset has root, name, type, ratio"),
            (
                "model.shallow.weights=imagenet",
                "model.shallow.weights: unknown key (value 'imagenet'); model.shallow has name, depth, width; "
                "weights goes with a classifier of torchvision such as resnet18",
            ),
            (
                "dataset.fit=crop",
                "dataset.fit: unknown key (value 'crop'); dataset has root, name, type, ratio, severity, seed; "
                "fit goes with bffhq, bar, celeba, waterbirds, folder",
            ),
            ("dataset={root: data}", f"dataset.name: missing; must be one of {DATASETS}"),
            ("model.target.name=18", "model.target.name: 18 is not allowed; must be one of mlp, cnn, cifar_resnet"),
            ("model.deep.name=mlpp", "model.deep.name: 'mlpp' is not allowed"),
        ],
    )  # fmt: skip
    def test_a_problem_is_named_within_its_kind(self, setting: str, problem: str) -> None:
        (found,) = refused(setting, path=preset_path("corruptedcifar10"))
        assert found.startswith(problem)

    def test_null_is_a_ratio_of_bar(self) -> None:
        assert load_config(preset_path("bar")).dataset.ratio is None
        assert load_config(preset_path("bar"), ["dataset.ratio=0.05"]).dataset.ratio == 0.05
        (found,) = refused("dataset.ratio=2.0", path=preset_path("bar"))
        assert found == "dataset.ratio: 2.0 is not allowed; must be a finite number above 0 and below 1 or null"
