"""The commands that train: the two stages, of one run or many."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from denetdm_cli.cli import common
from denetdm_cli.cli.evaluate import evaluate
from denetdm_cli.cli.options import (
    BatchSizeOption,
    DataRootOption,
    DeviceOption,
    EpochsOption,
    ForceOption,
    OutOption,
    PrecisionOption,
    ProcessesOption,
    ResumeOption,
    SelectOption,
    SetOption,
    SourceOption,
    TrackOption,
    WorkersOption,
    complete_presets,
)
from denetdm_cli.cli.report import report
from denetdm_cli.utils.errors import ConfigError

_MOST_SEEDS = 1000


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command("train-poe")(train_poe)
    app.command("distill")(distill)


def train_poe(
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Preset by name, such as coloredmnist; denetdm configs ls.",
            metavar="NAME",
            autocompletion=complete_presets,
        ),
    ] = None,
    config_file: Annotated[
        Path | None, typer.Option("--config", help="A YAML file of your own.", metavar="FILE")
    ] = None,
    settings: SetOption = None,
    ratio: Annotated[
        list[float] | None, typer.Option(help="Conflict ratio of the data set; several are as many runs.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of initialisation and data order.")] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Several seeds, as many runs: 0-4, or 0,2,7.", metavar="LIST")
    ] = None,
    epochs: EpochsOption = None,
    batch_size: BatchSizeOption = None,
    select: SelectOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    workers: WorkersOption = None,
    processes: ProcessesOption = None,
    data_root: DataRootOption = None,
    source: SourceOption = None,
    out: OutOption = None,
    then_distill: Annotated[bool, typer.Option("--then-distill", help="Go on with stage 2.")] = False,
    then_evaluate: Annotated[bool, typer.Option("--then-evaluate", help="Evaluate what was trained last.")] = False,
    resume: ResumeOption = "auto",
    force: ForceOption = False,
    track: TrackOption = None,
) -> None:
    """Stage 1: train a shallow and a deep branch as a product of experts."""
    common.launched(processes)
    tracks = _trackers(track)
    options: dict[str, Any] = {
        "dataset.root": data_root,
        "train_poe.epochs": epochs,
        "train_poe.batch_size": batch_size,
        "selection": select,
        "device": device,
        "compute.precision": precision,
        "out": out,
    }
    ratios: list[float | None] = [*ratio] if ratio else [None]
    if len(set(ratios)) < len(ratios):
        raise ConfigError("--ratio names a conflict ratio twice", "Name each of them once.")
    many = [
        options | {"seed": one_seed, "dataset.ratio": one_ratio}
        for one_ratio in ratios
        for one_seed in _seeds(seed, seeds)
    ]
    configs = [common.absolute(common.load_config(dataset, config_file, settings, one)) for one in many]

    def job(config: Any, stored: Any) -> Any:
        from denetdm_cli.training.pipeline import Job
        from denetdm_cli.training.stages import run_path

        return Job(config, run_path(config, stored), stored.path, None, then_distill, resume, force, tracks)

    _train(configs, job, source, workers, then_evaluate)


def distill(
    runs: Annotated[list[Path], typer.Argument(help="Run folders of a finished stage 1.", metavar="RUN")],
    settings: SetOption = None,
    epochs: EpochsOption = None,
    batch_size: BatchSizeOption = None,
    select: SelectOption = None,
    teacher: Annotated[Literal["selected", "last"] | None, typer.Option(help="Stage-1 epoch to distil from.")] = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    workers: WorkersOption = None,
    processes: ProcessesOption = None,
    data_root: DataRootOption = None,
    source: SourceOption = None,
    out: OutOption = None,
    then_evaluate: Annotated[bool, typer.Option("--then-evaluate", help="Evaluate what was trained.")] = False,
    resume: ResumeOption = "auto",
    force: ForceOption = False,
    track: TrackOption = None,
) -> None:
    """Stage 2: distil the target model from a finished stage 1."""
    common.launched(processes)
    from denetdm_cli.config.load import load_config
    from denetdm_cli.training import stages
    from denetdm_cli.training.pipeline import Job
    from denetdm_cli.training.run_folder import finished_stage_1
    from denetdm_cli.utils import log

    tracks = _trackers(track)
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
    if len({run.resolve() for run in runs}) < len(runs):
        raise ConfigError("a run is named twice", "Name each of them once.")
    moved = out is not None or any(setting.partition("=")[0].strip() == "out" for setting in settings or ())
    teachers = [finished_stage_1(run) for run in runs]
    configs = [common.absolute(load_config(stage_1.config_file, settings or (), options)) for stage_1 in teachers]
    for resolved, stage_1 in zip(configs, teachers, strict=True):
        warnings = stages.separation_warnings(resolved, stage_1)
        log.show_warnings([f"{common.shell_path(stage_1.path.parent)}: {w}" if len(runs) > 1 else w for w in warnings])
    from_folder = iter(teachers)

    def job(resolved: Any, stored: Any) -> Any:
        stage_1 = next(from_folder)
        home = stages.run_path(resolved, stored) if moved else stage_1.path.parent
        return Job(resolved, home, stored.path, stage_1.path.parent, True, resume, force, tracks)

    _train(configs, job, source, workers, then_evaluate)


def _trackers(given: list[str] | None) -> tuple[str, ...]:
    """The names that --track gives; one that cannot be used is refused before anything else is done."""
    if not given:
        return ()
    from denetdm_cli.training.trackers import chosen

    return tuple(chosen(given))


def _seeds(seed: int | None, seeds: str | None) -> list[int | None]:
    """The seeds that --seed or --seeds name; None is that of the configuration."""
    if seeds is None:
        return [seed]
    if seed is not None:
        raise ConfigError("--seed and --seeds are both given", "Give one of them.")
    found: list[int | None] = []
    for part in seeds.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or int(last or first) < int(first):
            raise ConfigError(f"--seeds {seeds!r}: {part.strip()!r} is no seed and no range", "Write 0-4, or 0,2,7.")
        if int(last or first) - int(first) >= _MOST_SEEDS:
            raise ConfigError(f"--seeds {seeds!r}: more than {_MOST_SEEDS:,} seeds", "Name fewer.")
        found += range(int(first), int(last or first) + 1)
    if len(set(found)) < len(found):
        raise ConfigError(f"--seeds {seeds!r} names a seed twice", "Name each of them once.")
    return found


def _train(
    configs: list[Any], job: Callable[[Any, Any], Any], source: Path | None, workers: int | None, then_evaluate: bool
) -> None:
    """Make the data sets that are missing, train one run or many, and show what they came to."""
    from denetdm_cli.cli import tables
    from denetdm_cli.utils import distributed
    from denetdm_cli.utils.device import resolve_device

    us = distributed.from_environment()
    device = resolve_device(configs[0].device, us)  # refused before any data is made
    if us.size > 1 and len(configs) > 1:
        raise ConfigError(
            f"{len(configs)} runs are asked for, and {us.size} processes that train one run together",
            "Train several runs without torchrun and --nproc: they share the machine by themselves.",
        )
    with distributed.process_group(us, device):
        wanted = dict.fromkeys(config.dataset for config in configs)
        datasets = {dataset: common.the_dataset(dataset, source, us) for dataset in wanted}
        jobs = [job(config, datasets[config.dataset]) for config in configs]
        ends = (
            common.train(jobs[0], datasets[configs[0].dataset], us)
            if len(jobs) == 1
            else common.train_many(jobs, workers)
        )
    if not us.is_main:
        return
    if len(jobs) == 1:
        dataset = datasets[configs[0].dataset]
        for finished in ends:
            tables.show_finished(
                finished,
                jobs[0].config.selection,
                _next_command(finished, jobs[0].config, dataset),
            )
    else:
        report([finished.folder for finished in ends])
    if then_evaluate:
        _evaluate(jobs)


def _next_command(finished: Any, config: Any, dataset: Any) -> str:
    """What one types after a stage."""
    if finished.results["stage"] == "train-poe":
        images = len(dataset.splits["train"].target)
        smaller = f" --batch-size {config.train_poe.batch_size}" if config.distill.batch_size > images else ""
        return f"denetdm distill {common.shell_path(finished.folder.parent)}{smaller}"
    return f"denetdm evaluate {common.shell_path(finished.folder)}"


def _evaluate(jobs: list[Any]) -> None:
    """Evaluate what jobs trained last, those of one data set together."""
    from itertools import groupby

    for _, alike in groupby(jobs, lambda job: job.dataset_path):
        evaluate([job.run for job in alike], select=jobs[0].config.selection)
