"""The commands that train: the two stages, of one run or many."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from denetdm_cli import shell
from denetdm_cli.cli_options import (
    BatchSizeOption,
    DataRootOption,
    DeviceOption,
    EpochsOption,
    ForceOption,
    OutOption,
    PrecisionOption,
    ResumeOption,
    SelectOption,
    SetOption,
    SourceOption,
)


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command("train-poe")(train_poe)
    app.command("distill")(distill)


def train_poe(
    dataset: Annotated[
        str | None, typer.Option(help="Preset by name, such as coloredmnist; denetdm configs ls.", metavar="NAME")
    ] = None,
    config_file: Annotated[
        Path | None, typer.Option("--config", help="A YAML file of your own.", metavar="FILE")
    ] = None,
    settings: SetOption = None,
    ratio: Annotated[float | None, typer.Option(help="Conflict ratio of the data set.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of initialisation and data order.")] = None,
    epochs: EpochsOption = None,
    batch_size: BatchSizeOption = None,
    select: SelectOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    data_root: DataRootOption = None,
    source: SourceOption = None,
    out: OutOption = None,
    resume: ResumeOption = "auto",
    force: ForceOption = False,
) -> None:
    """Stage 1: train a shallow and a deep branch as a product of experts."""
    from denetdm_cli import stages, tables

    options = {
        "dataset.ratio": ratio,
        "dataset.root": data_root,
        "seed": seed,
        "train_poe.epochs": epochs,
        "train_poe.batch_size": batch_size,
        "selection": select,
        "device": device,
        "compute.precision": precision,
        "out": out,
    }
    resolved = shell.absolute(shell.load_config(dataset, config_file, settings, options))
    with _ranks(resolved) as ranks:
        stored = shell.the_dataset(resolved.dataset, source, ranks)
        finished = shell.train(stages.train_poe(resolved, stored, stages.How(resume, force, ranks)), resolved)
    tables.show_finished(finished, resolved.selection, f"denetdm distill {shell.as_typed(finished.folder.parent)}")


def distill(
    run: Annotated[Path, typer.Argument(help="Run folder of a finished stage 1.", metavar="RUN")],
    settings: SetOption = None,
    epochs: EpochsOption = None,
    batch_size: BatchSizeOption = None,
    select: SelectOption = None,
    teacher: Annotated[Literal["selected", "last"] | None, typer.Option(help="Stage-1 epoch to distil from.")] = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    data_root: DataRootOption = None,
    source: SourceOption = None,
    out: OutOption = None,
    resume: ResumeOption = "auto",
    force: ForceOption = False,
) -> None:
    """Stage 2: distil the target model from a finished stage 1."""
    from denetdm_cli import config, console, stages, tables
    from denetdm_cli.runs import finished_stage_1

    options = {
        "dataset.root": data_root,
        "distill.epochs": epochs,
        "distill.batch_size": batch_size,
        "distill.teacher": teacher,
        "selection": select,
        "device": device,
        "compute.precision": precision,
        "out": out,
    }
    stage_1 = finished_stage_1(run)
    resolved = shell.absolute(config.load(stage_1.config_file, settings or (), options))
    moved = out is not None or any(setting.partition("=")[0].strip() == "out" for setting in settings or ())
    console.show_warnings(stages.separation_warnings(resolved, stage_1))
    with _ranks(resolved) as ranks:
        stored = shell.the_dataset(resolved.dataset, source, ranks)
        home = stages.run_path(resolved, stored) if moved else stage_1.path.parent
        how = stages.How(resume, force, ranks)
        finished = shell.train(stages.distill(resolved, stored, stage_1, home, how), resolved)
    tables.show_finished(finished, resolved.selection, f"denetdm evaluate {shell.as_typed(finished.folder)}")


@contextmanager
def _ranks(config: Any) -> Iterator[Any]:
    """The processes that train together, able to talk; a missing device is refused before any data is made."""
    from denetdm_cli.ranks import announced, joined
    from denetdm_cli.runtime import resolve_device

    ranks = announced()
    with joined(ranks, resolve_device(config.device, ranks)):
        yield ranks
