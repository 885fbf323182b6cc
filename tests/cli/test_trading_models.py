"""Exports, predictions, official files and published models, as commands."""

import csv
from pathlib import Path

from cli_support import call, contents, good, refused
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
