"""The commands for data sets: make-data and validate."""

import re
from pathlib import Path
from typing import Annotated

import typer

from denetdm_cli.cli import common
from denetdm_cli.cli.options import DataRootOption, SetOption, SourceOption, complete_presets
from denetdm_cli.utils.errors import ConfigError, StorageError

_CHECKED_SIZE = 64
_ARCHIVE_ENDING = re.compile(r"(\.tar)?\.(csv|zip|tar|t?gz|bz2|xz)$", re.IGNORECASE)


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command("make-data")(make_data)
    app.command("validate")(validate)


def make_data(
    dataset: Annotated[
        str,
        typer.Argument(help="Name of the data set; denetdm configs ls lists them.", autocompletion=complete_presets),
    ],
    source: SourceOption = None,
    ratio: Annotated[list[float] | None, typer.Option(help="Conflict ratio; may be repeated.")] = None,
    severity: Annotated[int | None, typer.Option(help="Strength of color or corruption; the papers use 4.")] = None,
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
    from denetdm_cli.cli.tables import show_dataset
    from denetdm_cli.config.load import load_config, preset_path
    from denetdm_cli.data.registry import is_imported

    if preview is not None:
        common.require_ending(preview, ".png", "--preview")
    path = preset_path(dataset)
    options = {
        "dataset.severity": severity,
        "dataset.type": corruptions,
        "dataset.folder": name,
        "dataset.size": size,
        "dataset.seed": seed,
        "dataset.root": data_root,
    }
    chosen = load_config(path, settings or ()).dataset
    common.dataset_keys(settings or ())
    common.require_options(dataset, chosen, options | {"dataset.ratio": ratio or None, "frost": frost})
    wanted = [
        common.absolute(load_config(path, settings or (), options | {"dataset.ratio": value})).dataset
        for value in (ratio if ratio else (None,))
    ]
    made = common.make_or_open(wanted, source, force, frost)
    imported = source is not None and is_imported(wanted[0])  # the recipe of a synthetic data set gives the counts
    for stored, new in made:
        show_dataset(stored, f"{stored.path} ({'made now' if new else 'was there already'})", groups=imported)
    if preview is not None:
        common.draw_sheet(made[0][0], preview, made[0][0].path.name)


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
    from denetdm_cli.cli.tables import show_dataset
    from denetdm_cli.config.load import load_config, preset_path
    from denetdm_cli.data.store import looks_like_dataset, open_dataset
    from denetdm_cli.utils.files import scratch_folder

    sheet = preview or Path(f"{_ARCHIVE_ENDING.sub('', data.resolve().name)}-sheet.png")
    common.require_ending(sheet, ".png", "--preview")
    if looks_like_dataset(data):
        if settings:
            raise ConfigError(f"--set: {data} is a data set already", "Leave it out; it is for images to be imported.")
        stored = open_dataset(data, thorough=True)
        show_dataset(stored, f"{data} (sound)", groups=True)
        common.draw_sheet(stored, sheet, stored.path.name)
        return
    given = common.dataset_keys(settings or ())
    if unused := sorted(given & {"dataset.root", "dataset.folder"}):
        raise ConfigError(f"--set {unused[0]}: validate keeps no data set", "Leave it out; it is for make-data.")
    with scratch_folder() as scratch:
        size = None if "dataset.size" in given else _CHECKED_SIZE
        options = {"dataset.root": str(scratch), "dataset.folder": "checked", "dataset.size": size}
        wanted = load_config(preset_path("folder"), settings or (), options).dataset
        try:
            ((stored, _),) = common.make_or_open([wanted], data, force=False)
        except StorageError as error:
            raise StorageError(error.what, "Set the environment variable TMPDIR to a folder with more space.") from None
        show_dataset(stored, f"{data}, as make-data folder would import it", groups=True, digest=False)
        common.draw_sheet(stored, sheet, data.resolve().name)
