"""What a terminal and what a pipe gets to see of a training."""

import contextlib
import io
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_support import EPOCHS, NAME, STAMP, Outcome, good, plain

from denetdm_cli.cli import progress
from denetdm_cli.training.events import EpochEvaluated, StageFinished, StageStarted, StepProgress


class TestOutput:
    def test_pipes_get_plain_lines(
        self, train: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm-256color")
        outcome = train()
        lines = outcome.err.splitlines()
        assert f"{tmp_path}" in lines[1]
        assert lines[2].startswith(f"train-poe epoch 1/{EPOCHS}  loss ")
        assert lines[-2].startswith(f"train-poe epoch {EPOCHS}/{EPOCHS}  loss ")
        assert lines[-1].startswith("warning: the branches ")  # so few steps do not separate them
        assert all(word in lines[-2] for word in ("shallow ", "deep ", "product ", " images/s", " left"))
        assert "Next: denetdm distill runs/" in outcome.out
        distilled = good("distill", f"runs/{NAME}/seed0", "--epochs", 1)
        assert "Next: denetdm evaluate runs/" in distilled.out
        evaluated = good("evaluate", f"runs/{NAME}/seed0")
        assert evaluated.err == ""
        for text in (outcome.out, outcome.err, distilled.out, distilled.err, evaluated.out):
            assert text
            assert plain(text)

    def test_a_line_an_epoch_but_at_most_one_a_second(self, train: Callable[..., Outcome]) -> None:
        began = time.monotonic()
        outcome = train("--epochs", 12)
        told = re.findall(r"epoch (\d+)/12 ", outcome.err)
        assert (told[0], told[-1]) == ("1", "12")
        assert len(told) <= 3 + time.monotonic() - began

    @pytest.mark.parametrize("columns", [80, 100, 120])
    def test_a_terminal_gets_a_bar_that_fits(self, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.delenv("NO_COLOR", raising=False)
        metrics = {"conflicting": 0.987654, "aligned": 1.0}
        record = {
            "epoch": 100,
            "losses": {"total": 12.3456},
            "evaluation": {"shallow": metrics, "deep": metrics, "product": metrics},
            "images": 123456,
            "seconds": 1.0,
        }
        finished = StageFinished(Path("folder"), {}, already=False)
        events = [
            StageStarted("train-poe", Path("folder"), 99, 100, 123456),
            StepProgress(99, 5, 2.5),
            EpochEvaluated(record),
            finished,
        ]
        with contextlib.redirect_stderr(Terminal()) as screen:
            assert progress.follow(iter(events), "denetdm again") == [finished]
        shown = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue()))
        assert all(len(line) <= columns for line in shown)
        assert re.fullmatch(
            r"train-poe epoch 100/100 \S+ 100% loss 12\.3456 123,456 images/s [0-9:-]+ left *", shown[-3]
        )
        assert shown[-2].strip() == "conflicting/aligned % shallow 98.8/100.0 deep 98.8/100.0 product 98.8/100.0"


class TestWorkOnData:
    @pytest.fixture
    def told(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
        """The plain lines for steps (seconds on the clock, what, done, total)."""

        def tell(*steps: tuple[float, str, int, int]) -> list[str]:
            clock = iter([0.0, *(seconds for seconds, *_ in steps)])
            monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))
            with contextlib.redirect_stderr(io.StringIO()) as err:
                report = progress.DataReport()
                for _, what, done, total in steps:
                    report.advance(what, done, total)
            return STAMP.sub("", err.getvalue()).splitlines()

        return tell

    def test_plain_lines_say_how_long_it_takes(self, told: Callable[..., list[str]]) -> None:
        assert told((0.0, "a", 0, 1000), (6.0, "a", 60, 1000), (7.0, "b", 80, 1000), (20.0, "b", 200, 1000)) == [
            "a: 60 of 1,000, 1 min 34 s left",
            "b: 200 of 1,000, 1 min 20 s left",
        ]

    def test_from_where_a_download_goes_on(self, told: Callable[..., list[str]]) -> None:
        assert told((100.0, "a", 900, 1000), (110.0, "a", 910, 1000)) == [
            "a: 900 of 1,000",
            "a: 910 of 1,000, 1 min 30 s left",
        ]

    def test_other_work_has_a_pace_of_its_own(self, told: Callable[..., list[str]]) -> None:
        first = [(0.0, "a", 10, 100), (1.0, "a", 100, 100)]
        for total in (100, 200):
            again = [(2.0, "b", 10, total), (12.0, "b", 20, total)]
            assert told(*first, *again) == [f"b: 20 of {total}, {'1 min 20 s' if total == 100 else '3 min 0 s'} left"]
