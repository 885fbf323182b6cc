"""The same run to the last bit: wherever the images are kept, and stopped and resumed with networks that normalise."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_support import Outcome, call, figures, good, models
from own_images import class_folders, tiny

from denetdm_cli.cli import progress
from denetdm_cli.training import checkpoint

pytestmark = pytest.mark.slow

NETWORKS = (
    "--set", "model.shallow={name: cnn, depth: 3, width: 64}",
    "--set", "model.deep={name: cifar_resnet, depth: 8}",
    "--set", "model.target={name: cifar_resnet, depth: 8}",
)  # fmt: skip
EPOCHS = 3


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with 28 training images of 32x32 pixels: three steps an epoch, or four."""
    home = tmp_path_factory.mktemp("exact")
    source = class_folders(home / "images", {"train": 14, "valid": 4, "test": 4}, side=32)
    good("make-data", "folder", "--source", source, "--size", 32, "--data-root", home / "data")
    return home / "data"


def stage_1(root: Path, *more: object) -> Outcome:
    options = ["--data-root", root, "--batch-size", 8, *(() if "--epochs" in more else ("--epochs", EPOCHS))]
    return call("train-poe", *tiny("mine", *options, *more, side=32, networks=NETWORKS))


def stage_2(run: Path, *more: object) -> Outcome:
    return call("distill", run, "--epochs", EPOCHS, "--batch-size", 8, *more)


def home_of(out: Path) -> Path:
    return out / "mine" / "seed0"


@pytest.fixture(scope="module")
def straight(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both stages without a stop."""
    out = tmp_path_factory.mktemp("straight") / "runs"
    assert stage_1(root, "--out", out).code == 0
    assert stage_2(home_of(out)).code == 0
    return home_of(out)


def without_places(stage: Path) -> dict[str, Any]:
    """What the checkpoints hold, but for the settings of where things lie."""
    found = models(stage)
    for _, metadata in found.values():
        metadata["config"]["data"].pop("cache")
        metadata.get("teacher", {}).pop("sha256", None)  # its file says where its run lies
    return found


def stopped_after(epoch: int, monkeypatch: pytest.MonkeyPatch, train: Callable[[], Outcome]) -> None:
    """Press Ctrl-C once an epoch is written."""
    update = progress._Lines.update

    def pressed(self: Any, event: Any) -> None:
        update(self, event)
        if getattr(event, "record", {}).get("epoch") == epoch:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(progress._Lines, "update", pressed)
        assert train().code == 130


def test_the_networks_have_running_statistics(straight: Path) -> None:
    """Or the tests below say nothing of them."""
    tensors, _ = checkpoint.load(straight / "train-poe" / "last.safetensors")
    for branch in ("shallow", "deep"):
        assert [name for name in tensors if name.startswith(branch) and name.endswith("running_var")]


@pytest.mark.parametrize("cache", ["device", "host", "stream"])
def test_where_the_images_are_kept(root: Path, straight: Path, tmp_path: Path, cache: str) -> None:
    assert stage_1(root, "--set", f"data.cache={cache}").code == 0
    run = home_of(tmp_path / "runs")
    assert stage_2(run).code == 0
    for stage in ("train-poe", "distill"):
        assert without_places(run / stage) == without_places(straight / stage), "bit for bit"
        assert figures(run / stage) == figures(straight / stage)


def test_augmentation_is_at_work(root: Path, straight: Path) -> None:
    assert stage_1(root, "--set", "data.horizontal_flip=false", "--out", "plain", "--epochs", 1).code == 0
    run = home_of(Path("plain"))
    first, second = figures(straight / "train-poe"), figures(run / "train-poe")
    assert first[0]["losses"] != second[0]["losses"]


@pytest.mark.parametrize(("epoch", "cache"), [(1, "device"), (2, "stream")])
def test_resume_of_stage_1(
    root: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int, cache: str
) -> None:
    words = ("--set", f"data.cache={cache}")
    stopped_after(epoch, monkeypatch, lambda: stage_1(root, *words))
    assert f"epochs {epoch + 1} to {EPOCHS}" in stage_1(root, *words, "--resume", "must").err
    run = home_of(tmp_path / "runs")
    assert without_places(run / "train-poe") == without_places(straight / "train-poe"), "bit for bit"
    assert figures(run / "train-poe") == figures(straight / "train-poe")


def test_resume_of_stage_2(straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    epoch = 2
    words = ("--out", tmp_path / "runs")
    stopped_after(epoch, monkeypatch, lambda: stage_2(straight, *words))
    outcome = stage_2(straight, *words, "--resume", "must")
    assert f"epochs {epoch + 1} to {EPOCHS}" in outcome.err, outcome
    stage = home_of(tmp_path / "runs") / "distill"
    assert models(stage) == models(straight / "distill"), "bit for bit"
    assert figures(stage) == figures(straight / "distill")


def test_stage_2_leaves_the_deep_branch_as_it_was(straight: Path) -> None:
    before, _ = checkpoint.load(straight / "train-poe" / "last.safetensors")
    for rule in ("last", "valid", "paper"):
        after, _ = checkpoint.load(straight / "distill" / f"{rule}.safetensors")
        deep = {name: tensor for name, tensor in before.items() if name.startswith("deep.")}
        assert any(name.endswith("running_mean") for name in deep)
        assert deep.keys() == {name for name in after if name.startswith("deep.")}
        for name, tensor in deep.items():
            assert tensor.equal(after[name]), name
    last, _ = checkpoint.load(straight / "distill" / "last.safetensors")
    assert not last["head.weight"].equal(before["head.weight"]), "while the head learns"
