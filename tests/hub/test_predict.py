"""Images classified from their files: as scoring does it, whatever their size, and whatever else lies about."""

import csv
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from shipping import Listener, config_for, dataset_facts, save_checkpoint

from denetdm_cli.config.schema import Config
from denetdm_cli.data.importers.decode import read_image
from denetdm_cli.data.store import StoredDataset
from denetdm_cli.hub import predict as predicting
from denetdm_cli.hub.predict import Prediction, find_images, predict_files, write_csv
from denetdm_cli.hub.target import TargetCheckpoint, load_target_checkpoint
from denetdm_cli.results import score as scoring
from denetdm_cli.training import stages
from denetdm_cli.utils.errors import CheckpointError, DataError

CPU = torch.device("cpu")
CLASSES = ["cat", "dog", "bird"]
MLP = {"name": "mlp", "depth": 2, "width": 16}
CNN = {"name": "cnn", "depth": 3, "width": 16}


def _target(
    folder: Path, size: tuple[int, int] = (36, 36), architecture: dict[str, Any] = CNN, **facts: Any
) -> TargetCheckpoint:
    path = folder / "checkpoint.safetensors"
    save_checkpoint(path, config_for(architecture), dataset_facts(size, CLASSES, **facts))
    return load_target_checkpoint(path, CPU)


def _pictures(folder: Path, *names: str, size: tuple[int, int] = (50, 40)) -> list[Path]:
    """Noise in files with these names."""
    random, paths = np.random.RandomState(3), [folder / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.randint(0, 256, (*size, 3)).astype(np.uint8)).save(path)
    return paths


def test_stored_images_get_the_predictions_of_scoring(
    tiny_config: Config, tiny_dataset: StoredDataset, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, tiny_config, stages._describe(tiny_dataset))
    (score,) = scoring.score_all([path], CPU, lambda _: tiny_dataset, part="evaluation")
    images = tiny_dataset.evaluation.images[:150]
    folder = tmp_path / "images"
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:04}.png")
    found = list(predict_files(load_target_checkpoint(path, CPU), [folder], Listener()))
    assert [prediction.predicted for prediction in found] == score.predictions.predicted["target"][:150].tolist()
    confidences = [prediction.confidence for prediction in found]
    assert confidences == pytest.approx(score.predictions.confidence["target"][:150].tolist(), abs=1e-6)
    assert all(sum(prediction.probabilities or []) == pytest.approx(1, abs=1e-5) for prediction in found)


@pytest.mark.parametrize("fit", ["stretch", "crop"])
def test_images_are_brought_to_size_as_the_data_set_was(tmp_path: Path, fit: Any) -> None:
    target = _target(tmp_path, recipe={"resized_to": 36, "fit": fit})
    (path,) = _pictures(tmp_path, "large.png", size=(90, 60))
    Image.fromarray(read_image(path, 36, fit)).save(tmp_path / "small.png")
    large, small = predict_files(target, [path, tmp_path / "small.png"], Listener())
    assert large.probabilities == pytest.approx(small.probabilities, abs=1e-6)
    other = _target(tmp_path, recipe={"resized_to": 36, "fit": "crop" if fit == "stretch" else "stretch"})
    (different,) = predict_files(other, [path], Listener())
    assert different.probabilities != pytest.approx(large.probabilities, abs=1e-6)


@pytest.mark.parametrize(
    ("recipe", "preset", "expected"),
    [
        ({"resized_to": 36, "fit": "crop"}, "bffhq", ("crop", True)),
        ({"resized_to": 36, "fit": "stretch"}, "waterbirds", ("stretch", True)),
        ({"resized_to": None, "fit": None}, "cmnist", ("stretch", False)),
        ({"name": "Colored MNIST"}, "coloredmnist", ("stretch", False)),
        (None, "coloredmnist", ("stretch", None)),
        (None, "bffhq", ("stretch", None)),
    ],
)
def test_where_the_rule_for_the_size_comes_from(
    tmp_path: Path, recipe: Any, preset: str, expected: tuple[str, bool]
) -> None:
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, config_for(MLP, preset=preset), dataset_facts((36, 36), CLASSES, recipe=recipe))
    resizing = load_target_checkpoint(path, CPU).resizing
    assert (resizing.fit, resizing.in_training) == expected
    assert (resizing.height, resizing.width) == (36, 36)


def test_a_model_of_oblong_images(tmp_path: Path) -> None:
    target = _target(tmp_path, (6, 5), MLP, recipe=None)
    (path,) = _pictures(tmp_path, "large.png")
    Image.open(path).resize((5, 6), Image.Resampling.BILINEAR).save(tmp_path / "small.png")
    large, small = predict_files(target, [path, tmp_path / "small.png"], Listener())
    assert large.probabilities == pytest.approx(small.probabilities, abs=1e-6)


def test_files_come_as_they_were_given_and_folders_by_name_each_once(tmp_path: Path) -> None:
    b, a, deep, _ = _pictures(tmp_path, "b.png", "x/a.jpg", "x/y/c.png", "x/.hidden.png")
    (tmp_path / "x" / "notes.txt").write_text("no image")
    assert find_images([b, tmp_path / "x", a, b]) == [b, a, deep]
    assert find_images([tmp_path]) == [b, a, deep]
    assert find_images([deep, tmp_path]) == [deep, b, a]


def test_batches_change_nothing_and_progress_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = _target(tmp_path)
    names = [f"{number:02}.png" for number in range(11)]
    _pictures(tmp_path / "images", *names)
    (tmp_path / "images" / "04.png").write_bytes(b"broken")
    (tmp_path / "images" / "10.png").write_bytes(b"")
    whole = list(predict_files(target, [tmp_path / "images"], Listener()))
    monkeypatch.setattr(predicting, "_IMAGES_PER_BATCH", 3)
    listener = Listener()
    parts = list(predict_files(target, [tmp_path / "images"], listener))
    assert [prediction.path.name for prediction in parts] == names
    assert [prediction.problem is None for prediction in parts] == [number not in (4, 10) for number in range(11)]
    for one, other in zip(whole, parts, strict=True):
        assert (one.path, one.problem) == (other.path, other.problem)
        assert one.probabilities == (other.probabilities and pytest.approx(other.probabilities, abs=1e-6))
    assert listener.steps[-1] == ("classifying images", 11, 11)
    assert listener.lines[0] == "2 of 11 images cannot be read:"
    assert [line.split(":")[0].strip() for line in listener.lines[1:]] == [
        str(tmp_path / "images" / name) for name in ("04.png", "10.png")
    ]


def test_results_come_before_the_last_image_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = _target(tmp_path)
    _pictures(tmp_path / "images", *(f"{number:03}.png" for number in range(60)))
    read = []
    monkeypatch.setattr(predicting, "_IMAGES_PER_BATCH", 2)
    monkeypatch.setattr(predicting.os, "cpu_count", lambda: 1)
    monkeypatch.setattr(
        predicting, "read_image", lambda path, size, fit: (read.append(path), read_image(path, size, fit))[1]
    )
    found = predict_files(target, [tmp_path / "images"], Listener())
    assert not read
    next(found)
    assert len(read) < 20
    found.close()  # type: ignore[attr-defined]


def test_no_more_threads_than_the_allotment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pools: list[int] = []

    def pool(workers: int, **options: Any) -> ThreadPoolExecutor:
        pools.append(workers)
        return ThreadPoolExecutor(workers, **options)

    monkeypatch.setattr(predicting, "thread_limit", lambda: 3)
    monkeypatch.setattr(predicting, "ThreadPoolExecutor", pool)
    assert len(list(predict_files(_target(tmp_path), _pictures(tmp_path, "a.png", "b.png"), Listener()))) == 2
    assert pools == [3]


def test_broken_images_among_good_ones_are_no_error(tmp_path: Path) -> None:
    target = _target(tmp_path)
    (good,) = _pictures(tmp_path, "good.png")
    text, cut = tmp_path / "notes.txt", tmp_path / "cut.png"
    text.write_text("just words")
    cut.write_bytes(good.read_bytes()[:2000])
    first, second, third = predict_files(target, [text, good, cut], Listener())
    assert (first.predicted, first.confidence, first.probabilities) == (None, None, None)
    assert "not an image" in (first.problem or "")
    assert second.problem is None
    assert third.problem


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    target = _target(tmp_path)
    for number in range(7):
        (tmp_path / f"{number}.png").write_text("just words")
    with pytest.raises(DataError, match=r"no image can be read: .*0\.png: not an image.*; and 2 more\n"):
        list(predict_files(target, [tmp_path], Listener()))


def test_what_is_not_there_is_refused_at_once(tmp_path: Path) -> None:
    target = _target(tmp_path)
    (good,) = _pictures(tmp_path, "good.png")
    with pytest.raises(DataError, match=r"no image or folder: .*gone\.png, .*nor this\.\n"):
        predict_files(target, [good, tmp_path / "gone.png", tmp_path / "nor this"], Listener())
    folder = tmp_path / "papers"
    folder.mkdir()
    with pytest.raises(DataError, match="holds no images; found nothing"):
        predict_files(target, [good, folder], Listener())
    (folder / "notes.txt").write_text("just words")
    with pytest.raises(DataError, match=r"holds no images; found notes\.txt"):
        predict_files(target, [folder], Listener())


def test_a_checkpoint_of_stage_1_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, config_for(MLP), dataset_facts((36, 36), CLASSES), stage="train-poe")
    with pytest.raises(CheckpointError, match="is a checkpoint of train-poe"):
        load_target_checkpoint(path, CPU)


def test_outputs_that_are_no_numbers_are_an_error(tmp_path: Path) -> None:
    target = _target(tmp_path)
    torch.nn.init.constant_(target.model.head.weight, torch.nan)
    with pytest.raises(CheckpointError, match="not finite"):
        list(predict_files(target, _pictures(tmp_path, "good.png"), Listener()))


def test_the_csv_file(tmp_path: Path) -> None:
    path = tmp_path / "out" / "p.csv"
    found = [
        Prediction(Path("b, c.png"), [0.25, 0.5, 0.25], None),
        Prediction(Path("broken.png"), None, "it is broken"),
    ]
    write_csv(path, ["cat", "dög", "a,b"], found)
    with path.open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [
            ["path", "predicted", "confidence", "p_cat", "p_dög", "p_a,b", "problem"],
            ["b, c.png", "dög", "0.5", "0.25", "0.5", "0.25", ""],
            ["broken.png", "", "", "", "", "", "it is broken"],
        ]


def test_an_error_leaves_no_csv_file(tmp_path: Path) -> None:
    def found() -> Iterator[Prediction]:
        yield Prediction(Path("a.png"), [1.0], None)
        raise DataError("no", "yes")

    with pytest.raises(DataError):
        write_csv(tmp_path / "p.csv", ["cat"], found())
    assert list(tmp_path.iterdir()) == []
