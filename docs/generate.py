"""Write the reference pages that follow from the code: `python docs/generate.py`."""

import inspect
import json
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from denetdm_cli.cli.app import app
from denetdm_cli.config import schema
from denetdm_cli.config.explain import _words

REFERENCE = Path(__file__).parent / "reference"
TITLE = "# {}\n\n`python docs/generate.py` writes this page from `{}`. Do not edit it by hand.\n\n"
KEYS = "| key | value | default | description |\n|---|---|---|---|\n"
OPTIONS = "| option | value | default | description |\n|---|---|---|---|\n"
SHARED = ("quiet", "verbose")
KINDS = {int: "INTEGER", float: "NUMBER", Path: "PATH"}


def configuration() -> str:
    """The page of every configuration key."""
    config: type[BaseModel] = getattr(schema, "config_schema", lambda: schema.Config)()
    return (
        TITLE.format("Configuration", "denetdm_cli/config/schema.py")
        + "A configuration is one YAML file. `denetdm configs show NAME` prints a complete one.\n"
        + "`--set KEY=VALUE` changes any key; the key is written with dots, for example `distill.tau`.\n"
        + "A file needs only the keys that differ from the defaults, and those whose default is `required`.\n\n"
        + "".join(_section(config, "", {})).rstrip()
        + "\n"
    )


def _section(model: type[BaseModel], prefix: str, shown: dict[str, str]) -> Iterator[str]:
    """A section's keys, then the sections within it; `shown` has the first key of every set of kinds so far."""
    plain = {name: field for name, field in model.model_fields.items() if not _sections(field.annotation)}
    yield KEYS if plain else ""
    for name, field in plain.items():
        default = field.get_default(call_default_factory=True)
        value = "required" if default is PydanticUndefined else f"`{_yaml(default)}`"
        words = field.title or _words(field.annotation, field.metadata)
        words = words.replace("text, if need be in quotes", "text").replace("several numbers one of", "any of")
        yield f"| `{prefix}{name}` | {_cell(words)} | {value} | {_cell(field.description)} |\n"
    yield "\n" if plain else ""
    for name, field in model.model_fields.items():
        key, kinds = prefix + name, _sections(field.annotation)
        if not kinds:
            continue
        yield f"{'#' * (key.count('.') + 2)} {key}\n\n{_sentence(field.description)}"
        if len(kinds) > 1 and isinstance(field.default, BaseModel):
            yield f"Default: `{_yaml(field.default.model_dump())}`.\n\n"
        if (first := shown.setdefault(repr(kinds), key)) != key:
            yield f"The same keys as [`{first}`](#{first.replace('.', '')}).\n\n"
            continue
        for kind in kinds:
            if len(kinds) > 1:
                names = typing.get_args(kind.model_fields["name"].annotation) or ["a network of torchvision"]
                yield f"{'#' * (key.count('.') + 3)} {key}: {', '.join(names)}\n\n"
            yield _sentence(inspect.getdoc(kind))
            yield from _section(kind, f"{key}.", shown)


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """The sections that an annotation allows."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Annotated, typing.Union, types.UnionType):
        return [section for part in typing.get_args(annotation) for section in _sections(part)]
    return []


def commands() -> str:
    """The page of every command and option."""
    program = typer.main.get_command(app)
    page = TITLE.format("Commands", "denetdm_cli/cli")
    page += "Every command takes these options, and `--help` (`-h`). They may stand before the command too.\n\n"
    page += OPTIONS + "".join(_option(param) for param in program.params if param.name in SHARED)
    page += "\nThe program itself takes `--version`, `--install-completion` and `--show-completion`.\n"
    for path, command in _commands(program, "denetdm"):
        arguments = {_argument(p): _cell(p.help) for p in command.params if p.param_type_name == "argument"}
        own = [p for p in command.params if p.param_type_name == "option" and not p.hidden and p.name not in SHARED]
        page += f"\n## {path}\n\n{_sentence(command.help)}```text\n{' '.join([path, *arguments, '[OPTIONS]'])}\n```\n"
        if arguments:
            page += "\n| argument | description |\n|---|---|\n"
            page += "".join(f"| `{name}` | {words} |\n" for name, words in arguments.items())
        page += "\n" + OPTIONS + "".join(map(_option, own)) if own else ""
    return page


def _commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from _commands(inner, f"{path} {name}")


def _argument(param: Any) -> str:
    name = (param.metavar or param.name.upper()).strip("[].") + (" ..." if param.nargs == -1 else "")
    return name if param.required else f"[{name}]"


def _option(param: Any) -> str:
    kind = param.type_descriptor.annotation
    kind = typing.get_args(kind)[0] if typing.get_origin(kind) is list else kind
    choices = " \\| ".join(map(str, typing.get_args(kind)))
    value = "" if param.is_flag else choices or param.metavar or KINDS.get(kind, "TEXT")
    value += ", may be repeated" if param.multiple else ""
    default = "required" if param.required else "" if param.is_flag or not param.default else f"`{param.default}`"
    names = ", ".join(f"`{name}`" for name in (*param.opts, *param.secondary_opts))
    return f"| {names} | {value} | {default} | {_cell(param.help)} |\n"


def _yaml(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value).replace('"', "")


def _cell(text: str | None) -> str:
    return " ".join((text or "").replace("|", "\\|").split())


def _sentence(text: str | None) -> str:
    text = (text or "").strip()
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', ')')) else '.'}\n\n" if text else ""


if __name__ == "__main__":
    for name, page in (("configuration", configuration()), ("commands", commands())):
        (REFERENCE / f"{name}.md").write_text(page, encoding="utf-8")
