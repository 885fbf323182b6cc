"""What the commands share; heavy imports are inside the functions, so that --help answers at once."""

import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import typer

from denetdm_cli.config.presets import preset_names
from denetdm_cli.utils import log as logs
from denetdm_cli.utils import signals
from denetdm_cli.utils.errors import ConfigError
from denetdm_cli.utils.log import debug, info


def load_config(dataset: str | None, file: Path | None, settings: list[str] | None, options: dict[str, Any]) -> Any:
    """The configuration that --dataset or --config names, with --set and plain options on top."""
    from denetdm_cli.config.load import load_config, preset_path

    if dataset is not None and file is None:
        return load_config(preset_path(dataset), settings or (), options)
    if file is not None and dataset is None:
        return load_config(file, settings or (), options)
    raise ConfigError(
        "give either --dataset NAME or --config FILE",
        f"Presets: {', '.join(preset_names())}. For example: denetdm train-poe --dataset coloredmnist",
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


def dataset_keys(settings: Sequence[str]) -> set[str]:
    """The keys that `--set` names, where it may name those of the data set alone.

    Raises:
        ConfigError: there are others; names them.
    """
    keys = [setting.partition("=")[0].strip() for setting in settings]
    if others := [key for key in keys if key.split(".")[0] != "dataset"]:
        raise ConfigError(
            f"--set {', '.join(others)}: this command trains nothing, and makes data by the keys of dataset alone",
            "Leave it out; it is for train-poe and distill.",
        )
    return set(keys)


def require_options(name: str, dataset: Any, given: dict[str, Any]) -> None:
    """Refuse options of make-data that a data set does not have.

    Args:
        name: of the preset.
        dataset: its section `dataset`.
        given: values by dotted key, and `frost`; None where the option was not given.
    Raises:
        ConfigError: names them, and those that it has.
    """
    from denetdm_cli.data.recipe import OPTIONS

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
    from denetdm_cli.cli.progress import DataReport
    from denetdm_cli.data.registry import ensure_datasets

    report = DataReport()
    try:
        return ensure_datasets(wanted, source=source, frost=frost, force=force, reporter=report)
    except KeyboardInterrupt as stop:
        report.info("stopped; nothing is half-made")
        signals.mark_reported(stop)
        raise
    finally:
        report.close()


def draw_sheet(dataset: Any, path: Path, name: str) -> None:
    """Draw a contact sheet of the training split of a data set that goes by `name`."""
    from denetdm_cli.data.contact_sheet import contact_sheet

    contact_sheet(
        dataset.splits["train"],
        path,
        class_names=dataset.class_names,
        bias_names=dataset.bias_names,
        aligned=dataset.aligned,
        title=f"{name}, train",
    )
    info(f"contact sheet of {name}: {path}")


def the_dataset(wanted: Any, source: Path | None, ranks: Any) -> Any:
    """Open a data set, or make it where it is missing, and say which; of several ranks the first makes it."""
    from denetdm_cli.data.store import open_dataset

    here: list[Any] = []

    def make() -> tuple[Path, bool]:
        ((stored, made),) = make_or_open([wanted], source, force=False)
        here.append(stored)
        return stored.path, made

    path, made = ranks.run_on_main(make)  # the path alone: images are not sent from rank to rank
    stored = here[0] if here else open_dataset(path)
    info(f"data set {stored.path} {'made now' if made else 'is there already'}")
    debug(f"digest of the data set {stored.digest}, of its evaluation images {stored.evaluation_digest}")
    return stored


def train(job: Any, dataset: Any, ranks: Any) -> list[Any]:
    """Train one run in this process, and return the ends of its stages."""
    from denetdm_cli.cli.progress import follow

    again = resume_command()
    with signals.handlers(job.config.stop_signals), closing(job.events(dataset, ranks)) as events:
        return follow(events, again)  # closing lets go of the run folder


def train_many(jobs: list[Any], workers: int | None) -> list[Any]:
    """Train many runs at once, and return the ends of the last stages of those that finished.

    Raises:
        UserError: one of them failed; the others went on to their end.
    """
    from denetdm_cli.cli.progress import MultiRunProgress
    from denetdm_cli.training.workers import plan, train_all

    how = plan(jobs, workers)
    info(f"{len(jobs)} runs, {how.workers} at a time, with {how.threads} CPU thread{'s' * (how.threads > 1)} each")
    events = train_all(jobs, how)
    progress = MultiRunProgress([job.name for job in jobs])
    try:
        with signals.handlers(jobs[0].config.stop_signals), closing(events) as news:
            progress.follow(news)
    except KeyboardInterrupt as stop:
        info(f"stopped; the training state is saved. Resume with: {resume_command()}", always=True)
        signals.mark_reported(stop)
        raise
    if progress.failure:
        raise progress.failure
    return progress.finished


def launched(processes: int | None) -> None:
    """Where several processes are asked for: run the command in them, and end as they do.

    Of several that are there already only the first tells how things go.

    Raises:
        ConfigError: this is one of several processes that something else started.
    """
    from denetdm_cli.training.launch import LAUNCHED, launch

    if os.environ.get("RANK", "0") != "0":
        logs.silence()
    if LAUNCHED in os.environ and "RANK" in os.environ:
        signals.terminate_with_parent()
        return
    if processes is None or processes == 1:
        return
    if "RANK" in os.environ:
        raise ConfigError("--nproc is given, and the environment announces several processes", "Leave out --nproc.")
    with signals.handlers(signals.OPTIONAL):  # the ranks know which of them the configuration names
        code = launch(processes, sys.argv[1:])
    raise typer.Exit(code)


def resume_command() -> str:
    """The command that resumes what this one trained."""
    kept = [argument for argument in sys.argv[1:] if argument != "--force" and not argument.startswith("--resume=")]
    while "--resume" in kept:
        at = kept.index("--resume")
        del kept[at : at + 2]
    return shlex.join(["denetdm", *kept])


def require_ending(path: Path, ending: str, option: str) -> None:
    """Refuse a name that says another kind of file than is written, and to replace a file of another kind."""
    if path.is_dir():
        raise ConfigError(f"{option} {path} is a folder", f"Give the name of a file that ends in {ending}.")
    if path.suffix.lower() == ending:
        return
    if path.suffix:
        raise ConfigError(
            f"{option} {path} ends in {path.suffix}, and what is written is a {ending} file",
            f"Give a name that ends in {ending}.",
        )
    if path.is_file():
        raise ConfigError(f"{option} {path}: there is another file of that name", f"Give a name that ends in {ending}.")


def require_csv(path: Path, columns: Sequence[str], option: str) -> None:
    """Refuse what `require_ending` does, and to replace a file but an earlier one, which begins with these columns."""
    require_ending(path, ".csv", option)
    if not path.is_file():
        return
    with path.open("rb") as file:
        start = file.read(len(begins := f"{','.join(columns)},".encode()))
    if start not in (b"", begins):
        raise ConfigError(
            f"{option} {path}: a file of that name is there, and this command did not write it",
            "Move it away, or give another name.",
        )


def shell_path(path: Path) -> str:
    """A path as one would type it here."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))
