"""Both stages on a tiny data set: what they leave behind, what they freeze, how they resume."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests_support import glyph_mnist
from torch import nn

from denetdm_cli.config.load import from_mapping
from denetdm_cli.config.schema import Config
from denetdm_cli.data.store import StoredDataset
from denetdm_cli.data.synthetic.colored_mnist import make_colored_mnist
from denetdm_cli.evaluation.evaluator import Evaluation, predict
from denetdm_cli.methods.denetdm.distill import Distill
from denetdm_cli.methods.denetdm.models import ProductOfExperts, TargetModel
from denetdm_cli.training import checkpoint, stages
from denetdm_cli.training.events import EpochEvaluated, Event, StageFinished
from denetdm_cli.training.run_folder import RunFolder, finished_stage
from denetdm_cli.training.stages import RunOptions
from denetdm_cli.training.trainer import Trainer
from denetdm_cli.utils.errors import CheckpointError, ConfigError, UserError


def changed(config: Config, **changes: Any) -> Config:
    """A configuration with dotted keys (dots written as __) changed."""
    tree = config.model_dump()
    for key, value in changes.items():
        *sections, leaf = key.split("__")
        section = tree
        for name in sections:
            section = section[name]
        section[leaf] = value
    return from_mapping(tree, "test")


def end(events: Iterator[Event]) -> StageFinished:
    *_, last = events
    assert isinstance(last, StageFinished)
    return last


def stop_after(events: Iterator[Event], epochs: int) -> None:
    """Drive a stage until some epochs are done, then drop it as a kill would."""
    done = 0
    for event in events:
        done += isinstance(event, EpochEvaluated)
        if done == epochs:
            events.close()  # type: ignore[attr-defined]
            return


def stage_1(config: Config, dataset: StoredDataset, **how: Any) -> StageFinished:
    return end(stages.train("train-poe", config, dataset, options=RunOptions(**how)))


def stage_2(config: Config, dataset: StoredDataset, **how: Any) -> StageFinished:
    run = stages.run_path(config, dataset)
    return end(
        stages.train(
            "distill",
            config,
            dataset,
            teacher_folder=finished_stage(run, "train-poe"),
            out=run,
            options=RunOptions(**how),
        )
    )


def records_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def contents(folder: Path) -> dict[str, Any]:
    """Every file of a run but for what wall time decides."""
    found: dict[str, Any] = {}
    for file in sorted(folder.iterdir()):
        if file.name == "metrics.jsonl":
            found[file.name] = [{**json.loads(line), "seconds": 0} for line in file.read_text().splitlines()]
        elif file.name == "results.json":
            found[file.name] = {**json.loads(file.read_text()), "training_seconds": 0}
        else:
            found[file.name] = file.read_bytes()
    return found


def test_the_run_folder(tiny_config: Config, tiny_dataset: StoredDataset, tmp_path: Path) -> None:
    finished = stage_1(tiny_config, tiny_dataset)
    assert finished.folder == tmp_path / "runs" / "ColoredMNIST-Skewed0.1-Severity4" / "seed0" / "train-poe"
    files = [
        "config.yaml",
        "last.safetensors",
        "metrics.jsonl",
        "paper.safetensors",
        "results.json",
        "valid.safetensors",
    ]
    assert sorted(file.name for file in finished.folder.iterdir()) == files
    assert RunFolder(finished.folder).config() == tiny_config
    records = records_of(finished.folder)
    assert [record["epoch"] for record in records] == [1, 2, 3]
    assert records[0]["losses"].keys() == {"poe", "total"}
    for part in ("evaluation", "valid", "test"):
        assert records[0][part].keys() == {"shallow", "deep", "product"}
        assert {"unbiased", "accuracy", "aligned", "conflicting", "worst_group"} <= records[0][part]["deep"].keys()

    distilled = stage_2(tiny_config, tiny_dataset)
    assert distilled.folder == finished.folder.parent / "distill"
    records = records_of(distilled.folder)
    assert records[0]["losses"].keys() == {"poe", "dist", "total"}
    assert records[0]["evaluation"].keys() == {"target"}


def test_results_and_checkpoints_say_where_they_come_from(tiny_config: Config, tiny_dataset: StoredDataset) -> None:
    stage_1(tiny_config, tiny_dataset)
    finished = stage_2(changed(tiny_config, selection="valid"), tiny_dataset)
    assert finished.folder.name == "distill-from-valid"
    results = json.loads((finished.folder / "results.json").read_text())
    assert results["stage"] == "distill"
    assert results["seed"] == 0
    assert results["device"] == "cpu"
    assert results["versions"].keys() == {"denetdm", "torch", "python"}
    assert results["dataset"]["digest"] == tiny_dataset.digest
    assert results["dataset"]["recipe"]["conflict_ratio"] == 0.1
    assert results["teacher"]["selection"]["rule"] == "valid"
    assert results["selection"] == "valid"
    expected = {
        # The teacher was picked on the tenth, which is therefore in no report, and with bias labels.
        "last": (None, "test", False, True),
        "valid": ("valid", "test", False, True),
        "paper": ("evaluation", "test", True, True),
    }
    for rule, (selected_on, reported_on, on_test, used_labels) in expected.items():
        said = results["rules"][rule]
        assert (said["selected_on"], said["reported_on"]) == (selected_on, reported_on)
        assert (said["selected_on_test_data"], said["used_bias_labels"]) == (on_test, used_labels)
        _, metadata = checkpoint.load(finished.folder / f"{rule}.safetensors")
        assert metadata["metrics"] == said["metrics"]
        assert metadata["epoch"] == said["epoch"]
        assert from_mapping(metadata["config"], "test") == changed(tiny_config, selection="valid")


@pytest.mark.parametrize("rule", ["last", "valid", "paper"])
def test_each_rule_keeps_the_epoch_it_says(tiny_config: Config, tiny_dataset: StoredDataset, rule: str) -> None:
    config = changed(tiny_config, train_poe__epochs=8, train_poe__learning_rate=0.01)
    finished = stage_1(config, tiny_dataset)
    records = records_of(finished.folder)
    part = {"last": None, "valid": "valid", "paper": "evaluation"}[rule]
    if part is None:
        best = 8
    else:
        values = [record[part]["shallow"]["conflicting"] for record in records]
        best = 1 + values.index(max(values))
    kept = finished.results["rules"][rule]
    assert kept["epoch"] == best
    # The checkpoint really is the model of that epoch, measured on what the rule reports on.
    loaded = checkpoint.load_method(finished.folder / f"{rule}.safetensors", torch.device("cpu"))
    evaluation = Evaluation.of(tiny_dataset, torch.device("cpu"), tiny_config.data)
    name, rows = evaluation.parts[kept["reported_on"]]
    found = predict(loaded.method.model, loaded.method.predict, evaluation.batches[name])
    again = found.at(rows).metrics(evaluation.groups)
    assert again == kept["metrics"]
    reported = {k: v for k, v in kept["metrics"]["shallow"].items() if k != "groups"}
    assert reported == records[best - 1][kept["reported_on"]]["shallow"]


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 2])
def test_resume_is_bit_identical(tiny_config: Config, tiny_dataset: StoredDataset, tmp_path: Path, after: int) -> None:
    config = changed(tiny_config, train_poe__epochs=4, distill__epochs=4)
    stage_1(config, tiny_dataset)
    stage_2(config, tiny_dataset)
    run = stages.run_path(config, tiny_dataset)
    whole = {name: contents(run / name) for name in ("train-poe", "distill")}
    run.rename(tmp_path / "whole")

    stop_after(stages.train("train-poe", config, tiny_dataset), after)
    torch.manual_seed(1234)  # a resumed run owes nothing to the global stream
    stage_1(config, tiny_dataset)
    assert contents(run / "train-poe") == whole["train-poe"]
    stop_after(
        stages.train("distill", config, tiny_dataset, teacher_folder=finished_stage(run, "train-poe"), out=run), after
    )
    torch.manual_seed(4321)
    stage_2(config, tiny_dataset)
    assert contents(run / "distill") == whole["distill"]


@pytest.mark.slow
@pytest.mark.parametrize("written", ["metrics.jsonl", "valid.safetensors", "paper.safetensors", "last.safetensors"])
def test_resume_after_a_kill_between_two_files(
    tiny_config: Config, tiny_dataset: StoredDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    """Killed right after one file of a later epoch was written: that epoch is run again, with the same result."""
    config = changed(tiny_config, train_poe__epochs=8, train_poe__learning_rate=0.01)
    stage_1(config, tiny_dataset)
    run = stages.run_path(config, tiny_dataset)
    whole = contents(run / "train-poe")
    run.rename(tmp_path / "whole")

    class Kill(BaseException):
        pass

    save, add = checkpoint.save, RunFolder.append_record

    def append_record(folder: RunFolder, record: dict[str, Any]) -> None:
        add(folder, record)
        if record["epoch"] > 1 and written == "metrics.jsonl":
            raise Kill

    def saving(path: Path, tensors: Any, metadata: Any) -> None:
        save(path, tensors, metadata)
        if metadata["epoch"] > 1 and path.name == written:
            raise Kill

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append_record", append_record)
        patch.setattr(checkpoint, "save", saving)
        with pytest.raises(Kill):
            stage_1(config, tiny_dataset)
    stage_1(config, tiny_dataset)
    assert contents(run / "train-poe") == whole


def test_one_seed_one_result_and_another_seed_another(tiny_config: Config, tiny_dataset: StoredDataset) -> None:
    first = contents(stage_1(tiny_config, tiny_dataset).folder)
    assert contents(stage_1(tiny_config, tiny_dataset, force=True).folder) == first
    other = contents(stage_1(changed(tiny_config, seed=1), tiny_dataset).folder)
    assert other["last.safetensors"] != first["last.safetensors"]
    assert other["metrics.jsonl"][0]["losses"] != first["metrics.jsonl"][0]["losses"]


def test_a_finished_run_is_not_trained_again(tiny_config: Config, tiny_dataset: StoredDataset) -> None:
    before = contents(stage_1(tiny_config, tiny_dataset).folder)
    again = stage_1(tiny_config, tiny_dataset)
    assert again.already
    assert contents(again.folder) == before


def test_a_finished_run_of_other_data_or_teacher_is_not_taken_for_this_one(
    tiny_config: Config, tiny_dataset: StoredDataset
) -> None:
    stage_1(tiny_config, tiny_dataset)
    stage_2(tiny_config, tiny_dataset)
    teacher = stages.run_path(tiny_config, tiny_dataset) / "train-poe" / "last.safetensors"
    tensors, metadata = checkpoint.load(teacher)
    checkpoint.save(teacher, {**tensors, "head.bias": tensors["head.bias"] + 1}, metadata)
    with pytest.raises(CheckpointError, match="another teacher"):
        stage_2(tiny_config, tiny_dataset)
    other = make_colored_mnist(glyph_mnist(600, 1000), tiny_dataset.path, ratio=0.1, severity=4, seed=9, replace=True)
    with pytest.raises(CheckpointError, match="another data set"):
        stage_1(tiny_config, other)


def test_a_stopped_run_is_neither_resumed_nor_lost_unasked(tiny_config: Config, tiny_dataset: StoredDataset) -> None:
    stop_after(stages.train("train-poe", tiny_config, tiny_dataset), 2)
    folder = stages.run_path(tiny_config, tiny_dataset) / "train-poe"
    before = contents(folder)
    with pytest.raises(CheckpointError, match="stopped before its end"):
        stage_1(tiny_config, tiny_dataset, resume="never")
    assert contents(folder) == before


def test_nothing_to_resume_is_an_error(tiny_config: Config, tiny_dataset: StoredDataset) -> None:
    with pytest.raises(CheckpointError, match="nothing to resume"):
        stage_1(tiny_config, tiny_dataset, resume="must")
    assert not stages.run_path(tiny_config, tiny_dataset).exists()


@pytest.mark.parametrize(
    "changes",
    [{"train_poe__learning_rate": 0.5}, {"distill__tau": 3.0}, {"model__shallow__depth": 4}, {"selection": "valid"}],
)
def test_other_settings_in_the_same_folder_are_refused(
    tiny_config: Config, tiny_dataset: StoredDataset, changes: dict[str, Any]
) -> None:
    before = contents(stage_1(tiny_config, tiny_dataset).folder)
    key = next(iter(changes)).replace("__", ".")
    with pytest.raises(CheckpointError, match=f"other settings:\n  {key}"):
        stage_1(changed(tiny_config, **changes), tiny_dataset)
    assert contents(stages.run_path(tiny_config, tiny_dataset) / "train-poe") == before


def test_stage_2_refuses_what_stage_1_fixed(tiny_config: Config, tiny_dataset: StoredDataset) -> None:
    stage_1(tiny_config, tiny_dataset)
    run = stages.run_path(tiny_config, tiny_dataset)
    other = changed(tiny_config, model__deep__depth=6, train_poe__epochs=9)
    with pytest.raises(
        ConfigError, match=r"fixed when train-poe was trained(.|\n)*model\.deep\.depth(.|\n)*train_poe\.epochs"
    ):
        end(stages.train("distill", other, tiny_dataset, teacher_folder=finished_stage(run, "train-poe"), out=run))
    assert not (run / "distill").exists()


def test_stage_2_refuses_other_data(tiny_config: Config, tiny_dataset: StoredDataset) -> None:
    stage_1(tiny_config, tiny_dataset)
    other = make_colored_mnist(glyph_mnist(600, 1000), tiny_dataset.path, ratio=0.1, severity=4, seed=9, replace=True)
    with pytest.raises(UserError, match="trained on other data"):
        stage_2(tiny_config, other)


def test_resume_refuses_another_teacher(tiny_config: Config, tiny_dataset: StoredDataset) -> None:
    stage_1(tiny_config, tiny_dataset)
    run = stages.run_path(tiny_config, tiny_dataset)
    stop_after(
        stages.train("distill", tiny_config, tiny_dataset, teacher_folder=finished_stage(run, "train-poe"), out=run), 1
    )
    teacher = run / "train-poe" / "last.safetensors"
    tensors, metadata = checkpoint.load(teacher)
    checkpoint.save(teacher, {**tensors, "head.bias": tensors["head.bias"] + 1}, metadata)
    with pytest.raises(CheckpointError, match="another teacher"):
        stage_2(tiny_config, tiny_dataset)


@pytest.mark.parametrize(("selection", "teacher", "folder", "rule"), [
    ("last", "selected", "distill", "last"),
    ("valid", "selected", "distill-from-valid", "valid"),
    ("paper", "selected", "distill-from-paper", "paper"),
    ("valid", "last", "distill", "last"),
])  # fmt: skip
def test_the_teacher_is_a_choice(
    tiny_config: Config, tiny_dataset: StoredDataset, selection: str, teacher: str, folder: str, rule: str
) -> None:
    stage_1(tiny_config, tiny_dataset)
    finished = stage_2(changed(tiny_config, selection=selection, distill__teacher=teacher), tiny_dataset)
    assert finished.folder.name == folder
    _, taught_by = checkpoint.load(finished.folder.parent / "train-poe" / f"{rule}.safetensors")
    assert (finished.results["teacher"]["selection"]["rule"], finished.results["teacher"]["epoch"]) == (
        rule,
        taught_by["epoch"],
    )


def test_a_batch_larger_than_the_data_is_refused(tiny_config: Config, tiny_dataset: StoredDataset) -> None:
    with pytest.raises(ConfigError, match=r"train_poe\.batch_size: 601 is larger"):
        stage_1(changed(tiny_config, train_poe__batch_size=601), tiny_dataset)


def test_frozen_parts_do_not_move(tiny_config: Config, tiny_dataset: StoredDataset) -> None:
    """Weights, gradients and running statistics of teacher and deep branch, with BatchNorm put in to have some."""
    torch.manual_seed(0)
    device, shape = torch.device("cpu"), (3, 18, 18)
    batches = stages.Batches(tiny_dataset.splits["train"], device)
    teacher = ProductOfExperts(tiny_config.model, shape, 10, seed=0)
    model = TargetModel(tiny_config.model, shape, 10, seed=0)
    for module in (teacher, model):
        module.deep = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(972), nn.Linear(972, 100))
    teacher.shallow = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(972), nn.Linear(972, 100))
    model.start_from(teacher)
    model.deep.requires_grad_(False)
    model.train()
    method = Distill(model, teacher, tiny_config.distill)
    frozen = {f"teacher.{k}": v for k, v in teacher.state_dict().items()}
    frozen |= {f"deep.{k}": v for k, v in model.deep.state_dict().items()}
    before = {name: value.clone() for name, value in frozen.items()}
    target = {name: value.clone() for name, value in model.target.state_dict().items()}
    head = model.head.weight.clone()
    list(Trainer(method, batches, tiny_config.distill, seed=0).run())
    assert "teacher.shallow.1.running_mean" in frozen
    assert [name for name, value in frozen.items() if not torch.equal(value, before[name])] == []
    assert all(p.grad is None for p in [*teacher.parameters(), *model.deep.parameters()])
    assert not model.deep[1].training
    assert not torch.equal(model.head.weight, head)
    assert [name for name, value in model.target.state_dict().items() if torch.equal(value, target[name])] == []
