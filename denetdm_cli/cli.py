"""The commands. Each gathers its options, calls the core and shows the result; heavy imports wait until then."""

import os
import re
import shlex
import shutil
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from denetdm_cli import __version__, cli_evaluation, cli_models, cli_runs, cli_training, logs, shell, stopping
from denetdm_cli.allotment import keep_libraries_to_allotment
from denetdm_cli.cli_arguments import (
    DataRootOption,
    SetOption,
    SourceOption,
)
from denetdm_cli.cli_options import Program, QuietOption, VerboseOption, complete_presets
from denetdm_cli.errors import ConfigError, StorageError, UserError, of_system
from denetdm_cli.presets import preset_names

app = typer.Typer(
    name="denetdm",
    cls=Program,
    help="Train image classifiers that do not lean on shortcuts, without bias labels (DeNetDM, NeurIPS 2024).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
configs_app = typer.Typer(help="List, print and copy the shipped configurations.", no_args_is_help=True)
app.add_typer(configs_app, name="configs")

_CHECKED_SIZE = 64
_ARCHIVE_ENDING = re.compile(r"(\.tar)?\.(csv|zip|tar|t?gz|bz2|xz)$", re.IGNORECASE)

ConfigArgument = Annotated[str, typer.Argument(help="Name of the configuration.", autocompletion=complete_presets)]


def main() -> NoReturn:
    """Run the program; a user's mistake ends in two lines and the exit code of its kind, never in a traceback."""
    logs.reset()
    keep_libraries_to_allotment()
    code = _run()
    if os.environ.get("WORLD_SIZE", "1") != "1":  # one of several ranks
        # DistributedDataParallel leaves threads of its process group behind for good. They can abort the process while
        # the interpreter takes itself down, so that is skipped.
        with suppress(OSError):  # a pipe that nobody reads any more
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _run() -> int:
    """Run the command that was asked for and return the exit code."""
    try:
        with stopping.listening():
            _call()
    except SystemExit as end:
        stop = _stop_behind(end)
        return int(end.code or 0) if stop is None else _stopped(stop)
    except KeyboardInterrupt as stop:  # outside typer
        return _stopped(stop)
    except UserError as error:
        return _failed(error)
    except OSError as error:
        for line in traceback.format_exc().splitlines():
            logs.detail(line)
        return _failed(of_system(error))
    return 0


def _call() -> None:
    """Run the command; a signal in the middle of an import may turn into any error, and is a stop all the same."""
    try:
        app(prog_name="denetdm")
    except Exception as error:
        stop = stopping.raised()
        if stop is None or isinstance(error, UserError):
            raise
        for line in traceback.format_exc().splitlines():
            logs.detail(line)
        raise stop from None


def _stop_behind(end: SystemExit) -> KeyboardInterrupt | None:
    """What stopped the program, which typer takes for Ctrl-C whatever it was."""
    stop = None if end.__context__ is None else end.__context__.__cause__
    return stop if isinstance(stop, KeyboardInterrupt) else None


def _stopped(stop: KeyboardInterrupt) -> int:
    if isinstance(stop, stopping.Stopped) and not stop.told:
        logs.say(f"stopped by {stop}", always=True)
    return stopping.exit_code(stop)


def _failed(error: UserError) -> int:
    if not error.told:
        logs.show_error(error)
    return error.exit_code


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"denetdm {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    pass


@app.command("make-data")
def make_data(
    dataset: Annotated[
        str,
        typer.Argument(help="Name of the data set; denetdm configs ls lists them.", autocompletion=complete_presets),
    ],
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
    from denetdm_cli.data.catalog import ImportConfig
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
    shell.dataset_keys(settings or ())
    shell.require_options(dataset, chosen, options | {"dataset.ratio": ratio or None, "frost": frost})
    wanted = [
        shell.absolute(config.load(path, settings or (), options | {"dataset.ratio": value})).dataset
        for value in (ratio if ratio else (None,))
    ]
    made = shell.make_or_open(wanted, source, force, frost)
    imported = source is not None and isinstance(wanted[0], ImportConfig)  # of what is made, the recipe says the counts
    for stored, new in made:
        show_dataset(stored, f"{stored.path} ({'made now' if new else 'was there already'})", groups=imported)
    if preview is not None:
        shell.draw_sheet(made[0][0], preview, made[0][0].path.name)


@app.command()
def validate(
    data: Annotated[
        Path, typer.Argument(help="A data set folder, or images to be: class folders, a CSV file, an archive.")
    ],
    preview: Annotated[
        Path | None,
        typer.Option(help="Where to draw a contact sheet (default: DATA-sheet.png here).", metavar="FILE.png"),
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
    given = shell.dataset_keys(settings or ())
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


cli_training.register(app)
cli_evaluation.register(app)
cli_models.register(app)
cli_runs.register(app)


@configs_app.command("ls")
def configs_ls() -> None:
    """List the shipped configurations."""
    for name in preset_names():
        typer.echo(name)


@configs_app.command("show")
def configs_show(name: ConfigArgument) -> None:
    """Print a shipped configuration."""
    from denetdm_cli import config

    typer.echo(config.preset_path(name).read_text(encoding="utf-8"), nl=False)


@configs_app.command("cp")
def configs_cp(
    name: ConfigArgument,
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
