"""What is said of stage folders in any state, and that looking at them disturbs nobody."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from run_folders import finished

from denetdm_cli.config.schema import Config
from denetdm_cli.data.store import StoredDataset
from denetdm_cli.evaluation.metrics import METRICS
from denetdm_cli.results.records import METRIC_NAMES, Headline, find_stages, records_of, summarise_stage
from denetdm_cli.training import checkpoint, stages
from denetdm_cli.training.events import EpochEvaluated, StageFinished
from denetdm_cli.utils.errors import CheckpointError
from denetdm_cli.utils.files import folder_lock


def unfinished(tmp_path: Path, resumes_after: int | None = 2, lines: int = 3) -> Path:
    """A stage 1 that was stopped."""
    folder = finished(tmp_path, 0, 0.5, stage="train-poe", epochs=lines)
    (folder / "results.json").unlink()
    weights = {"x": torch.zeros(3)}
    checkpoint.save(folder / "last.safetensors", weights, {"reported_metric": "unbiased"})
    if resumes_after is not None:
        checkpoint.save(folder / "resume.safetensors", weights, {"epoch": resumes_after})
    return folder


def test_the_figures_are_those_of_the_evaluation() -> None:
    assert METRIC_NAMES == METRICS


class TestStates:
    def test_done(self, tmp_path: Path) -> None:
        found = summarise_stage(finished(tmp_path, 3, 0.5, selection="paper"))
        assert (found.state, found.problem, found.epoch, found.epochs, found.seconds_left) == ("done", None, 2, 2, None)
        assert found.headline == Headline("target", "unbiased", pytest.approx(0.52), 0, "paper")
        assert found.results is not None
        assert found.results.seed == 3

    def test_stopped(self, tmp_path: Path) -> None:
        found = summarise_stage(unfinished(tmp_path))
        assert (found.state, found.problem, found.epoch, found.epochs) == ("stopped", None, 2, 100)
        assert found.seconds_left == pytest.approx(98 * (2 + 4) / 2)  # the line of epoch 3 is dropped when it goes on
        assert found.headline == Headline("shallow", "unbiased", pytest.approx(0.52), 2, None)
        assert found.results is None

    def test_running(self, tmp_path: Path) -> None:
        folder = unfinished(tmp_path, lines=7)
        with (folder / "metrics.jsonl").open("a") as file:
            file.write('{"epoch": 8, "eval')  # that is being written
        with folder_lock(folder):
            found = summarise_stage(folder)
        assert (found.state, found.problem, found.epoch) == ("running", None, 7)
        assert found.seconds_left == pytest.approx(93 * 2 * (3 + 4 + 5 + 6 + 7) / 5)
        assert found.headline is not None
        assert found.headline.epoch == 7

    def test_what_cannot_go_on_has_failed(self, tmp_path: Path) -> None:
        found = summarise_stage(unfinished(tmp_path, None, 3))
        assert found.state == "failed"
        assert "--force" in str(found.problem)
        assert found.seconds_left is None

    @pytest.mark.parametrize("lines", [0, 1])
    def test_what_begins_anew_is_stopped(self, tmp_path: Path, lines: int) -> None:
        found = summarise_stage(unfinished(tmp_path, None, lines))
        assert (found.state, found.epoch, found.seconds_left, found.headline) == ("stopped", 0, None, None)
        assert "the same command starts it again" in str(found.problem)

    def test_a_stage_stopped_within_its_first_epoch_has_no_figures(self, tmp_path: Path) -> None:
        folder = unfinished(tmp_path, 0, 0)
        found = summarise_stage(folder)
        assert (found.state, found.epoch, found.seconds_left, found.headline) == ("stopped", 0, None, None)
        (folder / "last.safetensors").unlink()
        with folder_lock(folder):
            assert summarise_stage(folder).state == "running"

    def test_the_time_of_the_last_write(self, tmp_path: Path) -> None:
        folder = unfinished(tmp_path)
        for file in folder.iterdir():
            os.utime(file, (1e9, 1e9))
        os.utime(folder / "metrics.jsonl", (1e9, 2e9))
        assert summarise_stage(folder).written == 2e9

    def test_a_training_is_seen_running_and_comes_out_the_same(
        self, tiny_config: Config, tiny_dataset: StoredDataset
    ) -> None:
        folder = stages.run_path(tiny_config, tiny_dataset) / "train-poe"
        events = stages.train("train-poe", tiny_config, tiny_dataset)
        for event in events:
            if isinstance(event, EpochEvaluated) and event.record["epoch"] == 2:
                found = summarise_stage(folder)
                assert (found.state, found.epoch, found.epochs, found.problem) == ("running", 2, 3, None)
                events.close()  # type: ignore[attr-defined]
        found = summarise_stage(folder)
        assert (found.state, found.epoch) == ("stopped", 2)
        *_, end = stages.train("train-poe", tiny_config, tiny_dataset)
        assert isinstance(end, StageFinished)
        found = summarise_stage(folder)
        kept = end.results["rules"]["last"]["metrics"]
        assert (found.state, found.headline) == (
            "done",
            Headline("shallow", "unbiased", kept["shallow"]["unbiased"], 3, "last"),
        )
        assert [record.evaluation["deep"].aligned for record in records_of(folder)][-1] == kept["deep"]["aligned"]


class TestDamage:
    @pytest.mark.parametrize("text", ["", "{", "[]", '{"rules": {"last": 1, "valid": 2, "paper": 3}}', "\0\0"])
    def test_of_results(self, tmp_path: Path, text: str) -> None:
        folder = finished(tmp_path, 0, 0.5)
        (folder / "results.json").write_text(text)
        found = summarise_stage(folder)
        assert (found.state, found.results) == ("failed", None)
        assert str(folder / "results.json") in str(found.problem)

    def test_of_one_figure(self, tmp_path: Path) -> None:
        folder = finished(tmp_path, 0, 0.5)
        document = json.loads((folder / "results.json").read_text())
        document["rules"]["paper"]["metrics"]["target"]["aligned"] = "good"
        (folder / "results.json").write_text(json.dumps(document))
        assert "rules.paper.metrics.target.aligned" in str(summarise_stage(folder).problem)

    @pytest.mark.parametrize(
        ("key", "value", "words"),
        [
            ("reported_metric", "__class__", "reported_metric"),
            ("seed", "one", "seed"),
            ("rules.last.metrics", {}, "rules.last.metrics"),
            ("rules.last.reported_on", "moon", "rules.last.reported_on"),
        ],
    )
    def test_of_an_entry_of_the_results(self, tmp_path: Path, key: str, value: object, words: str) -> None:
        folder = finished(tmp_path, 0, 0.5)
        document = json.loads((folder / "results.json").read_text())
        *inner, last = key.split(".")
        at = document
        for name in inner:
            at = at[name]
        at[last] = value
        (folder / "results.json").write_text(json.dumps(document))
        found = summarise_stage(folder)
        assert (found.state, found.results) == ("failed", None)
        assert f"{folder / 'results.json'} is damaged: " in str(found.problem)
        assert words in str(found.problem)

    @pytest.mark.parametrize("name", ["results.json", "metrics.jsonl", "last.safetensors"])
    def test_of_nesting_without_end(self, tmp_path: Path, name: str) -> None:
        folder = unfinished(tmp_path)
        deep = b'{"a":' * 200_000 + b"1" + b"}" * 200_000 + b"\n"
        whole = {"metrics.jsonl": deep * 3, "last.safetensors": len(deep).to_bytes(8, "little") + deep}
        (folder / name).write_bytes(whole.get(name, deep))
        found = summarise_stage(folder)
        assert found.state == "failed"
        assert re.search(rf"{name}(, line 1)? is damaged", str(found.problem))

    @pytest.mark.parametrize("keep", [0, 7, 50])
    def test_of_the_resume_state(self, tmp_path: Path, keep: int) -> None:
        folder = unfinished(tmp_path)
        file = folder / "resume.safetensors"
        file.write_bytes(file.read_bytes()[:keep])
        found = summarise_stage(folder)
        assert found.state == "failed"
        assert str(file) in str(found.problem)

    @pytest.mark.parametrize(
        ("metadata", "words"),
        [
            ({}, "resume.safetensors is damaged"),
            ({"epoch": "two"}, "resume.safetensors is damaged"),
            ({"epoch": 9}, "holds 3 of the 9 completed epochs"),
        ],
    )
    def test_of_what_the_resume_state_says(self, tmp_path: Path, metadata: dict[str, object], words: str) -> None:
        folder = unfinished(tmp_path)
        checkpoint.save(folder / "resume.safetensors", {"x": torch.zeros(3)}, metadata)
        found = summarise_stage(folder)
        assert found.state == "failed"
        assert words in str(found.problem)

    @pytest.mark.parametrize("line", ["", "half a li", "[]", '{"epoch": 1}', '{"epoch": 1, "evaluation": {}}'])
    def test_of_the_metrics(self, tmp_path: Path, line: str) -> None:
        folder = unfinished(tmp_path)
        file = folder / "metrics.jsonl"
        first, second, *_ = file.read_text().splitlines()
        for text, number in ((f"{first}\n{line}\n", 2), (f"{line}\n{second}\n", 1), (f"{second}\n{first}\n", 1)):
            file.write_text(text)
            found = summarise_stage(folder)
            assert found.state == "failed"
            assert f"{file}, line {number}" in str(found.problem)

    @pytest.mark.parametrize("text", [None, "seed: [", "seed: 3"])
    def test_of_the_configuration(self, tmp_path: Path, text: str | None) -> None:
        folder = unfinished(tmp_path)
        (folder / "config.yaml").unlink()
        if text is not None:
            (folder / "config.yaml").write_text(text)
        assert summarise_stage(folder).state == "failed"
        assert str(folder / "config.yaml") in str(summarise_stage(folder).problem)
        with folder_lock(folder):
            assert summarise_stage(folder).state == "running"

    def test_of_the_folder(self, tmp_path: Path) -> None:
        (tmp_path / "train-poe").write_text("a file")
        (tmp_path / "distill").mkdir()
        for name in ("train-poe", "distill", "nothing"):
            found = summarise_stage(tmp_path / name)
            assert found.state == "failed"
            assert str(tmp_path / name) in str(found.problem)

    def test_of_the_metrics_of_a_finished_run(self, tmp_path: Path) -> None:
        folder = finished(tmp_path, 0, 0.5)
        (folder / "metrics.jsonl").unlink()
        assert summarise_stage(folder).state == "done"
        with pytest.raises(CheckpointError, match=r"metrics\.jsonl"):
            records_of(folder)


class TestFinding:
    def test_all_stages_in_order(self, tmp_path: Path) -> None:
        for run in ("r0.05/seed2", "r0.05/seed10", "r0.005/seed0", "odd/.hidden"):
            for stage in ("distill-from-paper", "distill", "train-poe"):
                (tmp_path / run / stage / "inner").mkdir(parents=True)
                for folder in (tmp_path / run / stage, tmp_path / run / stage / "inner"):
                    (folder / "config.yaml").write_text("dataset:\n")
                    age = ("distill-from-paper", "distill", "train-poe").index(stage)
                    os.utime(folder / "config.yaml", (2e9 - age, 2e9 - age))
        (tmp_path / "data" / "train").mkdir(parents=True)
        found, unread = find_stages(tmp_path)
        assert not unread
        assert [str(path.relative_to(tmp_path)) for path in found] == [
            f"{run}/{stage}"
            for run in ("r0.005/seed0", "r0.05/seed2", "r0.05/seed10")
            for stage in ("train-poe", "distill", "distill-from-paper")
        ]

    def test_a_stage_itself_and_one_under_another_name(self, tmp_path: Path) -> None:
        folder = finished(tmp_path / "runs", 0, 0.5)
        assert find_stages(folder)[0] == [folder]
        folder.rename(tmp_path / "kept")
        (tmp_path / "tracker").mkdir()
        (tmp_path / "tracker" / "config.yaml").touch()
        assert find_stages(tmp_path)[0] == [tmp_path / "kept"]

    def test_links_are_followed_once(self, tmp_path: Path) -> None:
        folder = finished(tmp_path / "disk", 0, 0.5)
        (tmp_path / "runs").mkdir()
        (tmp_path / "runs" / "a").symlink_to(tmp_path / "disk")
        (tmp_path / "disk" / "circle").symlink_to(tmp_path)
        found, _ = find_stages(tmp_path / "runs")
        assert [path.resolve() for path in found] == [folder]

    def test_what_cannot_be_looked_into_hides_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = finished(tmp_path, 0, 0.5)
        (tmp_path / "locked").mkdir()
        scan = os.scandir

        def refuse(path: str) -> object:
            if Path(path).name == "locked":
                raise PermissionError(13, "Permission denied", path)
            return scan(path)

        monkeypatch.setattr(os, "scandir", refuse)
        found, unread = find_stages(tmp_path)
        assert found == [folder]
        assert [error.filename for error in unread] == [str(tmp_path / "locked")]

    def test_no_folder(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        for name, word in (("file", "is not a folder"), ("nothing", "does not exist")):
            with pytest.raises(CheckpointError, match=word):
                find_stages(tmp_path / name)
