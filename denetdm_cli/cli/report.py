"""The commands that read many runs: status and report."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from denetdm_cli.utils import log
from denetdm_cli.utils.errors import CheckpointError


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command("status")(status)
    app.command("report")(report)


def status(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Run folders, or folders of them (default: runs).", metavar="[DIR]...")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """Show how far runs are: state, epoch, time left, accuracy. Disturbs none of them."""
    from collections import Counter

    from denetdm_cli.results import tables

    given = runs or [Path("runs")]
    found = _summaries(given)
    names = [tables.run_name(each.folder, given) for each in found]
    if as_json:
        typer.echo(json.dumps({"stages": tables.status_json(found, names)}, indent=2))
    elif found:
        typer.echo(tables.status_table(found, names).to_text(), nl=False)
    states = Counter(each.state for each in found)
    log.info(", ".join(f"{count} {state}" for state, count in states.items()) or _nothing_in(given), always=not found)


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders of them.", metavar="DIR...")],
    layout: Annotated[
        Literal["table", "markdown", "csv", "json", "latex"], typer.Option("--format", help="How to print it.")
    ] = "table",
    plots: Annotated[
        Path | None,
        typer.Option(help="Draw PNG and SVG pictures into this folder (pip install 'denetdm[plots]').", metavar="DIR"),
    ] = None,
) -> None:
    """Mean and standard deviation over seeds, beside the paper's figures."""
    from denetdm_cli.results import plots as drawing
    from denetdm_cli.results import tables
    from denetdm_cli.results.aggregate import FinishedRun, group_by_seed

    if plots is not None:
        drawing.require_matplotlib()
    found = _summaries(runs)
    left_out = [each for each in found if each.results is None]
    log.show_warnings([f"left out: {each.folder} ({each.problem or _how_far(each)})" for each in left_out])
    finished = [FinishedRun(each.folder, each.results) for each in found if each.results is not None]
    if not finished:
        raise CheckpointError(
            f"{_nothing_in(runs)} that is finished", "See how far they are with denetdm status, or name other folders."
        )
    groups = group_by_seed(finished, log.info)
    if plots is not None:
        log.info(f"pictures: {sum(1 for _ in drawing.draw(groups, plots))} files in {plots}")
    if layout == "json":
        typer.echo(json.dumps(tables.report_json(groups, left_out), indent=2))
    elif layout == "csv":
        typer.echo(tables.to_csv(tables.CSV_COLUMNS, tables.csv_rows(groups)), nl=False)
    else:
        layouts = {
            "table": tables.TextTable.to_text,
            "markdown": tables.TextTable.to_markdown,
            "latex": tables.TextTable.to_latex,
        }
        typer.echo("\n".join(map(layouts[layout], tables.report_tables(groups))), nl=False)


def _summaries(given: list[Path]) -> list[Any]:
    """The stages in some folders, each once."""
    from denetdm_cli.results.records import find_stages, summarise_stage

    folders: dict[Path, Path] = {}
    for path in given:
        found, unread = find_stages(path)
        log.show_warnings([f"cannot look into {error.filename}: {error.strerror}" for error in unread])
        for folder in found:
            folders.setdefault(folder.resolve(), folder)
    return [summarise_stage(folder) for folder in folders.values()]


def _how_far(each: Any) -> str:
    return f"{each.state}, epoch {each.epoch} of {each.epochs}"


def _nothing_in(given: list[Path]) -> str:
    return f"no run in {', '.join(map(str, given))}"
