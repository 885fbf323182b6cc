"""Exports, predictions, official files and published models, as commands."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_support import call, contents, good, refused
from official_reference import Reference
from PIL import Image


def test_predict_prints_or_writes_a_line_an_image(finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(3):
        Image.new("RGB", (40, 30), (80 * number, 20, 90)).save(tmp_path / "photos" / f"{number}.png")
    (tmp_path / "photos" / "broken.png").write_bytes(b"no image")
    lines = good("predict", finished_run, "photos", "--device", "cpu").out.splitlines()
    assert len(lines) == 3
    file, predicted, probability = lines[0].split("\t")
    assert (file, predicted in map(str, range(10))) == ("photos/0.png", True)
    assert 0.1 <= float(probability) <= 1
    assert good("predict", finished_run, "photos", "--device", "cpu", "--csv", "p.csv").out == ""
    with (tmp_path / "p.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert [row["predicted"] for row in rows if not row["problem"]] == [line.split("\t")[1] for line in lines]
    assert [row["path"] for row in rows if row["problem"]] == ["photos/broken.png"]
    refused(3, call("predict", finished_run, "nowhere.jpg"), "nowhere.jpg")


def test_convert_refuses_what_the_official_code_does_not_build(finished_run: Path, tmp_path: Path) -> None:
    before = contents(finished_run)
    refused(4, call("convert", finished_run / "distill" / "last.safetensors", "-o", "m.th"), "official")
    (tmp_path / "page.th").write_text("<html>quota exceeded</html>")
    refused(4, call("convert", "page.th"), "page.th")
    refused(4, call("convert", "missing.th"), "missing.th")
    assert contents(finished_run) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.th"]


def test_download_pretrained_says_what_it_knows_and_what_is_missing(tmp_path: Path) -> None:
    out = good("download-pretrained", "--list").out
    assert all(name in out for name in ("coloredmnist", "corruptedcifar10", "bffhq", "85.22"))
    refused(2, call("download-pretrained"), "--all")
    refused(2, call("download-pretrained", "bffhq", "--all"), "--all")
    refused(2, call("download-pretrained", "nothing"), "nothing")
    refused(2, call("download-pretrained", "bffhq", "coloredmnist", "--url", "http://127.0.0.1:1/x"), "one model")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def converted(tmp_path: Path) -> list[str]:
    """Two models of the official code for `evaluate`, and a data set in LfF's layout to judge them on."""
    random = np.random.RandomState(0)
    for split in ("train", "valid"):
        (tmp_path / "lff" / split).mkdir(parents=True)
        np.save(tmp_path / "lff" / split / "images.npy", random.randint(0, 256, (200, 28, 28, 3)).astype(np.uint8))
        attributes = np.stack([np.arange(200) % 10, np.arange(200) // 10 % 10], axis=1).astype(np.uint8)
        np.save(tmp_path / "lff" / split / "attrs.npy", attributes)
    for seed in (0, 1):
        torch.save(Reference("coloredmnist", "distill", seed=seed).state_dict(), f"{seed}.th")
        good("convert", f"{seed}.th")
    return ["0.safetensors", "1.safetensors", "--data", "lff", "--device", "cpu"]


def test_what_is_not_known_of_a_converted_model_is_left_out(converted: list[str]) -> None:
    one, several = good("evaluate", *converted[1:]).out, good("evaluate", *converted).out
    assert "distill, converted from 1.th" in one
    assert all(f"  {seed}.safetensors: converted from {seed}.th\n" in several for seed in (0, 1))
    assert "None" not in one + several


def test_that_the_official_code_selects_on_test_images_is_said(converted: list[str]) -> None:
    said = "The official code picks epochs by their results on its test images."
    assert said in good("evaluate", *converted).out
    assert said in good("evaluate", *converted[1:], "--split", "valid").out
    assert said not in good("evaluate", *converted[1:], "--split", "train").out

    def known(*words: str) -> bool | None:
        (result,) = json.loads(good("evaluate", *converted[1:], "--json", *words).out)["results"]
        assert (result["seed"], result["epoch"], result["trained_on"]["digest"]) == (None, None, None)
        found = result["selected_on_these_images"]
        assert found is None or isinstance(found, bool)
        return found

    assert known() is None
    assert known("--split", "train") is False
