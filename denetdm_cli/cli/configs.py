"""The configs commands: list, print and copy the shipped configurations."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from denetdm_cli.cli.options import complete_presets
from denetdm_cli.config.presets import preset_names
from denetdm_cli.utils.errors import ConfigError

ConfigArgument = Annotated[str, typer.Argument(help="Name of the configuration.", autocompletion=complete_presets)]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    group = typer.Typer(help="List, print and copy the shipped configurations.", no_args_is_help=True)
    group.command("ls")(configs_ls)
    group.command("show")(configs_show)
    group.command("cp")(configs_cp)
    app.add_typer(group, name="configs")


def configs_ls() -> None:
    """List the shipped configurations."""
    for name in preset_names():
        typer.echo(name)


def configs_show(name: ConfigArgument) -> None:
    """Print a shipped configuration in full, every key with what it means."""
    typer.echo(_resolved(name), nl=False)


def configs_cp(
    name: ConfigArgument,
    destination: Annotated[Path, typer.Argument(help="File to write.", metavar="FILE")],
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write a shipped configuration in full to a file of your own."""
    from denetdm_cli.utils.files import write_text

    text = _resolved(name)
    if destination.is_dir():
        destination = destination / f"{name}.yaml"
    if destination.exists() and not force:
        raise ConfigError(f"{destination} exists", "Give another name, or --force to replace it.")
    write_text(destination, text)
    typer.echo(f"{destination}: use it with denetdm train-poe --config {shlex.quote(str(destination))}")


def _resolved(name: str) -> str:
    """The configuration as commented YAML, after the comments that its preset begins with."""
    from denetdm_cli.config.load import load_config, preset_path, to_commented_yaml

    path = preset_path(name)
    lines = path.read_text(encoding="utf-8").splitlines()
    head = [line for line in lines if line.startswith("#")]
    hint = f"# Change a key with --set KEY=VALUE, or in a copy for --config: denetdm configs cp {name} mine.yaml"
    return "\n".join([*head, hint, ""]) + to_commented_yaml(load_config(path))
