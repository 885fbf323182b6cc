"""Tables at 80 columns: nothing is cut, whatever classes and bias values are called and however many there are."""

import contextlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.cells import cell_len

from denetdm_cli.cli import tables
from denetdm_cli.data.store import Manifest, Split, StoredDataset
from denetdm_cli.evaluation.evaluator import Predictions
from denetdm_cli.evaluation.metrics import METRICS, Groups
from denetdm_cli.evaluation.selection import provenance
from denetdm_cli.hub.pretrained import Listed
from denetdm_cli.hub.published import PUBLISHED
from denetdm_cli.results.score import Score
from denetdm_cli.training.events import StageFinished

Shown = Callable[[Callable[[], None]], str]


class _Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(params=["terminal", "pipe"])
def shown(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Shown:
    """What is on stdout, where it has 80 columns or is a pipe."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")

    def show(work: Callable[[], None]) -> str:
        with contextlib.redirect_stdout(_Screen() if request.param == "terminal" else io.StringIO()) as out:
            work()
        text = out.getvalue()
        assert "…" not in text, "something is cut"
        wide = [line for line in text.splitlines() if cell_len(line) > 80]
        assert all("/" in line or "Digest" in line or "Selection rule" in line for line in wide), wide
        return text

    return show


def long_names(what: str, count: int) -> list[str]:
    return [f"{what} {number:02d} {'x' * 25}"[:25] for number in range(count)]


def dataset(targets: Sequence[str], biases: Sequence[str], largest: int = 4900) -> tuple[StoredDataset, np.ndarray]:
    """A data set of one pixel an image, and its counts by [target, bias]: no two of them equal, none 0."""
    total = len(targets) * len(biases)
    counts = np.random.default_rng(0).permutation(np.linspace(1, largest, total).astype(int))
    counts = counts.reshape(len(targets), len(biases))
    target, bias = (np.repeat(axis.ravel(), counts.ravel()).astype(np.uint8) for axis in np.indices(counts.shape))
    split = Split(np.zeros((len(target), 1, 1, 3), np.uint8), target, bias)
    aligned = tuple(number % len(biases) for number in range(len(targets)))
    manifest = Manifest(1, "0", {}, ("t", "b"), tuple(targets), tuple(biases), aligned, {}, "d" * 64)
    return StoredDataset(Path("data/own"), {"train": split, "test": split}, "d" * 64, manifest, {}), counts


def read(text: str, title: str, targets: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Heads and rows of the tables of a title, their blocks of columns put beside each other."""
    heads: list[str] = []
    rows: dict[str, list[str]] = {name: [] for name in targets}
    for part in text.split(f"\n{title}")[1:]:
        lines = part.splitlines()
        until = next(at for at, line in enumerate(lines) if at > 3 and not line.strip())
        heads += lines[2].split()[1:]
        for name, line in zip(targets, lines[4:until], strict=True):
            assert line.startswith(f" {name} ")
            rows[name] += line.removeprefix(f" {name} ").split()
    return heads, rows


@pytest.mark.parametrize(("classes", "values"), [(12, 10), (3, 30)])
def test_many_groups_with_long_names_are_counted_in_full(shown: Shown, classes: int, values: int) -> None:
    targets, biases = long_names("class", classes), long_names("bias", values)
    data, counts = dataset(targets, biases)
    text = shown(lambda: tables.show_dataset(data, "data/own (sound)", groups=True))
    for split in ("train", "test"):
        heads, rows = read(text, f"{split}: images by group", targets)
        assert heads == [str(number) for number in range(values)]
        assert [[int(cell.replace(",", "")) for cell in row] for row in rows.values()] == counts.tolist()
    for number, name in enumerate(biases):
        assert text.count(f"{number} {name}") == 1, "the numbers are explained once"


def test_one_table_where_numbers_are_enough(shown: Shown) -> None:
    """The ten corruptions: names of the columns do not fit, but the columns do."""
    corruptions = [f"{kind} noise number" for kind in ("gaussian", "shot", "impulse", "speckle", "other")] * 2
    data, _ = dataset(["airplane", "automobile", "bird"], corruptions)
    text = shown(lambda: tables.show_dataset(data, "data/own (sound)", groups=True))
    assert "continued" not in text
    assert len(read(text, "train: images by group", ["airplane", "automobile", "bird"])[0]) == 10


def test_names_that_fit_head_their_columns(shown: Shown) -> None:
    data, counts = dataset(["cat", "dog"], ["barn", "home", "park"])
    text = shown(lambda: tables.show_dataset(data, "data/own (sound)", groups=True))
    assert "by number" not in text
    heads, rows = read(text, "train: images by group", ["cat", "dog"])
    assert heads == ["barn", "home", "park"]
    assert rows["dog"] == [f"{count:,}" for count in counts[1]]


@pytest.mark.parametrize("letter", ["q", "猫"])
def test_names_longer_than_a_line_go_on_in_the_next(shown: Shown, letter: str) -> None:
    targets, biases = [f"{letter * 45}{number}" for number in (1, 2)], [f"{letter * 90}{number}" for number in (3, 4)]
    data, _ = dataset(targets, biases, largest=9)
    text = shown(lambda: tables.show_dataset(data, "data/own (sound)", groups=True))
    assert text.count(letter) == 2 * 90 + 2 * 2 * 45, "each bias value once, each class once a split"


def score(data: StoredDataset, seed: int = 0, **changes: Any) -> Score:
    split, groups = data.evaluation, Groups.of(data)
    assert split.bias is not None
    target, random = split.target.astype(np.int64), np.random.default_rng(seed)
    predicted = {
        name: np.where(random.random(len(target)) < 0.7, target, random.integers(0, groups.classes, len(target)))
        for name in ("shallow", "deep", "product")
    }
    sure = dict.fromkeys(predicted, np.ones(len(target), np.float32))
    predictions = Predictions(np.arange(len(target)), target, split.bias.astype(np.int64), predicted, sure)
    names = {"class_names": list(data.class_names), "bias_names": list(data.bias_names)}
    metadata = {
        "stage": "train-poe",
        "seed": seed,
        "epoch": 100,
        "reported_metric": "worst_group",
        "selection": provenance("last", "shallow.unbiased", None),
        "dataset": {"digest": "d", "evaluation_digest": "e", "valid_digest": "v", "own_valid_split": True},
        **changes,
    }
    facts = {
        "path": "data/own",
        "folder": "test",
        "digest": "d",
        "evaluation_digest": "e",
        "valid_digest": "v",
        **names,
    }
    found = predictions.metrics(groups)
    return Score(Path(f"{seed}.safetensors"), metadata, "evaluation", facts, found, predictions, "cpu", None)


def of_worst_groups(found: Score) -> list[str]:
    """Predictor and names of its worst group, as they are to be shown."""
    return [
        f"{name} ({found.dataset['class_names'][metrics['worst_group_of'][0]]}, "
        f"{found.dataset['bias_names'][metrics['worst_group_of'][1]]})"
        for name, metrics in found.metrics.items()
    ]


def test_a_checkpoint_with_long_names(shown: Shown) -> None:
    targets, biases = long_names("class", 12), long_names("bias", 10)
    found = score(dataset(targets, biases, largest=40)[0])
    text = shown(lambda: tables.show_scores([found], {}))
    _, rows = read(text, "shallow: accuracy by group", targets)
    assert rows == {
        name: [f"{100 * share:.1f}" for share in row]
        for name, row in zip(targets, found.metrics["shallow"]["groups"], strict=True)
    }
    for name, metrics in found.metrics.items():
        figures = [f"{100 * metrics[key]:.2f}" for key in ("unbiased", "accuracy", "aligned", "conflicting")]
        assert f" {name} {' '.join([*figures, f'''{100 * metrics['worst_group']:.2f}'''])} " in " ".join(text.split())
    assert f"Worst group (target, bias): {', '.join(of_worst_groups(found))}" in " ".join(text.split())


def test_the_end_of_a_stage_with_long_names(shown: Shown, tmp_path: Path) -> None:
    found = score(dataset(long_names("class", 12), long_names("bias", 10), largest=40)[0])
    kept = {"metrics": found.metrics, "epoch": 100, "separation": None, **found.metadata["selection"]}
    results = {
        **{key: found.metadata[key] for key in ("stage", "seed", "reported_metric")},
        "dataset": {"name": "own", "evaluation_split": "test", **found.dataset},
        "epochs": 100,
        "rules": {"last": kept},
    }
    text = shown(lambda: tables.show_finished(StageFinished(tmp_path, results, already=False), "last", "denetdm next"))
    assert f"Worst group (target, bias): {', '.join(of_worst_groups(found))}" in " ".join(text.split())


def test_means_stay_whole(shown: Shown) -> None:
    data = dataset(["cat", "dog"], ["barn", "home"], largest=40)[0]
    figures = {metric: {"mean": 0.55555, "std": 0.04321} for metric in METRICS}
    scores = [score(data, seed) for seed in (0, 1)]
    text = shown(lambda: tables.show_scores(scores, dict.fromkeys(scores[0].metrics, figures)))
    assert all(f" {name} " in text for name in scores[0].metrics)
    assert text.count("55.55 (4.32)") == 3 * 5
    assert "  1.safetensors: seed 1, epoch 100\n" in text


def test_a_converted_model_is_called_by_its_file(shown: Shown) -> None:
    data = dataset(["cat", "dog"], ["barn", "home"], largest=40)[0]
    unknown = {"epoch": None, "source": {"file": "debiased_model.th"}}
    scores = [score(data, seed, **unknown) for seed in (0, 1)]
    for each in scores:
        each.metadata["seed"] = None
    figures = {metric: {"mean": 0.5, "std": 0.1} for metric in METRICS}
    several = shown(lambda: tables.show_scores(scores, dict.fromkeys(scores[0].metrics, figures)))
    one = shown(lambda: tables.show_scores(scores[:1], {}))
    assert "  1.safetensors: converted from debiased_model.th\n" in several
    assert one.startswith("train-poe, converted from debiased_model.th: accuracy in %\n")
    assert "None" not in one + several


def test_published_models_and_where_they_are(shown: Shown) -> None:
    path = Path("models") / ("x" * 70) / "bffhq.safetensors"
    listed = [Listed(published, 2**30, "e" * 64, path) for published in PUBLISHED]
    text = shown(lambda: tables.show_published(listed, "https://example.org/folder"))
    assert text.count(f" Here: {path}\n") == len(PUBLISHED)
    head, *rows = [line.split() for line in text.splitlines() if line.startswith(" ") and line.strip(" ─")]
    assert head == ["name", "data", "set", "stage", "paper", "size", "here"]
    assert [row[:3] for row in rows] == [[each.name, each.dataset, each.stage] for each in PUBLISHED]
    assert all(f" {published.name} " in text for published in PUBLISHED)
