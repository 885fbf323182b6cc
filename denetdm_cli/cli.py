"""The commands. Each gathers its options, calls the core and shows the result; heavy imports wait until then."""

import errno
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from denetdm_cli import __version__, cli_models, shell
from denetdm_cli.errors import EXIT_INTERRUPTED, ConfigError, DataError, StorageError, UserError

app = typer.Typer(
    name="denetdm",
    help="Train image classifiers that do not lean on shortcuts, without bias labels (DeNetDM, NeurIPS 2024).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
configs_app = typer.Typer(help="List, print and copy the shipped configurations.", no_args_is_help=True)
app.add_typer(configs_app, name="configs")

_CHECKED_SIZE = 64
_ARCHIVE_ENDING = re.compile(r"(\.tar)?\.(csv|zip|tar|t?gz|bz2|xz)$", re.IGNORECASE)

Rule = Literal["last", "valid", "paper"]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one configuration key; may be repeated.")
]
DeviceOption = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
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
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on from the last completed epoch of a stopped run.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Start anew and delete the run that is there.")]


def main() -> NoReturn:
    """Run the program; a user's mistake ends in two lines and the exit code of its kind, never in a traceback."""
    try:
        app(prog_name="denetdm")
    except KeyboardInterrupt:  # before or after a command
        sys.exit(EXIT_INTERRUPTED)
    except UserError as error:
        _fail(error)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        _fail(
            StorageError(
                f"{error.filename}: {error.strerror}" if error.filename else str(error),
                "Make room, or give another folder. Nothing is half-written, and completed epochs are kept: a training "
                "goes on with --resume."
                if full
                else "Check the path and its permissions, or give another one.",
            )
        )
    sys.exit(0)


def _fail(error: UserError) -> NoReturn:
    from denetdm_cli.console import show_error

    show_error(error)
    sys.exit(error.exit_code)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"denetdm {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command("make-data")
def make_data(
    dataset: Annotated[str, typer.Argument(help="Name of the data set; denetdm configs ls lists them.")],
    source: SourceOption = None,
    ratio: Annotated[list[float] | None, typer.Option(help="Conflict ratio; may be repeated.")] = None,
    severity: Annotated[int | None, typer.Option(help="How strong colour or corruption is; the papers use 4.")] = None,
    corruptions: Annotated[
        int | None, typer.Option("--type", help="Corrupted CIFAR-10: which ten corruptions, 0 or 1.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Own images: name of the folder to make.", metavar="NAME")] = None,
    size: Annotated[int | None, typer.Option(help="Imports: side of the stored images in pixels.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the data set.")] = None,
    settings: SetOption = None,
    frost: Annotated[
        Path | None, typer.Option(help="Corrupted CIFAR-10: local copy of the frost textures.", metavar="DIR")
    ] = None,
    data_root: DataRootOption = None,
    preview: Annotated[
        Path | None,
        typer.Option(help="Draw a contact sheet of the (first) training split.", metavar="FILE.png"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Make it anew, replacing what is there.")] = False,
) -> None:
    """Make a biased data set, or import one, in the layout of LfF and DeNetDM."""
    from denetdm_cli import config
    from denetdm_cli.tables import show_dataset

    if preview is not None:
        shell.require_ending(preview, ".png", "--preview")
    path = config.preset_path(dataset)
    options = {
        "dataset.severity": severity,
        "dataset.type": corruptions,
        "dataset.folder": name,
        "dataset.size": size,
        "dataset.seed": seed,
        "dataset.root": data_root,
    }
    chosen = config.load(path, settings or ()).dataset
    shell.require_options(dataset, chosen, options | {"dataset.ratio": ratio or None, "frost": frost})
    wanted = [
        shell.absolute(config.load(path, settings or (), options | {"dataset.ratio": value})).dataset
        for value in (ratio if ratio else (None,))
    ]
    made = shell.make_or_open(wanted, source, force, frost)
    for stored, new in made:
        groups = source is not None and shell.few_groups(stored)
        show_dataset(stored, f"{stored.path} ({'made now' if new else 'was there already'})", groups=groups)
    if preview is not None:
        shell.draw_sheet(made[0][0], preview, made[0][0].path.name)


@app.command()
def validate(
    data: Annotated[
        Path, typer.Argument(help="A data set folder, or images to be: class folders, a CSV file, an archive.")
    ],
    preview: Annotated[
        Path | None, typer.Option(help="Where to draw a contact sheet (default: DATA-sheet.png here).", metavar="FILE")
    ] = None,
    settings: SetOption = None,
) -> None:
    """Check a data set folder, or images before they are imported, and show what is in it."""
    from denetdm_cli import config
    from denetdm_cli.data.store import looks_like_dataset, open_dataset
    from denetdm_cli.tables import show_dataset
    from denetdm_cli.temporary import scratch_folder

    sheet = preview or Path(f"{_ARCHIVE_ENDING.sub('', data.resolve().name)}-sheet.png")
    shell.require_ending(sheet, ".png", "--preview")
    if looks_like_dataset(data):
        if settings:
            raise ConfigError(f"--set: {data} is a data set already", "Leave it out; it is for images to be imported.")
        stored = open_dataset(data, thorough=True)
        show_dataset(stored, f"{data} (sound)", groups=True)
        shell.draw_sheet(stored, sheet, stored.path.name)
        return
    given = {setting.partition("=")[0].strip() for setting in settings or ()}
    if unused := sorted(given & {"dataset.root", "dataset.folder"}):
        raise ConfigError(f"--set {unused[0]}: validate keeps no data set", "Leave it out; it is for make-data.")
    with scratch_folder() as scratch:
        size = None if "dataset.size" in given else _CHECKED_SIZE
        options = {"dataset.root": str(scratch), "dataset.folder": "checked", "dataset.size": size}
        wanted = config.load(config.preset_path("folder"), settings or (), options).dataset
        try:
            ((stored, _),) = shell.make_or_open([wanted], data, force=False)
        except StorageError as error:
            raise StorageError(error.what, "Set the environment variable TMPDIR to a folder with more space.") from None
        show_dataset(stored, f"{data}, as make-data folder would import it", groups=True, digest=False)
        shell.draw_sheet(stored, sheet, data.resolve().name)


@app.command("train-poe")
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
    data_root: DataRootOption = None,
    source: SourceOption = None,
    out: OutOption = None,
    resume: ResumeOption = False,
    force: ForceOption = False,
) -> None:
    """Stage 1: train a shallow and a deep branch as a product of experts."""
    from denetdm_cli import stages, tables
    from denetdm_cli.runtime import resolve_device

    options = {
        "dataset.ratio": ratio,
        "dataset.root": data_root,
        "seed": seed,
        "train_poe.epochs": epochs,
        "train_poe.batch_size": batch_size,
        "selection": select,
        "device": device,
        "out": out,
    }
    resolved = shell.absolute(shell.load_config(dataset, config_file, settings, options))
    resolve_device(resolved.device)  # refused before any data is made
    stored = shell.the_dataset(resolved.dataset, source)
    finished = shell.train(stages.train_poe(resolved, stored, resume=resume, force=force))
    tables.show_finished(finished, resolved.selection, f"denetdm distill {shell.as_typed(finished.folder.parent)}")


@app.command()
def distill(
    run: Annotated[Path, typer.Argument(help="Run folder of a finished stage 1.", metavar="RUN")],
    settings: SetOption = None,
    epochs: EpochsOption = None,
    batch_size: BatchSizeOption = None,
    select: SelectOption = None,
    teacher: Annotated[Literal["selected", "last"] | None, typer.Option(help="Stage-1 epoch to distil from.")] = None,
    device: DeviceOption = None,
    data_root: DataRootOption = None,
    source: SourceOption = None,
    out: OutOption = None,
    resume: ResumeOption = False,
    force: ForceOption = False,
) -> None:
    """Stage 2: distil the target model from a finished stage 1."""
    from denetdm_cli import config, console, stages, tables
    from denetdm_cli.runs import finished_stage_1
    from denetdm_cli.runtime import resolve_device

    options = {
        "dataset.root": data_root,
        "distill.epochs": epochs,
        "distill.batch_size": batch_size,
        "distill.teacher": teacher,
        "selection": select,
        "device": device,
        "out": out,
    }
    stage_1 = finished_stage_1(run)
    resolved = shell.absolute(config.load(stage_1.config_file, settings or (), options))
    resolve_device(resolved.device)  # refused before any data is made
    stored = shell.the_dataset(resolved.dataset, source)
    moved = out is not None or any(setting.partition("=")[0].strip() == "out" for setting in settings or ())
    console.show_warnings(stages.separation_warnings(resolved, stage_1))
    home = stages.run_path(resolved, stored) if moved else stage_1.path.parent
    finished = shell.train(stages.distill(resolved, stored, stage_1, home, resume=resume, force=force))
    tables.show_finished(finished, resolved.selection, f"denetdm evaluate {shell.as_typed(finished.folder)}")


@app.command()
def evaluate(
    runs: Annotated[list[Path], typer.Argument(help="Run folders or .safetensors checkpoints.", metavar="RUN")],
    data: Annotated[Path | None, typer.Option(help="Another data set folder, ours or LfF's.", metavar="DIR")] = None,
    split: Annotated[
        Literal["evaluation", "valid", "test", "train"] | None,
        typer.Option(help="evaluation (all), valid (the tenth kept for selection), test (the rest) or train."),
    ] = None,
    select: SelectOption = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    data_root: DataRootOption = None,
    source: SourceOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
    predictions: Annotated[Path | None, typer.Option(help="Write one row an image.", metavar="FILE.csv")] = None,
) -> None:
    """Report accuracies by group; several checkpoints give mean and standard deviation."""
    from denetdm_cli import console, scoring, tables
    from denetdm_cli.data.catalog import folder
    from denetdm_cli.runtime import resolve_device

    def open_own(config: Any) -> Any:
        root = {} if data_root is None else {"root": data_root}
        config = shell.absolute(config.model_copy(update={"dataset": config.dataset.model_copy(update=root)}))
        trained_on = folder(config.dataset)
        if data_root is None and not trained_on.exists():
            # A checkpoint may come from anywhere: what it says of folders is no reason to write there.
            raise DataError(
                f"the data set the checkpoint was trained on is not in {trained_on}",
                "Give the folder that holds it with --data-root (it is made there if it is missing), or evaluate on "
                "another data set with --data DIR.",
            )
        ((stored, made),) = shell.make_or_open([config.dataset], source=source, force=False)
        if made:
            console.say(f"data set {stored.path} made now")
        return stored

    if predictions is not None:
        shell.require_ending(predictions, ".csv", "--predictions")
    paths = [scoring.find_checkpoint(run, select) for run in runs]
    scores = list(scoring.score_all(paths, resolve_device(device), open_own, data=data, part=split))
    summary = scoring.summarise(scores)
    if predictions is not None:
        scoring.write_predictions(predictions, scores)
        console.say(f"predictions: {predictions}")
    if as_json:
        console.show_json({"results": [score.to_json() for score in scores], "summary": summary})
    else:
        tables.show_scores(scores, summary)


cli_models.register(app)


@configs_app.command("ls")
def configs_ls() -> None:
    """List the shipped configurations."""
    from denetdm_cli import config

    for name in config.preset_names():
        typer.echo(name)


@configs_app.command("show")
def configs_show(name: Annotated[str, typer.Argument(help="Name of the configuration.")]) -> None:
    """Print a shipped configuration."""
    from denetdm_cli import config

    typer.echo(config.preset_path(name).read_text(encoding="utf-8"), nl=False)


@configs_app.command("cp")
def configs_cp(
    name: Annotated[str, typer.Argument(help="Name of the configuration.")],
    destination: Annotated[Path, typer.Argument(help="File to write.", metavar="FILE")],
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Copy a shipped configuration to a file of your own."""
    from denetdm_cli import config
    from denetdm_cli.files import atomic_file

    source = config.preset_path(name)
    if destination.is_dir():
        destination = destination / source.name
    if destination.exists() and not force:
        raise ConfigError(f"{destination} exists", "Give another name, or --force to replace it.")
    with atomic_file(destination) as temporary:
        shutil.copyfile(source, temporary)
    typer.echo(f"{destination}: use it with denetdm train-poe --config {shlex.quote(str(destination))}")
