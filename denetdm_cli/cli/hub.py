"""The commands for models from and for other people: download-pretrained, convert, export, predict."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from denetdm_cli.cli import common
from denetdm_cli.cli.options import complete_models
from denetdm_cli.hub.published import DRIVE_ADDRESS, PUBLISHED, named
from denetdm_cli.utils.errors import EXIT_INTERRUPTED, CheckpointError, ConfigError, DownloadError, UserError
from denetdm_cli.utils.log import info, show_error, shown

Rule = Literal["last", "valid", "paper"]
SelectOption = Annotated[
    Rule | None, typer.Option("--select", help="Of a run folder, the epoch of this selection rule.")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace a file that differs.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command("download-pretrained")(download_pretrained)
    app.command("convert")(convert)
    app.command("export")(export)
    app.command("predict")(predict)


def download_pretrained(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Names of models; see --list.", metavar="NAME", autocompletion=complete_models),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    known: Annotated[bool, typer.Option("--list", help="List the models, and those already downloaded.")] = False,
    source: Annotated[
        Path | None, typer.Option("--from", help="A local file, folder or zip instead.", metavar="PATH")
    ] = None,
    url: Annotated[str | None, typer.Option(help="An http(s) address of the file, or a zip with it, instead.")] = None,
    sha256: Annotated[str | None, typer.Option(help="Expected digest of the authors' file.")] = None,
    folder: Annotated[Path, typer.Option(help="Folder of the models.", metavar="DIR")] = Path("pretrained"),
    force: Annotated[bool, typer.Option("--force", help="Fetch again, and replace what differs.")] = False,
) -> None:
    """Fetch the authors' published models and convert them to checkpoints."""
    from denetdm_cli.cli import tables
    from denetdm_cli.hub import pretrained

    if known:
        tables.show_published(pretrained.listing(folder), DRIVE_ADDRESS)
        return
    wanted = _wanted(names or [], every=every)
    if len(wanted) > 1 and (url is not None or sha256 is not None):
        raise ConfigError("--url and --sha256 are for one model", f"Name one of {', '.join(wanted)}.")
    failed: UserError | None = None
    with _report() as reporter:
        for name in wanted:
            try:
                path = pretrained.get_pretrained(
                    name, folder, source=source, url=url, sha256=sha256, force=force, reporter=reporter
                )
            except (CheckpointError, DownloadError) as error:
                if len(wanted) == 1:
                    raise
                reporter.close()
                show_error(error)
                failed = failed or error
            else:
                typer.echo(path)
    if failed is not None:
        raise typer.Exit(failed.exit_code)
    info(f"Next: denetdm evaluate {shlex.quote(str(path))} --data DIR")


def _wanted(names: list[str], *, every: bool) -> list[str]:
    """The names of the models to fetch, each once."""
    if every and names:
        raise ConfigError("names are given, and --all", "Give one of them.")
    if not every and not names:
        raise ConfigError("no model is named", "Give names, or --all; --list shows the names.")
    return [published.name for published in (PUBLISHED if every else dict.fromkeys(map(named, names)))]


def convert(
    file: Annotated[Path, typer.Argument(help="A .th file of the official code, or a .safetensors checkpoint.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The file to make.", metavar="FILE")] = None,
    to: Annotated[Literal["ours", "official"] | None, typer.Option(help="Default: from one to the other.")] = None,
    force: ForceOption = False,
) -> None:
    """Turn a model file of the official code into a checkpoint, or a checkpoint into such a file."""
    from denetdm_cli.hub import convert as conversion
    from denetdm_cli.results import score
    from denetdm_cli.training import run_folder

    if run_folder.stage_folders(file):
        raise CheckpointError(
            f"{file} is a run folder, not a file to convert",
            f"Give a checkpoint of it, such as {score.find_checkpoint(file, None)}.",
        )
    to_official = to == "official" or (to is None and file.suffix == ".safetensors")
    destination = out or file.with_suffix(".th" if to_official else ".safetensors")
    work = conversion.convert_to_official if to_official else conversion.convert_to_ours
    kind = work(file, destination, force=force)
    stage = {"train-poe": "stage 1", "distill": "stage 2"}[kind.stage]
    info(f"{file}: the {stage} model of {kind.dataset}")
    typer.echo(destination)


def export(
    run: Annotated[Path, typer.Argument(help="A run folder or a stage-2 checkpoint.", metavar="RUN")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to make.", metavar="DIR")],
    onnx: Annotated[bool, typer.Option("--onnx", help="Write an ONNX file too (pip install 'denetdm[onnx]').")] = False,
    select: SelectOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
) -> None:
    """Write the target model for use without denetdm: weights, ONNX, class names and a model card."""
    from denetdm_cli.hub import export as exporting
    from denetdm_cli.results import score

    path = score.find_checkpoint(run, select)
    with _report() as reporter:
        written = exporting.export(path, out, onnx=onnx, force=force, reporter=reporter)
    for file in written:
        typer.echo(file)


def predict(
    run: Annotated[Path, typer.Argument(help="A run folder or a stage-2 checkpoint.", metavar="RUN")],
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of them.", metavar="IMAGE")],
    csv: Annotated[Path | None, typer.Option(help="Write one row an image.", metavar="FILE.csv")] = None,
    select: SelectOption = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
) -> None:
    """Classify images with the target model."""
    from denetdm_cli.hub import predict as predicting
    from denetdm_cli.hub.target import load_target_checkpoint
    from denetdm_cli.results import score
    from denetdm_cli.utils.device import resolve_device

    if csv is not None:
        common.require_csv(csv, predicting.COLUMNS, "--csv")
    target = load_target_checkpoint(score.find_checkpoint(run, select), resolve_device(device))
    with _report() as reporter:
        found = predicting.predict_files(target, images, reporter)
        if csv is not None:
            predicting.write_csv(csv, target.class_names, found)
            reporter.info(f"predictions: {csv}")
        else:
            _print_predictions(found, target.class_names)


def _print_predictions(found: Iterator[Any], class_names: Sequence[str]) -> None:
    """One line an image: file, class and probability, with tabs between them."""
    for prediction in found:
        if prediction.predicted is not None:
            name = class_names[prediction.predicted]
            typer.echo(f"{shown(str(prediction.path))}\t{shown(name)}\t{prediction.confidence:.4f}")


@contextmanager
def _report() -> Iterator[Any]:
    from denetdm_cli.cli.progress import DataReport

    report = DataReport()
    try:
        yield report
    except KeyboardInterrupt:
        report.info("stopped; nothing is half-written")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    finally:
        report.close()
