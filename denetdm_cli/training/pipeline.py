"""The stages that one command trains of one run, one after the other."""

from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from denetdm_cli.config.schema import Config
from denetdm_cli.data.store import StoredDataset
from denetdm_cli.methods import METHODS
from denetdm_cli.training import stages
from denetdm_cli.training.checks import require_bias_labels, require_full_batch
from denetdm_cli.training.events import Event
from denetdm_cli.training.run_folder import Resume, finished_stage
from denetdm_cli.training.stages import RunOptions
from denetdm_cli.training.trackers import chosen
from denetdm_cli.training.tracking import tracked
from denetdm_cli.utils.distributed import SINGLE_PROCESS, Ranks


def methods_up_to(name: str) -> tuple[str, ...]:
    """A method after all that it starts from, in the order of training."""
    before = METHODS[name].starts_from
    return (*(methods_up_to(before) if before else ()), name)


@dataclass(frozen=True)
class Job:
    """One run, as far as a command trains it.

    Attributes:
        config: of the whole run.
        run: its folder.
        dataset_path: the folder of its data set.
        methods: what to train, in this order; each starts from the one before it, where it starts from one.
        starts_from: the run folder with the finished stage that the first method starts from.
        resume: whether a stopped run is resumed.
        forced: methods that start anew; what is there of them is deleted.
        trackers: names of those that its records are mirrored to.
    """

    config: Config
    run: Path
    dataset_path: Path
    methods: tuple[str, ...]
    starts_from: Path | None
    resume: Resume
    forced: tuple[str, ...]
    trackers: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of the run among others below one folder: `<data set>/seed<k>`."""
        return f"{self.run.parent.name}/{self.run.name}"

    def events(self, dataset: StoredDataset, ranks: Ranks = SINGLE_PROCESS) -> Generator[Event, None, None]:
        """Train the methods.

        Raises:
            UserError: whatever keeps it from running.
            Stopped: a signal asked for it; the resume state is written.
        """
        options = RunOptions(self.resume, ranks=ranks)
        openers = chosen(self.trackers) if ranks.is_main else {}
        for name in self.methods:  # refused before hours of an earlier stage
            require_bias_labels(METHODS[name], dataset)
            require_full_batch(METHODS[name], self.config, dataset)
        for place, name in enumerate(self.methods):
            before = METHODS[name].starts_from
            folder = None
            if before is not None:
                place_of_it = self.run if place else self.starts_from or self.run
                folder = ranks.run_on_main(partial(finished_stage, place_of_it, before))
            options = replace(options, force=name in self.forced)
            events = stages.train(name, self.config, dataset, teacher_folder=folder, out=self.run, options=options)
            yield from tracked(events, openers)
            if options.resume == "must":  # the first stage has answered it
                options = replace(options, resume="auto")
