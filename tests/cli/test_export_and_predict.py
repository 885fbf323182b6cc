"""The target model for others, and images classified with it, as a user has them."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from cli_support import NAME, call, contents, good, no_leftovers, plain, refused
from official_reference import Reference, images
from PIL import Image
from safetensors.torch import load_file
from shipping import config_for, dataset_facts, save_checkpoint
from torchvision.models import resnet18

FILES = ["README.md", "config.json", "model.safetensors"]
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Reference]:
    """A stage-2 model of the official code for Corrupted CIFAR-10, converted; its ResNet-18 has a projection."""
    reference, path = Reference("corruptedcifar10", "distill"), tmp_path_factory.mktemp("official") / "a.th"
    torch.save(reference.state_dict(), path)
    return Path(good("convert", path).out.strip()), reference


class TestExport:
    @pytest.mark.slow
    def test_the_weights_are_those_of_a_stock_resnet_with_projection_and_head_in_one(
        self, official: tuple[Path, Reference]
    ) -> None:
        path, reference = official
        outcome = good("export", path, "-o", "model")
        assert outcome.out.splitlines() == [f"model/{name}" for name in FILES]
        assert "torchvision's resnet18" in outcome.err
        network = resnet18(num_classes=10).eval()
        network.load_state_dict(load_file("model/model.safetensors"), strict=True)
        x = images(32)
        with torch.inference_mode():
            torch.testing.assert_close(network(x), reference(x, 1, 0), rtol=1e-5, atol=1e-5)

    @pytest.mark.slow
    def test_onnx_normalises_and_takes_any_number(self, official: tuple[Path, Reference]) -> None:
        runtime = pytest.importorskip("onnxruntime")
        path, reference = official
        assert "model/model.onnx" in good("export", path, "-o", "model", "--onnx").out
        session = runtime.InferenceSession("model/model.onnx", providers=["CPUExecutionProvider"])
        for count in (1, 4):
            pixels = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(count))
            (logits,) = session.run(None, {"images": pixels.numpy()})
            x = (pixels - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
            with torch.inference_mode():
                torch.testing.assert_close(torch.from_numpy(logits), reference(x, 1, 0), rtol=1e-4, atol=1e-4)
        refused(4, call("export", path, "-o", "model"), "holds another export", "--force")

    def test_the_card_of_a_run_says_what_it_is(self, finished_run: Path) -> None:
        good("export", finished_run, "-o", "model", "--select", "paper")
        _, front, text = Path("model/README.md").read_text(encoding="utf-8").split("---\n", 2)
        found = yaml.safe_load(front)
        assert (found["library_name"], found["pipeline_tag"]) == ("pytorch", "image-classification")
        (result,) = found["model-index"][0]["results"]
        assert result["dataset"] == {"type": NAME.lower(), "name": NAME, "split": "valid"}
        scored = json.loads(good("evaluate", finished_run, "--select", "paper", "--json").out)["results"][0]
        metrics = scored["metrics"]["target"]
        assert result["metrics"][0]["value"] == metrics["unbiased"]
        groups = [
            f"| {row} | {' | '.join(f'{100 * share:.2f}' for share in metrics['groups'][row])} |" for row in (0, 9)
        ]
        for words in (
            "## Training",
            "product of experts",
            "Selection rule paper: best target.unbiased",
            "SELECTED ON TEST DATA",
            *groups,
            "## Limits",
            "too good for a test",
        ):
            assert words in text
        said = json.loads(Path("model/config.json").read_text())
        assert said["class_names"] == [str(digit) for digit in range(10)]

    def test_what_is_there_and_differs_is_left(self, finished_run: Path, official: tuple[Path, Reference]) -> None:
        written = good("export", finished_run, "-o", "model").out
        before = contents(Path())
        outcome = good("export", finished_run, "-o", "model")
        assert (outcome.out, outcome.err) == (written, "model holds this export already; nothing was written\n")
        refused(4, call("export", official[0], "-o", "model"), "model", "--force")
        assert contents(Path()) == before
        good("export", official[0], "-o", "model", "--force")
        assert contents(Path())["model/model.safetensors"] != before["model/model.safetensors"]
        Path("model/notes.txt").write_text("mine")
        before = contents(Path())
        for out, words in (("model", "notes.txt"), ("model/notes.txt", "is a file"), (".", "current folder")):
            refused(4, call("export", finished_run, "-o", out, "--force"), out, words)
        assert contents(Path()) == before
        assert no_leftovers(Path())

    def test_what_cannot_be_exported_leaves_nothing(self, finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        refused(
            4,
            call("export", finished_run / "train-poe", "-o", "made/for/it"),
            "checkpoint of train-poe",
            "denetdm distill",
        )
        refused(4, call("export", "nowhere", "-o", "made/for/it"), "nowhere")
        pytest.importorskip("onnxruntime")
        monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: 1 / 0)
        refused(
            2, call("export", finished_run, "-o", "made/for/it", "--onnx"), "could not be turned into ONNX", "--onnx"
        )
        assert list(Path().iterdir()) == []


@pytest.fixture
def photos() -> Path:
    """Three images, one of them in a folder, a broken one and a file of another kind."""
    folder = Path("photos")
    (folder / "more").mkdir(parents=True)
    for name, side in (("b.png", 20), ("a.jpg", 40), ("more/c.png", 18)):
        noise = np.random.RandomState(side).randint(0, 256, (side, 30, 3)).astype(np.uint8)
        Image.fromarray(noise).save(folder / name)
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("no image")
    return folder


class TestPredict:
    def test_files_and_folders_with_a_bad_image_among_good_ones(self, finished_run: Path, photos: Path) -> None:
        outcome = good("predict", finished_run, "photos/b.png", "photos", "--device", "cpu")
        rows = [line.split("\t") for line in outcome.out.splitlines()]
        assert [path for path, _, _ in rows] == ["photos/b.png", "photos/a.jpg", "photos/more/c.png"]
        assert all(name in map(str, range(10)) and 0.1 <= float(share) <= 1 for _, name, share in rows)
        assert "1 of 4 images cannot be read:\n  photos/broken.png: not an image" in outcome.err
        assert plain(outcome.err)

    def test_a_table_has_every_probability_and_every_problem(self, finished_run: Path, photos: Path) -> None:
        lines = good("predict", finished_run, photos, "--device", "cpu").out.splitlines()
        outcome = good("predict", finished_run, photos, "--device", "cpu", "--csv", "made/for/it.csv")
        assert outcome.out == ""
        assert "predictions: made/for/it.csv" in outcome.err
        with Path("made/for/it.csv").open(newline="") as table:
            rows = {row["path"]: row for row in csv.DictReader(table)}
        assert list(rows) == [f"photos/{name}" for name in ("a.jpg", "b.png", "broken.png", "more/c.png")]
        assert "not an image" in rows.pop("photos/broken.png")["problem"]
        for line, (path, row) in zip(lines, rows.items(), strict=True):
            shares = {digit: float(row[f"p_{digit}"]) for digit in range(10)}
            assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
            assert line == f"{path}\t{max(shares, key=shares.__getitem__)}\t{max(shares.values()):.4f}"
            assert (row["predicted"], row["problem"]) == (line.split("\t")[1], "")

    def test_names_of_classes_and_images_of_any_size(self, photos: Path) -> None:
        config = config_for({"name": "cnn", "depth": 3, "width": 16})
        save_checkpoint(Path("a.safetensors"), config, dataset_facts((36, 36), ["cat", "dog"]))
        lines = good("predict", "a.safetensors", photos, "--device", "cpu").out.splitlines()
        assert len(lines) == 3
        assert {line.split("\t")[1] for line in lines} <= {"cat", "dog"}

    @pytest.mark.skipif(os.name == "nt" or os.uname().sysname == "Darwin", reason="names are of another kind there")
    def test_a_name_that_is_no_text(self, finished_run: Path, photos: Path) -> None:
        name = os.fsdecode(b"photos/\xff.png")
        (photos / "b.png").rename(name)
        good("predict", finished_run, name, "--device", "cpu", "--csv", "p.csv")
        assert b"photos/\xff.png," in Path("p.csv").read_bytes()

    @pytest.mark.skipif(os.name == "nt", reason="no such names there")
    def test_a_name_with_a_tab_stays_one_line_of_three(self, finished_run: Path, photos: Path) -> None:
        (photos / "b.png").rename(photos / "b\t\n\x1b.png")
        out = good("predict", finished_run, photos / "b\t\n\x1b.png", "--device", "cpu").out
        assert out.count("\n") == 1
        assert out.split("\t")[0] == r"photos/b\t\n\x1b.png"
        assert out.count("\t") == 2

    def test_a_table_replaces_an_earlier_one_only(self, finished_run: Path, photos: Path) -> None:
        predict = ("predict", finished_run, photos, "--device", "cpu", "--csv", "p.csv")
        evaluate = ("evaluate", finished_run, "--device", "cpu", "--predictions", "p.csv")
        for command, other in ((predict, evaluate), (evaluate, predict)):
            Path("p.csv").write_bytes(b"")
            good(*command)
            good(*command)
            before = contents(Path())
            refused(2, call(*other), "p.csv", "did not write it")
            assert contents(Path()) == before
        Path("p.csv").write_text("path,label\nmine,1\n")
        refused(2, call(*predict), "--csv p.csv")
        refused(2, call(*evaluate), "--predictions p.csv")
        assert Path("p.csv").read_text() == "path,label\nmine,1\n"

    def test_what_cannot_be_classified_leaves_nothing(self, finished_run: Path, photos: Path) -> None:
        before = contents(Path())
        words = ("no image can be read", "photos/broken.png")
        refused(3, call("predict", finished_run, "photos/broken.png", "--csv", "made/for/it.csv"), *words)
        refused(3, call("predict", finished_run, "nowhere.png", "--csv", "made/for/it.csv"), "nowhere.png")
        refused(2, call("predict", finished_run, photos, "--csv", photos / "notes.txt"), "--csv", ".csv")
        refused(4, call("predict", finished_run / "train-poe", photos), "checkpoint of train-poe")
        refused(2, call("predict", finished_run, photos, "--device", "quantum"), "quantum")
        assert contents(Path()) == before
        assert not Path("made").exists()
