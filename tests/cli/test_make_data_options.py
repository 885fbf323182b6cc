"""Options of make-data that go with some data sets and not with others."""

from pathlib import Path

import pytest
from cli_support import call, refused

from denetdm_cli.config.schema import KINDS

VALUES = {"--ratio": 0.1, "--severity": 2, "--type": 1, "--name": "mine", "--size": 32, "--seed": 3, "--frost": "frost"}
HAS = {
    "coloredmnist": {"--ratio", "--severity", "--seed"},
    "corruptedcifar10": {"--ratio", "--severity", "--type", "--seed", "--frost"},
    "bffhq": {"--size"},
    "bar": {"--ratio", "--size"},
    "celeba": {"--size", "--seed"},
    "waterbirds": {"--size"},
    "cmnist": {"--ratio"},
    "cifar10c": {"--ratio"},
    "folder": {"--name", "--size", "--seed"},
}


def test_the_table_is_complete() -> None:
    assert HAS.keys() == KINDS["dataset"].keys()


@pytest.mark.parametrize("name", HAS)
def test_each_option_is_refused_by_its_name_or_taken(name: str, tmp_path: Path) -> None:
    for option, value in VALUES.items():
        outcome = call("make-data", name, "--source", "nowhere", option, value)
        if option in HAS[name]:
            refused(3, outcome, "nowhere does not exist")
        else:
            refused(2, outcome, f"make-data {name} has no option {option}\n", *HAS[name], "--source", "--force")
            assert "dataset." not in outcome.err, "what was not typed is not spoken of"
    assert list(tmp_path.iterdir()) == []


def test_several_at_once() -> None:
    outcome = call("make-data", "waterbirds", "--ratio", 0.1, "--ratio", 0.2, "--seed", 0)
    said = "make-data waterbirds has no option --ratio and no --seed"
    refused(2, outcome, said, "Leave them out. There are --size and, as for every data set, --source")


@pytest.mark.parametrize("words", [("--type", 1), ("--set", "dataset.type=1")])
def test_corruptions_without_frost_need_no_textures(words: tuple[object, ...]) -> None:
    outcome = call("make-data", "corruptedcifar10", *words, "--source", "nowhere", "--frost", "frost")
    refused(2, outcome, "make-data corruptedcifar10 --type 1 has no option --frost")


def test_what_is_set_by_its_key_is_refused_by_its_key() -> None:
    refused(2, call("make-data", "bffhq", "--set", "dataset.ratio=0.1"), "dataset.ratio: unknown key")


def test_what_is_for_a_training_is_refused(tmp_path: Path) -> None:
    words = ("--set", "train_poe.epochs=3", "--set", "dataset.seed=1", "--set", "seed=2")
    refused(2, call("make-data", "coloredmnist", *words), "--set train_poe.epochs, seed: this command trains nothing")
    refused(2, call("validate", "nowhere", *words), "--set train_poe.epochs, seed: this command trains nothing")
    assert list(tmp_path.iterdir()) == []


def test_the_data_set_is_the_one_that_is_set(tmp_path: Path) -> None:
    outcome = call("make-data", "coloredmnist", "--set", "dataset={name: cmnist, root: data, ratio: 0.1}", "--seed", 1)
    refused(2, outcome, "has no option --seed")
    assert list(tmp_path.iterdir()) == []
