"""What the commands share; heavy imports are inside the functions, so that --help answers at once."""

import shlex
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import typer

from denetdm_cli.errors import EXIT_INTERRUPTED, ConfigError

_GROUPS_AT_A_GLANCE = 64


def load_config(dataset: str | None, file: Path | None, settings: list[str] | None, options: dict[str, Any]) -> Any:
    """The configuration that --dataset or --config names, with --set and plain options on top."""
    from denetdm_cli import config

    if dataset is not None and file is None:
        return config.load(config.preset_path(dataset), settings or (), options)
    if file is not None and dataset is None:
        return config.load(file, settings or (), options)
    raise ConfigError(
        "give either --dataset NAME or --config FILE",
        f"Presets: {', '.join(config.preset_names())}. For example: denetdm train-poe --dataset coloredmnist",
    )


def absolute(config: Any) -> Any:
    """Pin relative folders to where the command was run, so that later commands work from anywhere."""

    def pinned(folder: str) -> str:
        try:
            return str(Path(folder).expanduser().resolve())
        except RuntimeError as error:
            raise ConfigError(f"the folder {folder!r}: {error}", "Give a path without ~.") from None

    dataset = config.dataset.model_copy(update={"root": pinned(config.dataset.root)})
    model = config.model.model_copy(
        update={
            name: branch.model_copy(update={"weights": pinned(branch.weights)})
            for name, branch in config.model
            if getattr(branch, "weights", None) not in (None, "imagenet")
        }
    )
    return config.model_copy(update={"dataset": dataset, "model": model, "out": pinned(config.out)})


def require_options(name: str, dataset: Any, given: dict[str, Any]) -> None:
    """Refuse options of make-data that a data set does not have.

    Args:
        name: of the preset.
        dataset: its section `dataset`.
        given: values by dotted key, and `frost`; None where the option was not given.
    Raises:
        ConfigError: names them, and those that it has.
    """
    from denetdm_cli.data.recipes import OPTIONS

    options = {f"dataset.{key}": option for key, option in OPTIONS.items()} | {"frost": "--frost"}
    corrupted = hasattr(dataset, "type")
    kind = dataset.type if corrupted and given["dataset.type"] is None else given["dataset.type"]
    has = [key for key in options if hasattr(dataset, key.removeprefix("dataset."))]
    has += ["frost"] if corrupted and kind == 0 else []
    wrong = [option for key, option in options.items() if given[key] is not None and key not in has]
    if wrong:
        kind_of_frost = f" --type {kind}" if corrupted and "--frost" in wrong else ""
        raise ConfigError(
            f"make-data {name}{kind_of_frost} has no option {' and no '.join(wrong)}",
            f"Leave {'it' if len(wrong) == 1 else 'them'} out. There are {', '.join(options[key] for key in has)} and, "
            "as for every data set, --source, --set, --data-root, --preview and --force.",
        )


def make_or_open(
    wanted: list[Any], source: Path | None, force: bool, frost: Path | None = None
) -> list[tuple[Any, bool]]:
    """The data sets with these settings, and whether each was made now; a bar or lines tell how it goes."""
    from denetdm_cli.console import DataReport
    from denetdm_cli.data.catalog import ensure_datasets

    report = DataReport()
    try:
        return ensure_datasets(wanted, source=source, frost=frost, force=force, reporter=report)
    except KeyboardInterrupt:
        report.say("stopped; nothing is half-made")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    finally:
        report.close()


def few_groups(dataset: Any) -> bool:
    """Whether the images of every group can be listed at a glance."""
    return len(dataset.class_names) * max(len(dataset.bias_names), 1) <= _GROUPS_AT_A_GLANCE


def draw_sheet(dataset: Any, path: Path, name: str) -> None:
    """Draw a contact sheet of the training split of a data set that goes by `name`."""
    from denetdm_cli.console import say
    from denetdm_cli.data.preview import contact_sheet

    contact_sheet(
        dataset.splits["train"],
        path,
        class_names=dataset.class_names,
        bias_names=dataset.bias_names,
        aligned=dataset.aligned,
        title=f"{name}, train",
    )
    say(f"contact sheet of {name}: {path}")


def the_dataset(wanted: Any, source: Path | None) -> Any:
    """Open a data set, or make it where it is missing, and say which."""
    from denetdm_cli.console import say

    ((stored, made),) = make_or_open([wanted], source, force=False)
    say(f"data set {stored.path} {'made now' if made else 'is there already'}")
    return stored


def train(events: Any) -> Any:
    """Follow a stage to its end; Ctrl-C ends it with the command that goes on."""
    from denetdm_cli.console import follow

    again = shlex.join(["denetdm", *(arg for arg in sys.argv[1:] if arg not in ("--resume", "--force"))])
    try:
        with closing(events):  # lets go of the run folder
            return follow(events, again)
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None


def require_ending(path: Path, ending: str, option: str) -> None:
    """Refuse to replace a file of another kind."""
    if path.is_dir():
        raise ConfigError(f"{option} {path} is a folder", f"Give the name of a file that ends in {ending}.")
    if path.is_file() and path.suffix.lower() != ending:
        raise ConfigError(f"{option} {path}: there is another file of that name", f"Give a name that ends in {ending}.")


def as_typed(path: Path) -> str:
    """A path as one would type it here."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))
