"""What one command trains of one run: stage 1, stage 2 or both, one after the other."""

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from denetdm_cli.config.schema import Config
from denetdm_cli.data.store import StoredDataset
from denetdm_cli.training import stages
from denetdm_cli.training.checks import require_full_batch
from denetdm_cli.training.events import Event
from denetdm_cli.training.run_folder import Resume, finished_stage_1
from denetdm_cli.training.stages import RunOptions
from denetdm_cli.training.trackers import chosen
from denetdm_cli.training.tracking import tracked
from denetdm_cli.utils.distributed import SINGLE_PROCESS, Ranks


@dataclass(frozen=True)
class Job:
    """One run, as far as a command trains it.

    Attributes:
        config: of the whole run.
        run: its folder.
        dataset_path: the folder of its data set.
        stage_1: the finished run folder to distil from, or None to train stage 1 in `run` first.
        distill: whether stage 2 is trained.
        resume: whether a stopped run is gone on with.
        force: start anew, and delete what is there of the stages that are trained.
        trackers: names of those that its records are mirrored to.
    """

    config: Config
    run: Path
    dataset_path: Path
    stage_1: Path | None
    distill: bool
    resume: Resume
    force: bool
    trackers: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """How the run is told from others below one folder: `<data set>/seed<k>`."""
        return f"{self.run.parent.name}/{self.run.name}"

    def events(self, dataset: StoredDataset, ranks: Ranks = SINGLE_PROCESS) -> Generator[Event, None, None]:
        """Train what is asked for.

        Raises:
            UserError: whatever keeps it from running.
            Stopped: a signal asked for it; the state is kept.
        """
        how = RunOptions(self.resume, self.force, ranks)
        openers = chosen(self.trackers) if ranks.is_main else {}
        if self.stage_1 is None:
            if self.distill:  # not after hours of stage 1
                require_full_batch(self.config.distill, "distill", dataset, self.config.model)
            yield from tracked(stages.train_poe(self.config, dataset, how), openers)
        if self.distill:
            if self.stage_1 is None and self.resume == "must":  # which stage 1 has answered
                how = RunOptions("auto", self.force, ranks)
            stage_1 = ranks.run_on_main(lambda: finished_stage_1(self.stage_1 or self.run))
            yield from tracked(stages.distill(self.config, dataset, stage_1, self.run, how), openers)
