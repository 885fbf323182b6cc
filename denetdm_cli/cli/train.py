"""The commands that train: any method by its name, and the two stages of DeNetDM; one run or many."""

from collections.abc import Callable
from itertools import groupby
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
    app.command("train")(train)
    app.command("train-poe")(train_poe)
    app.command("distill")(distill)


DatasetOption = Annotated[
    str | None,
    typer.Option(
        help="Preset by name, such as coloredmnist; denetdm configs ls.",
        metavar="NAME",
        autocompletion=complete_presets,
    ),
]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="A YAML file of your own.", metavar="FILE")]
RatioOption = Annotated[
    list[float] | None, typer.Option(help="Conflict ratio of the data set; several are as many runs.")
]
SeedOption = Annotated[int | None, typer.Option(help="Seed of initialization and data order.")]
SeedsOption = Annotated[str | None, typer.Option(help="Several seeds, as many runs: 0-4, or 0,2,7.", metavar="LIST")]
EvaluateOption = Annotated[bool, typer.Option("--then-evaluate", help="Evaluate what was trained last.")]


def train(
    method: Annotated[str, typer.Argument(help="Its name, such as erm; a wrong name lists all.", metavar="METHOD")],
    dataset: DatasetOption = None,
    config_file: ConfigOption = None,
    settings: SetOption = None,
    ratio: RatioOption = None,
    seed: SeedOption = None,
    seeds: SeedsOption = None,
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
    then_evaluate: EvaluateOption = False,
    resume: ResumeOption = "auto",
    force: ForceOption = False,
    track: TrackOption = None,
) -> None:
    """Train a method on a data set, after what it starts from where that is not finished."""
    common.launched(processes)
    from denetdm_cli.config.explain import nearest
    from denetdm_cli.methods import METHODS
    from denetdm_cli.training.pipeline import methods_up_to

    if method not in METHODS:
        raise ConfigError(f"unknown method {method!r}{nearest(method, METHODS)}", f"Methods: {', '.join(METHODS)}.")
    options = _options(
        method, epochs=epochs, batch_size=batch_size, select=select, device=device, precision=precision,
        data_root=data_root, out=out,
    )  # fmt: skip
    configs = _new_runs(dataset, config_file, settings, options, ratio, seed, seeds)
    stages = methods_up_to(method)
    _train(configs, _in_new_folders(stages, resume, (method,) if force else (), track), source, workers, then_evaluate)


def train_poe(
    dataset: DatasetOption = None,
    config_file: ConfigOption = None,
    settings: SetOption = None,
    ratio: RatioOption = None,
    seed: SeedOption = None,
    seeds: SeedsOption = None,
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
    then_distill: Annotated[bool, typer.Option("--then-distill", help="Then train stage 2.")] = False,
    then_evaluate: EvaluateOption = False,
    resume: ResumeOption = "auto",
    force: ForceOption = False,
    track: TrackOption = None,
) -> None:
    """Stage 1: train a shallow and a deep branch as a product of experts."""
    common.launched(processes)
    options = _options(
        "train-poe", epochs=epochs, batch_size=batch_size, select=select, device=device, precision=precision,
        data_root=data_root, out=out,
    )  # fmt: skip
    configs = _new_runs(dataset, config_file, settings, options, ratio, seed, seeds)
    stages = ("train-poe", "distill") if then_distill else ("train-poe",)
    _train(configs, _in_new_folders(stages, resume, stages if force else (), track), source, workers, then_evaluate)


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
    from denetdm_cli.training.run_folder import finished_stage
    from denetdm_cli.utils import log

    trackers = _trackers(track)
    options = _options(
        "distill", epochs=epochs, batch_size=batch_size, select=select, device=device, precision=precision,
        data_root=data_root, out=out,
    ) | {"distill.teacher": teacher}  # fmt: skip
    if len({run.resolve() for run in runs}) < len(runs):
        raise ConfigError("a run is named twice", "Name each of them once.")
    moved = out is not None or any(setting.partition("=")[0].strip() == "out" for setting in settings or ())
    teachers = [finished_stage(run, "train-poe") for run in runs]
    configs = [common.absolute(load_config(folder.config_file, settings or (), options)) for folder in teachers]
    for config, folder in zip(configs, teachers, strict=True):
        warnings = stages.teacher_warnings("distill", config, folder)
        log.show_warnings([f"{common.shell_path(folder.path.parent)}: {w}" if len(runs) > 1 else w for w in warnings])
    from_folder = iter(teachers)

    def job(config: Any, dataset: Any) -> Any:
        run = next(from_folder).path.parent
        home = stages.run_path(config, dataset) if moved else run
        return Job(config, home, dataset.path, ("distill",), run, resume, ("distill",) if force else (), trackers)

    _train(configs, job, source, workers, then_evaluate)


def _options(method: str, **given: Any) -> dict[str, Any]:
    """The keys that the options of a training command set; None where an option is not given."""
    from denetdm_cli.config.schema import section_of

    section = section_of(method)
    keys = {
        "epochs": f"{section}.epochs",
        "batch_size": f"{section}.batch_size",
        "select": "selection",
        "device": "device",
        "precision": "compute.precision",
        "data_root": "dataset.root",
        "out": "out",
    }
    return {keys[name]: value for name, value in given.items()}


def _new_runs(
    dataset: str | None,
    config_file: Path | None,
    settings: list[str] | None,
    options: dict[str, Any],
    ratio: list[float] | None,
    seed: int | None,
    seeds: str | None,
) -> list[Any]:
    """The configuration of each run: every ratio with every seed."""
    ratios: list[float | None] = [*ratio] if ratio else [None]
    if len(set(ratios)) < len(ratios):
        raise ConfigError("--ratio names a conflict ratio twice", "Name each of them once.")
    many = [
        options | {"seed": one_seed, "dataset.ratio": one_ratio}
        for one_ratio in ratios
        for one_seed in _seeds(seed, seeds)
    ]
    return [common.absolute(common.load_config(dataset, config_file, settings, one)) for one in many]


def _in_new_folders(
    methods: tuple[str, ...], resume: Any, forced: tuple[str, ...], track: list[str] | None
) -> Callable[[Any, Any], Any]:
    """What makes the job of a run, in the folder that its configuration names."""
    trackers = _trackers(track)

    def job(config: Any, dataset: Any) -> Any:
        from denetdm_cli.training.pipeline import Job
        from denetdm_cli.training.stages import run_path

        return Job(config, run_path(config, dataset), dataset.path, methods, None, resume, forced, trackers)

    return job


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
    """Make the data sets that are missing, train one run or many, and show the results."""
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
        last = {finished.folder.parent: finished.folder for finished in ends}
        for _, alike in groupby((job for job in jobs if job.run in last), lambda job: job.dataset_path):
            evaluate([last[job.run] for job in alike], select=jobs[0].config.selection)


def _next_command(finished: Any, config: Any, dataset: Any) -> str:
    """What one types after a stage."""
    from denetdm_cli.methods import METHODS

    if METHODS[finished.results["stage"]].exports:
        return f"denetdm evaluate {common.shell_path(finished.folder)}"
    stage = finished.results["stage"]
    follower = next(name for name, method in METHODS.items() if method.starts_from == stage)
    too_large = config.settings(follower).batch_size > len(dataset.splits["train"].target)
    smaller = f" --batch-size {config.settings(stage).batch_size}" if too_large else ""
    return f"denetdm {follower} {common.shell_path(finished.folder.parent)}{smaller}"
