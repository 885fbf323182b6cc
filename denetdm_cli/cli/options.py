"""Options that several commands have, and what the shell completes."""

from collections.abc import Iterator
from copy import copy
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from denetdm_cli.config.presets import preset_names
from denetdm_cli.hub.published import PUBLISHED
from denetdm_cli.utils.log import Level, choose


def complete_presets() -> list[str]:
    """Names of the presets."""
    return preset_names()


def complete_models() -> list[str]:
    """Names of published models."""
    return [published.name for published in PUBLISHED]


def complete_trackers() -> list[str]:
    """Names of trackers."""
    return ["tensorboard", "wandb"]


def _quiet(wanted: bool) -> None:
    if wanted:
        choose(Level.QUIET)


def _verbose(wanted: bool) -> None:
    if wanted:
        choose(Level.VERBOSE)


QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", callback=_quiet, help="Show warnings, errors and results alone.")
]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", callback=_verbose, help="Show what helps to debug a job.")
]
Rule = Literal["last", "valid", "paper"]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one configuration key; may be repeated.")
]
DeviceOption = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
ProcessesOption = Annotated[
    int | None,
    typer.Option("--nproc", min=1, help="Processes that train one run together, as torchrun starts them: one a GPU."),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        min=1, help="Of several runs, how many at a time (default: 1 a GPU, 4 of perceptrons, or as CPUs allow)."
    ),
]
DataRootOption = Annotated[str | None, typer.Option(help="Folder of the data sets (default: data).", metavar="DIR")]
OutOption = Annotated[str | None, typer.Option(help="Where run folders go (default: runs).", metavar="DIR")]
EpochsOption = Annotated[int | None, typer.Option(help="Epochs of this stage.")]
BatchSizeOption = Annotated[int | None, typer.Option(help="Images a training step.")]
SelectOption = Annotated[
    Rule | None,
    typer.Option(
        "--select", help="Epoch to report: last, valid (best on held-out images), paper (SELECTED ON TEST DATA)."
    ),
]
SourceOption = Annotated[
    Path | None,
    typer.Option(help="Local copy of the raw images: a folder, an archive or a CSV file.", metavar="PATH"),
]
ResumeOption = Annotated[
    Literal["auto", "must", "never"],
    typer.Option(help="Resume a stopped run: auto (if there is one), must (else refuse) or never (refuse)."),
]
PrecisionOption = Annotated[
    Literal["fp32", "bf16"] | None, typer.Option(help="Of a training step; bf16 is autocast, for GPUs.")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Start anew and delete the run that is there.")]
TrackOption = Annotated[
    list[str] | None,
    typer.Option(
        "--track",
        metavar="NAME[,NAME]",
        help="Mirror metrics.jsonl to tensorboard, wandb (W&B) or both.",
        autocompletion=complete_trackers,
    ),
]


class Program(TyperGroup):
    """A program that takes --quiet and --verbose before and after the name of the command."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        shared = [copy(option) for option in self.params if option.name in ("quiet", "verbose")]
        for option in shared:
            option.expose_value = False  # their callbacks do the work
        for command in _commands(self):
            command.params = [*command.params, *shared]


def _commands(group: Any) -> Iterator[Any]:
    for command in group.commands.values():
        yield command
        if isinstance(command, TyperGroup):
            yield from _commands(command)
