"""Branches that did not go separate ways: who says so, where, and when again."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_support import EPOCHS, NAME, Outcome, call, good

from denetdm_cli.methods.denetdm import separation

BROKEN = ("--set", "model.deep.depth=20")
"""A deep branch that is dead from the start."""


def warnings(outcome: Outcome) -> list[str]:
    return [line for line in outcome.err.splitlines() if line.startswith("warning: ")]


def noted(stage: Path) -> dict[str, Any]:
    """What results.json says of how the branches separated, by rule."""
    rules = json.loads((stage / "results.json").read_text())["rules"]
    return {rule: kept.get("separation") for rule, kept in rules.items()}


@pytest.fixture(scope="module")
def broken(train: Callable[..., Outcome], tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    """What a stage 1 with a dead branch says, and its folder. Tests that change it copy it first."""
    out = tmp_path_factory.mktemp("broken") / "runs"
    outcome = train(*BROKEN, "--out", out)
    assert outcome.code == 0, outcome
    return outcome, out / NAME / "seed0"


@pytest.fixture
def broken_run(broken: tuple[Outcome, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(broken[1], tmp_path / "runs" / NAME / "seed0"))


def test_training_images_are_told_from_those_of_the_evaluation_split(
    train: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(train: Any, evaluation: Any) -> list[str]:
        return [json.dumps([train, evaluation])]

    monkeypatch.setattr(separation, "warnings", asked)
    assert train("--epochs", 1).code == 0
    signs = noted(tmp_path / "runs" / NAME / "seed0" / "train-poe")["last"]
    assert signs["train"] != signs["evaluation"]
    assert json.loads(signs["warnings"][0]) == [signs["train"], signs["evaluation"]]


class TestBroken:
    def test_it_is_said_at_the_end_on_stderr(self, broken: tuple[Outcome, Path]) -> None:
        outcome, _ = broken
        (warning,) = warnings(outcome)
        assert warning.startswith("warning: the deep branch is dead: ")
        assert "--set model.deep.depth=" in warning, "a remedy goes with it"
        assert outcome.err.splitlines()[-1] == warning, "what comes last is read"
        assert "warning" not in outcome.out

    def test_it_is_kept_in_the_run_folder(self, broken: tuple[Outcome, Path]) -> None:
        outcome, run = broken
        for signs in noted(run / "train-poe").values():
            assert signs.keys() == {"train", "evaluation", "warnings"}
        (kept,) = noted(run / "train-poe")["last"]["warnings"]
        assert warnings(outcome) == [f"warning: {kept}"]
        records = [json.loads(line) for line in (run / "train-poe" / "metrics.jsonl").read_text().splitlines()]
        assert len(records) == EPOCHS
        for record in records:
            for images in ("train", "evaluation"):
                signs = record["separation"][images]
                assert signs["logit_share"]["shallow"] + signs["logit_share"]["deep"] == pytest.approx(1)
                assert signs["chance"] == 0.1
        assert records[-1]["separation"] == noted(run / "train-poe")["last"]
        assert records[-1]["separation"]["train"]["answers"]["deep"] == 0, "a dead branch gives one answer"

    def test_a_finished_run_repeats_it(self, broken_run: Path, train: Callable[..., Outcome]) -> None:
        outcome = train(*BROKEN)
        assert "finished already" in outcome.err
        assert warnings(outcome) == [f"warning: {noted(broken_run / 'train-poe')['last']['warnings'][0]}"]

    @pytest.mark.parametrize("rule", ["last", "valid"])
    def test_distill_repeats_that_of_its_teacher(self, broken_run: Path, rule: str) -> None:
        outcome = good("distill", broken_run, "--epochs", 1, "--select", rule)
        assert warnings(outcome) == [f"warning: {text}" for text in noted(broken_run / "train-poe")[rule]["warnings"]]
        assert warnings(outcome)
        lines = outcome.err.splitlines()
        assert lines.index(warnings(outcome)[0]) < next(k for k, line in enumerate(lines) if "epoch 1/1" in line), (
            "it is said before hours go into a target that cannot be debiased"
        )
        name = "distill" if rule == "last" else f"distill-from-{rule}"
        results = json.loads((broken_run / name / "results.json").read_text())
        assert results["teacher"]["separation"] == noted(broken_run / "train-poe")[rule]
        assert all(separation is None for separation in noted(broken_run / name).values()), "one branch has no other"
        again = good("distill", broken_run, "--epochs", 1, "--select", rule)
        assert warnings(again) == warnings(outcome)

    def test_it_follows_the_rule_that_is_shown(self, broken_run: Path, train: Callable[..., Outcome]) -> None:
        """A finished run shows the rule of its configuration, and the warnings of that rule's epoch."""
        file = broken_run / "train-poe" / "results.json"
        results = json.loads(file.read_text())
        results["rules"]["valid"]["separation"]["warnings"] = ["of the rule valid"]
        results["rules"]["last"]["separation"]["warnings"] = ["one", "two"]
        file.write_text(json.dumps(results))
        assert warnings(train(*BROKEN)) == ["warning: one", "warning: two"]
        assert warnings(good("distill", broken_run, "--epochs", 1, "--select", "valid"))[0] == (
            "warning: of the rule valid"
        )

    def test_evaluate_does_not_warn(self, broken_run: Path) -> None:
        for words in ((), ("--json",)):
            assert good("evaluate", broken_run, *words).err == "", "what is judged is the model, not the training"


class TestSound:
    def test_without_warnings_nothing_is_said(self, run: Path, train: Callable[..., Outcome]) -> None:
        file = run / "train-poe" / "results.json"
        results = json.loads(file.read_text())
        for kept in results["rules"].values():
            kept["separation"]["warnings"] = []
        file.write_text(json.dumps(results))
        shutil.rmtree(run / "distill")
        outcomes = [train(), call("distill", run, "--epochs", 1), call("distill", run, "--epochs", 1)]
        for outcome in outcomes:
            assert outcome.code == 0
            assert "warning: " not in outcome.err + outcome.out
