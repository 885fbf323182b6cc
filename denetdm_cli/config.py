"""How a configuration is read: a YAML preset or file, then `--set` and plain options on top."""

import difflib
import json
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeGuard

import yaml
from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from denetdm_cli.errors import ConfigError
from denetdm_cli.presets import preset_folder, preset_names
from denetdm_cli.schema import KINDS, Config

_SHOWN_LENGTH = 80


def as_yaml(value: object) -> str:
    """A value of a key on one line, as it may stand in YAML."""
    return value if isinstance(value, str) else json.dumps(value)


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML that `load` reads back to an equal object."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False)


def preset_path(name: str) -> Path:
    """The YAML file of a shipped configuration.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in preset_names():
        raise ConfigError(
            f"unknown data set or preset {name!r}{_nearest(name, preset_names())}",
            f"Known presets: {', '.join(preset_names())} (denetdm configs ls). "
            "A file of your own goes with --config FILE.",
        )
    return preset_folder() / f"{name}.yaml"


def load(path: Path, settings: Iterable[str] = (), options: Mapping[str, object] | None = None) -> Config:
    """Read a YAML file, then apply `--set` strings, then plain options; none of these may contradict another.

    Args:
        path: the YAML file.
        settings: strings `a.b=value`; the value is read as YAML.
        options: dotted key to value; entries whose value is None are left out.
    Raises:
        ConfigError: with every unknown key, missing key, wrong type and value out of range, all at once.
    """
    tree = _read(path)
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
        ConfigError: as `load`; `origin` says where the mapping came from.
    """
    return _validate(dict(tree), origin, [])


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


def _assign(tree: dict[str, Any], key: str, value: object) -> None:
    *sections, leaf = key.split(".")
    for section in sections:
        inner = tree.get(section)
        tree[section] = inner = dict(inner) if isinstance(inner, dict) else {}
        tree = inner
    tree[leaf] = value


def _validate(tree: dict[str, Any], origin: str, problems: list[str]) -> Config:
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        problems = problems + [_explain(details) for details in error.errors(include_url=False)]
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


def _explain(details: ErrorDetails) -> str:
    key, owner, field = _place(details["loc"])
    value, kind = details["input"], details["type"]
    if kind == "extra_forbidden":
        section, _, leaf = key.rpartition(".")
        beside = ", ".join(owner.model_fields)
        if kinds := _kinds(section, leaf):
            near = f"; {leaf} goes with {', '.join(kinds)}"
        else:
            names = [f"{section}.{name}".strip(".") for name in owner.model_fields]
            near = _nearest(key, names) or _nearest(key, _keys())
        return f"{key}: unknown key (value {_shown(value)}); {section or 'the top'} has {beside}{near}"
    if kind == "value_error":
        return f"{key}: {details['ctx']['error']}"
    if kind.startswith("union_tag"):
        name = value.get("name") if isinstance(value, Mapping) else None
        choices = _kinds(key)
        said = f"{key}.name: {_shown(name)} is not allowed" if name is not None else f"{key}.name: missing"
        return f"{said}; must be one of {', '.join(choices)}{_nearest(name, choices) if isinstance(name, str) else ''}"
    if kind == "missing":
        return f"{key}: missing; must be {_allowed(field, key)}"
    hint = _nearest(value, _choices(field, key)) if isinstance(value, str) else ""
    return f"{key}: {_shown(value)} is not allowed; must be {_allowed(field, key)}{hint}"


def _place(location: tuple[int | str, ...]) -> tuple[str, type[BaseModel], FieldInfo | None]:
    """Where an error is: the dotted key, the section it lies in, and its field (None for an unknown key)."""
    owner: type[BaseModel] = Config
    section: type[BaseModel] | None = Config
    field: FieldInfo | None = None
    key = ""
    for part in map(str, location):
        if section is None:
            section = KINDS.get(key, {}).get(part)  # None for a place within a value: the key says enough
            continue
        owner, field = section, section.model_fields.get(part)
        key = f"{key}.{part}".strip(".")
        if field is None:
            break
        section = field.annotation if _is_section(field.annotation) else None
    return key or "(whole configuration)", owner, field


def _is_section(annotation: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _kinds(key: str, having: str = "name") -> list[str]:
    """The kinds of a section that have a key, for messages; none where no name chooses a kind."""
    names = [name for name, kind in KINDS.get(key, {}).items() if having in kind.model_fields]
    return ["a classifier of torchvision such as resnet18" if name == "torchvision" else name for name in names]


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_LENGTH else f"{text[:_SHOWN_LENGTH]}..."


def _nearest(word: str, known: Iterable[str]) -> str:
    """The closest known names, as a question: one of the same section, or else one or several elsewhere."""
    section, _, leaf = word.lower().rpartition(".")
    beside: dict[str, list[str]] = {}
    anywhere: dict[str, list[str]] = {}
    for name in known:
        its_section, _, its_leaf = name.rpartition(".")
        anywhere.setdefault(its_leaf, []).append(name)
        if its_section == section:
            beside[its_leaf] = [name]
    for names, cutoff in ((beside, 0.6), (anywhere, 0.7)):
        for match in difflib.get_close_matches(leaf, names, n=1, cutoff=cutoff):
            return f"; did you mean {' or '.join(map(repr, names[match]))}?"
    return ""


def _keys(section: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Dotted names of all keys, those of every kind of section included."""
    found: list[str] = []
    for name, field in section.model_fields.items():
        key = prefix + name
        found.append(key)
        inner = list(KINDS[key].values()) if key in KINDS else [field.annotation]
        for kind in inner:
            if _is_section(kind):
                found += [each for each in _keys(kind, f"{key}.") if each not in found]
    return found


def _choices(field: FieldInfo | None, key: str) -> list[str]:
    if field is None or key == "device":
        return ["auto", "cpu", "cuda", "mps"] if field else []
    kinds = typing.get_args(field.annotation) if _is_union(field.annotation) else (field.annotation,)
    return [str(value) for kind in kinds if typing.get_origin(kind) is Literal for value in typing.get_args(kind)]


def _allowed(field: FieldInfo | None, key: str) -> str:
    """What a key may hold, in words."""
    if field is None:
        return "a known key"
    if field.description:
        return field.description
    if key in KINDS:
        return f"a section with a name, one of {', '.join(_kinds(key))}, and the keys that go with it"
    return _words(field.annotation, field.metadata)


def _words(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _words(arguments[0], arguments[1:])
    if _is_union(annotation):
        return " or ".join(_words(kind) for kind in arguments)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}" if len(arguments) > 1 else str(arguments[0])
    rules = [rule for given in metadata for rule in (given.metadata if isinstance(given, FieldInfo) else [given])]
    if origin is list:
        length = next((rule.min_length for rule in rules if isinstance(rule, MinLen)), "several")
        each = _words(arguments[0]).removeprefix("a finite number").strip()
        return f"a list of {length} numbers {each}".strip()
    if _is_section(annotation):
        return "a section with the keys " + ", ".join(annotation.model_fields)
    words = {int: "a whole number", float: "a finite number", bool: "true or false", type(None): "null"}
    words[str] = "text, if need be in quotes"
    bounds: list[str] = []
    for rule in rules:
        for kind, word in ((Ge, "at least"), (Gt, "above"), (Le, "at most"), (Lt, "below")):
            if isinstance(rule, kind):
                bounds.append(f"{word} {getattr(rule, kind.__name__.lower())}")
    return " ".join([words[annotation], " and ".join(bounds)]).strip()


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (types.UnionType, typing.Union)


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Dotted keys of a nested mapping, with their values."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
