"""Write the reference pages that follow from the code: `python docs/generate.py`."""

import inspect
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
SHARED = ("quiet", "verbose")
NAMES = {int: "INTEGER", float: "NUMBER", Path: "PATH"}


def configuration() -> str:
    """The page of every configuration key."""
    config: type[BaseModel] = getattr(schema, "config_schema", lambda: schema.Config)()
    top = [f"`{name}`" for name, field in config.model_fields.items() if not _sections(field.annotation)]
    lines = [
        *_title("Configuration", "denetdm_cli/config/schema.py"),
        "A configuration is one YAML file. `denetdm configs show NAME` prints a complete one.",
        "`--set KEY=VALUE` changes any key; the key is written with dots, for example `distill.tau`.",
        "A key whose default is `required` must be in the file.\n",
        f"The keys at the top level are {', '.join(top)}.\n",
        *_section(config, "", {}),
    ]
    return "\n".join(lines).rstrip() + "\n"


def commands() -> str:
    """The page of every command and option."""
    program = typer.main.get_command(app)
    shared = [param for param in program.params if param.name in SHARED]
    lines = [
        *_title("Commands", "denetdm_cli/cli"),
        "Every command takes these options, and `--help` (`-h`). They may stand before the command too.\n",
        *_options(shared),
        "The program itself takes `--version`, `--install-completion` and `--show-completion`.\n",
    ]
    for path, command in _commands(program, "denetdm"):
        positional = [param for param in command.params if param.param_type_name == "argument"]
        usage = [path, *(_argument(param) for param in positional), "[OPTIONS]"]
        lines += [f"## {path}\n", _sentence(command.help), f"\n```text\n{' '.join(usage)}\n```\n"]
        if positional:
            lines += ["| argument | description |", "|---|---|"]
            lines += [f"| `{_argument(param)}` | {_cell(param.help)} |" for param in positional] + [""]
        own = [p for p in command.params if p.param_type_name == "option" and not p.hidden and p.name not in SHARED]
        lines += _options(own) if own else []
    return "\n".join(lines).rstrip() + "\n"


def _title(title: str, source: str) -> list[str]:
    return [f"# {title}\n", f"`python docs/generate.py` writes this page from `{source}`. Do not edit it by hand.\n"]


def _section(model: type[BaseModel], prefix: str, seen: dict[str, str]) -> Iterator[str]:
    """The table of a section's keys, then the sections within it; a set of kinds that was shown is referred to."""
    plain = {name: field for name, field in model.model_fields.items() if not _sections(field.annotation)}
    if plain:
        yield from ("| key | value | default | description |", "|---|---|---|---|")
        for name, field in plain.items():
            default = field.get_default(call_default_factory=True)
            shown = "required" if default is PydanticUndefined else f"`{_yaml(default)}`"
            words = _value(field)
            yield f"| `{prefix}{name}` | {words} | {shown} | {_cell(field.description)} |"
        yield ""
    for name, field in model.model_fields.items():
        kinds = _sections(field.annotation)
        key = prefix + name
        known = seen.setdefault(repr(kinds), key)
        if kinds:
            yield f"{'#' * (key.count('.') + 2)} {key}\n"
        if kinds and field.description:
            yield f"{_sentence(field.description)}\n"
        if len(kinds) > 1 and isinstance(field.default, BaseModel):
            keys = ", ".join(f"{name}: {_yaml(value)}" for name, value in field.default)
            yield f"Default: `{{{keys}}}`.\n"
        if kinds and known != key:
            yield f"The same keys as [`{known}`](#{known.replace('.', '')}).\n"
            continue
        for kind in kinds:
            if len(kinds) > 1:
                yield f"{'#' * (key.count('.') + 3)} {key}: {_kind_name(kind)}\n"
            if kind.__doc__:
                yield f"{_sentence(inspect.cleandoc(kind.__doc__))}\n"
            yield from _section(kind, f"{key}.", seen)


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """The sections that an annotation allows."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Annotated, typing.Union, types.UnionType):
        return [section for part in typing.get_args(annotation) for section in _sections(part)]
    return []


def _kind_name(kind: type[BaseModel]) -> str:
    names = typing.get_args(kind.model_fields["name"].annotation)
    return ", ".join(names) or "a network of torchvision"


def _value(field: Any) -> str:
    """What a key may hold."""
    words = field.title or _words(field.annotation, field.metadata)
    return _cell(words.replace("text, if need be in quotes", "text").replace("several numbers one of", "any of"))


def _yaml(value: object) -> str:
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value).replace("'", "")


def _commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from _commands(inner, f"{path} {name}")


def _argument(param: Any) -> str:
    name = (param.metavar or param.name.upper()).strip("[].")
    name += " ..." if param.nargs == -1 else ""
    return name if param.required else f"[{name}]"


def _options(params: list[Any]) -> list[str]:
    rows = []
    for param in params:
        kind = param.type_descriptor.annotation
        kind = typing.get_args(kind)[0] if typing.get_origin(kind) is list else kind
        choices = " \\| ".join(map(str, typing.get_args(kind)))
        value = "" if param.is_flag else choices or param.metavar or NAMES.get(kind, "TEXT")
        value += ", may be repeated" if param.multiple else ""
        default = "required" if param.required else "" if param.is_flag or not param.default else f"`{param.default}`"
        names = ", ".join(f"`{name}`" for name in (*param.opts, *param.secondary_opts))
        rows.append(f"| {names} | {value} | {default} | {_cell(param.help)} |")
    return ["| option | value | default | description |", "|---|---|---|---|", *rows, ""]


def _cell(text: str | None) -> str:
    return " ".join((text or "").replace("|", "\\|").split())


def _sentence(text: str | None) -> str:
    text = (text or "").strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", ")")) else ".")


if __name__ == "__main__":
    for name, page in (("configuration", configuration()), ("commands", commands())):
        (REFERENCE / f"{name}.md").write_text(page, encoding="utf-8")
