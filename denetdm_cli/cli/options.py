"""Options that are taken before and after the name of a command, and what the shell completes."""

from collections.abc import Iterator
from copy import copy
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from denetdm_cli.config.presets import preset_names
from denetdm_cli.hub.published import PUBLISHED
from denetdm_cli.utils.log import Level, choose


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


def complete_trackers() -> list[str]:
    """Names of trackers."""
    return ["tensorboard", "wandb"]


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
    """A program whose --quiet and --verbose are its commands' options as well, for people type them at the end."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        shared = [copy(option) for option in self.params if option.name in ("quiet", "verbose")]
        for option in shared:
            option.expose_value = False  # their callbacks do the work; the functions of the commands need no argument
        for command in _commands(self):
            command.params = [*command.params, *shared]


def _commands(group: Any) -> Iterator[Any]:
    for command in group.commands.values():
        yield command
        if isinstance(command, TyperGroup):
            yield from _commands(command)


def complete_presets() -> list[str]:
    """Names of shipped configurations, which are those of the data sets; Typer picks what fits."""
    return preset_names()


def complete_models() -> list[str]:
    """Names of published models."""
    return [published.name for published in PUBLISHED]
