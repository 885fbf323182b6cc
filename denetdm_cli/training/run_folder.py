"""A run folder: what one stage of one run writes, and the only thing that flows from one command to the next."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from denetdm_cli.config.load import differences, load_config, to_yaml
from denetdm_cli.config.schema import PLACE, SELECTION_RULES, Config, SelectionRule
from denetdm_cli.utils.errors import CheckpointError, ConfigError
from denetdm_cli.utils.files import PART, folder_lock, naming, write_text

Resume = Literal["auto", "must", "never"]
"""What to do with a stopped run: resume it where there is one, require one, or refuse it."""


class RunFolder:
    """The folder of one stage.

    It holds config.yaml, metrics.jsonl, one checkpoint a selection rule, results.json, and, while it is not finished,
    resume.safetensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.yaml"
        self.metrics_file = path / "metrics.jsonl"
        self.results_file = path / "results.json"
        self.resume_file = path / "resume.safetensors"

    @property
    def method(self) -> str:
        """The method that is trained in the folder, whose name the folder has."""
        return self.path.name.partition("-from-")[0]

    def checkpoint(self, rule: SelectionRule) -> Path:
        """The checkpoint a selection rule keeps."""
        return self.path / f"{rule}.safetensors"

    @property
    def exists(self) -> bool:
        """Whether a run was begun here."""
        return self.config_file.is_file()

    @property
    def finished(self) -> bool:
        """Whether the run is finished."""
        return self.results_file.is_file()

    def config(self) -> Config:
        """The configuration the run was begun with.

        Raises:
            CheckpointError: the file is damaged.
        """
        try:
            return load_config(self.config_file)
        except ConfigError as error:
            raise CheckpointError(error.what, "Bring the file back, or start anew with --force.") from None

    def results(self) -> dict[str, Any]:
        """What a finished run reports.

        Raises:
            CheckpointError: the file is damaged.
        """
        try:
            results: dict[str, Any] = json.loads(self.results_file.read_text(encoding="utf-8"))
            if not results["rules"].keys() >= set(SELECTION_RULES):
                raise ValueError("a selection rule is missing")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{self.results_file} is damaged: {error}", "Run the command again with --force."
            ) from None
        return results

    @contextmanager
    def claimed(self, config: Config, resume: Resume = "auto", *, force: bool = False) -> Iterator[None]:
        """Hold the folder, made ready for a run with this configuration, against other processes; or refuse.

        Only `force` deletes a completed epoch.

        Raises:
            CheckpointError: the folder holds something else, a run with other settings, or a stopped run that `resume`
                refuses; there is nothing to resume although there must be; what is needed to resume is missing; or
                another process is at work in it.
            ConfigError: something must be resumed and started anew.
        """
        if resume == "must" and force:
            raise ConfigError(
                "--resume must and --force exclude each other",
                "Give --resume must to resume, --force to start anew.",
            )
        if self.path.exists() and not self.exists and not (self.path.is_dir() and self._holds_nothing()):
            raise CheckpointError(
                f"{self.path} exists and is not a run folder", "Give another --out, or move it out of the way."
            )
        if resume == "must" and not self.exists:
            raise CheckpointError(f"nothing to resume in {self.path}", "Leave out --resume must to begin a run.")
        self.path.mkdir(parents=True, exist_ok=True)
        with folder_lock(self.path) as free:
            if not free:
                raise CheckpointError(
                    f"another process is at work in {self.path}", "Wait for it to end, or give another --out."
                )
            self._make_ready(config, resume, force=force)
            yield

    def _make_ready(self, config: Config, resume: Resume, *, force: bool) -> None:
        if self.exists and not force:
            self._require_same_settings(config)
        if self.finished and not force:
            self.resume_file.unlink(missing_ok=True)  # a kill while it finished may have left it
            return
        if self.resume_file.exists() and resume == "never" and not force:
            raise CheckpointError(
                f"{self.path} holds a run that was stopped before its end",
                "Leave out --resume never to resume it, or start anew with --force.",
            )
        if not force and not self.resume_file.exists() and self._has_completed_epochs():
            raise CheckpointError(
                f"{self.path} holds completed epochs, but {self.resume_file.name} is missing, so it cannot be resumed",
                "Bring the file back, give another --out, or start anew with --force (what is there is deleted).",
            )
        if force or not self.resume_file.exists():
            self._clear()
        for leftover in self._leftovers():
            leftover.unlink()
        write_text(self.config_file, to_yaml(config))

    def _has_completed_epochs(self) -> bool:
        """Whether more is there than a stop within the first epoch leaves, which is at most one line."""
        lines = self.metrics_file.read_bytes().count(b"\n") if self.metrics_file.exists() else 0
        return lines > 1 and any(self.checkpoint(rule).exists() for rule in SELECTION_RULES)

    def truncate_records(self, epochs: int) -> list[dict[str, Any]]:
        """Drop what was noted of epochs after `epochs` (also a line cut short) and return the rest.

        Raises:
            CheckpointError: one of the first `epochs` lines is missing or damaged.
        """
        try:
            text = self.metrics_file.read_text(encoding="utf-8") if self.metrics_file.exists() else ""
            lines = text.splitlines()[:epochs]
            records = [json.loads(line) for line in lines]
            if [record["epoch"] for record in records] != list(range(1, epochs + 1)):
                raise ValueError(f"it does not hold one line for each of the epochs 1 to {epochs}")
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{self.metrics_file} is damaged: {error}", "Start anew with --force.") from None
        write_text(self.metrics_file, "".join(f"{line}\n" for line in lines))
        return records

    def append_record(self, record: Mapping[str, Any]) -> None:
        """Add one completed epoch to metrics.jsonl, on the disk before this returns."""
        with naming(self.metrics_file), self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def finish(self, results: Mapping[str, Any]) -> None:
        """Write results.json and drop the state that was only for resuming."""
        write_text(self.results_file, json.dumps(results, indent=2) + "\n")
        self.resume_file.unlink(missing_ok=True)

    def _require_same_settings(self, config: Config) -> None:
        different = [d for d in differences(config, self.config()) if d[0] not in PLACE]
        if different:
            lines = "".join(f"\n  {key}: {theirs!r} there, {ours!r} now" for key, ours, theirs in different)
            hint = " Every run keeps a checkpoint for each selection rule: give --select to distill or evaluate."
            raise CheckpointError(
                f"{self.path} holds a run with other settings:{lines}",
                "Use the same settings, another --out, or start anew with --force (the run there is deleted)."
                + (hint if [key for key, _, _ in different] == ["selection"] else ""),
            )

    def _leftovers(self) -> list[Path]:
        """What a process left that was killed while it wrote."""
        return list(self.path.glob(f".*{PART}"))

    def _holds_nothing(self) -> bool:
        return set(self.path.iterdir()) <= set(self._leftovers())

    def _clear(self) -> None:
        """Delete the files of a run, and nothing else."""
        checkpoints = [self.checkpoint(rule) for rule in SELECTION_RULES]
        # results.json and resume.safetensors first: without them nothing later takes the rest for a whole run.
        for file in [self.results_file, self.resume_file, self.metrics_file, *checkpoints, self.config_file]:
            file.unlink(missing_ok=True)


def stage_folders(path: Path) -> dict[str, RunFolder]:
    """The stages begun in a run folder, or the stage that `path` itself is, by folder name."""
    candidates = [path, *sorted(path.glob("*/"))] if path.is_dir() else []
    return {candidate.name: RunFolder(candidate) for candidate in candidates if RunFolder(candidate).exists}


def finished_stage(path: Path, method: str) -> RunFolder:
    """The finished stage of a method in a run folder, or that stage's folder itself.

    Raises:
        CheckpointError: there is none, or it is not finished or damaged.
    """
    path = path.resolve()
    folder = next((f for f in (RunFolder(path / method), RunFolder(path)) if f.exists), None)
    if folder is None or folder.path.name != method:
        raise CheckpointError(
            f"{path} holds no stage {method} (no {method}/config.yaml)",
            f"Give a run folder that holds one, such as runs/<data set>/seed0, or make one: denetdm train {method}.",
        )
    if not folder.finished:
        raise CheckpointError(
            f"the stage {method} in {folder.path} is not finished",
            "Finish it first: the command that started it resumes it.",
        )
    folder.config()  # a damaged file is found here, as the folder's fault and not as that of an option
    return folder
