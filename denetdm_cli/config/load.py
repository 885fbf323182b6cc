"""How a configuration is read: a YAML preset or file, then `--set` and plain options on top."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from denetdm_cli.config.explain import explain, nearest
from denetdm_cli.config.presets import preset_folder, preset_names
from denetdm_cli.config.schema import KINDS, Config, config_schema
from denetdm_cli.utils.errors import ConfigError


def as_yaml(value: object) -> str:
    """A value of a key on one line, as it may stand in YAML."""
    return value if isinstance(value, str) else json.dumps(value)


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML that `load_config` reads back to an equal object."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False)


def to_commented_yaml(config: Config) -> str:
    """As `to_yaml`, with the description of each key from the schema as a comment."""
    return "\n".join(_commented(config)) + "\n"


def _commented(section: BaseModel, indent: str = "") -> Iterator[str]:
    fields = type(section).model_fields
    for name in sorted(fields, key=lambda name: bool(indent) or not isinstance(getattr(section, name), BaseModel)):
        value, description = getattr(section, name), fields[name].description
        comment = f"  # {description}" if description else ""
        if isinstance(value, BaseModel):
            yield f"{indent}{name}:{comment}"
            yield from _commented(value, f"{indent}  ")
        else:
            text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=10_000).split("\n")[0]
            yield f"{indent}{name}: {text}{comment}"


def preset_path(name: str) -> Path:
    """The YAML file of a shipped configuration.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in preset_names():
        raise ConfigError(
            f"unknown data set or preset {name!r}{nearest(name, preset_names())}",
            f"Known presets: {', '.join(preset_names())} (denetdm configs ls). "
            "A file of your own goes with --config FILE.",
        )
    return preset_folder() / f"{name}.yaml"


def load_config(path: Path, settings: Iterable[str] = (), options: Mapping[str, object] | None = None) -> Config:
    """Read a YAML file, then apply `--set` strings, then plain options; none of these may contradict another.

    Args:
        path: the YAML file.
        settings: strings `a.b=value`; the value is read as YAML.
        options: dotted key to value; entries whose value is None are left out.
    Raises:
        ConfigError: with every unknown key, missing key, wrong type and value out of range, all at once.
    """
    tree = _with_defaults(_read(path))
    problems: list[str] = []
    given: dict[str, object] = {}
    for setting in settings:
        key, equals, text = (part.strip() for part in setting.partition("="))
        if not equals or not key:
            problems.append(f"--set {setting!r}: must have the form KEY=VALUE, for example train_poe.epochs=20")
            continue
        try:
            value = _parse(text)
        except yaml.YAMLError as error:
            reason = getattr(error, "problem", None) or error
            problems.append(f"{key}: {text!r} is not a YAML value ({reason}); put text in quotes")
            continue
        if key in given and given[key] != value:
            problems.append(f"{key}: --set gives it twice, {given[key]!r} and {value!r}; give it once")
        given[key] = value
        _assign(tree, key, value)
    for key, value in (options or {}).items():
        if value is None:
            continue
        if key in given and given[key] != value:
            problems.append(f"{key}: --set gives {given[key]!r} and its own option {value!r}; give one of them")
        _assign(tree, key, value)
    return _validate(tree, str(path), problems)


def from_mapping(tree: Mapping[str, object], origin: str) -> Config:
    """Check a mapping, for example the configuration kept in a checkpoint.

    Raises:
        ConfigError: as `load_config`; `origin` says where the mapping came from.
    """
    return _validate(_with_defaults(tree), origin, [])


def differences(ours: Config, theirs: Config) -> list[tuple[str, object, object]]:
    """Dotted keys at which two configurations differ, with both values."""
    a, b = dict(leaves(ours.model_dump())), dict(leaves(theirs.model_dump()))
    return [(key, a.get(key), b.get(key)) for key in {**a, **b} if a.get(key) != b.get(key)]


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number (YAML 1.2) and refuses a key that is given twice or is not text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                shown = repr(key.value) if isinstance(key, yaml.ScalarNode) else "that starts here"
                raise yaml.constructor.ConstructorError(None, None, f"the key {shown} is not text", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes what `_Loader` would not read back as text."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


def _parse(text: str) -> object:
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = _parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"no configuration file {path}", "Check the path, or use --dataset NAME for a preset."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not a text file ({error})"
        raise ConfigError(f"cannot read the configuration {path}: {reason}", "Give a YAML text file.") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{path}, line {mark.line + 1}, column {mark.column + 1}" if mark else str(path)
        raise ConfigError(f"{where}: not valid YAML: {error.problem}", "Correct that line.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}", "Correct the file.") from None
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{path} holds no mapping of keys to values", "Start from: denetdm configs cp coloredmnist FILE."
        )
    return tree


def _with_defaults(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A tree on top of the defaults, so that `--set` changes one key of a section and leaves the others."""
    schema = config_schema()
    defaults = {name: field.default for name, field in schema.model_fields.items() if not field.is_required()}
    plain = {name: value.model_dump() if isinstance(value, BaseModel) else value for name, value in defaults.items()}
    return _merged(plain, tree)


def _merged(defaults: Mapping[str, Any], given: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Given values over defaults; a section that chooses another kind by its name has none of the defaults."""
    merged = dict(defaults)
    for key, value in given.items():
        default = defaults.get(key)
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            other_kind = f"{prefix}{key}" in KINDS and value.get("name", default["name"]) != default["name"]
            merged[key] = dict(value) if other_kind else _merged(default, value, f"{prefix}{key}.")
        else:
            merged[key] = value
    return merged


def _assign(tree: dict[str, Any], key: str, value: object) -> None:
    *sections, leaf = key.split(".")
    for section in sections:
        inner = tree.get(section)
        tree[section] = inner = dict(inner) if isinstance(inner, dict) else {}
        tree = inner
    tree[leaf] = value


def _validate(tree: dict[str, Any], origin: str, problems: list[str]) -> Config:
    try:
        config = config_schema().model_validate(tree)
    except ValidationError as error:
        problems = problems + [explain(details) for details in error.errors(include_url=False)]
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise ConfigError(
            f"{count} in the configuration {origin}:{lines}",
            "Correct them in the file, or with --set KEY=VALUE; "
            f"denetdm configs show {_example(tree)} prints a complete example.",
        )
    return config


def _example(tree: Mapping[str, Any]) -> str:
    dataset = tree.get("dataset")
    name = dataset.get("name") if isinstance(dataset, dict) else None
    return name if isinstance(name, str) and name in preset_names() else "coloredmnist"


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Dotted keys of a nested mapping, with their values."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
