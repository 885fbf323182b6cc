"""The command that evaluates checkpoints."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from denetdm_cli.cli import common
from denetdm_cli.cli.options import DataRootOption, SelectOption, SourceOption
from denetdm_cli.utils.errors import DataError


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("evaluate")(evaluate)


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
    from denetdm_cli.cli import tables
    from denetdm_cli.cli.progress import machine_details
    from denetdm_cli.data.registry import folder
    from denetdm_cli.results import score as scoring
    from denetdm_cli.utils import log
    from denetdm_cli.utils.device import resolve_device

    def open_own(config: Any) -> Any:
        root = {} if data_root is None else {"root": data_root}
        config = common.absolute(config.model_copy(update={"dataset": config.dataset.model_copy(update=root)}))
        trained_on = folder(config.dataset)
        if data_root is None and not trained_on.exists():
            # The checkpoint may be from somebody else: never write to the folder that it names.
            raise DataError(
                f"the data set the checkpoint was trained on is not in {trained_on}",
                "Give the folder that holds it with --data-root (it is made there if it is missing), or evaluate on "
                "another data set with --data DIR.",
            )
        ((stored, made),) = common.make_or_open([config.dataset], source=source, force=False)
        if made:
            log.info(f"data set {stored.path} made now")
        return stored

    if predictions is not None:
        common.require_csv(predictions, scoring.PREDICTION_COLUMNS, "--predictions")
    paths = [scoring.find_checkpoint(run, select) for run in runs]
    scores = list(scoring.score_all(paths, resolve_device(device), open_own, data=data, part=split))
    for line in machine_details(resolve_device(device)):
        log.debug(line)
    for score in scores:
        log.debug(f"{score.path} on {score.dataset['path']}, digest {score.dataset['digest']}")
    summary = scoring.mean_and_std(scores)
    if predictions is not None:
        scoring.write_predictions(predictions, scores)
        log.info(f"predictions: {predictions}")
    if as_json:
        document = {"results": [score.to_json() for score in scores], "summary": summary}
        typer.echo(json.dumps(document, indent=2))
    else:
        tables.show_scores(scores, summary)
