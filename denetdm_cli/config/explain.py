"""What is wrong with a configuration, in words: key, value, what is allowed, and the nearest known name."""

import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeGuard

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from denetdm_cli.config.schema import KINDS, config_schema

_SHOWN_LENGTH = 80


def explain(details: ErrorDetails) -> str:
    """A problem that pydantic found, in one line: key, value and what is allowed."""
    key, owner, field = _place(details["loc"])
    value, kind = details["input"], details["type"]
    if kind == "extra_forbidden":
        section, _, leaf = key.rpartition(".")
        beside = ", ".join(owner.model_fields)
        if kinds := _kinds(section, leaf):
            near = f"; {leaf} goes with {', '.join(kinds)}"
        else:
            names = [f"{section}.{name}".strip(".") for name in owner.model_fields]
            near = nearest(key, names) or nearest(key, _keys())
        return f"{key}: unknown key (value {_shown(value)}); {section or 'the top'} has {beside}{near}"
    if kind == "value_error":
        return f"{key}: {details['ctx']['error']}"
    if kind.startswith("union_tag"):
        name = value.get("name") if isinstance(value, Mapping) else None
        choices = _kinds(key)
        said = f"{key}.name: {_shown(name)} is not allowed" if name is not None else f"{key}.name: missing"
        return f"{said}; must be one of {', '.join(choices)}{nearest(name, choices) if isinstance(name, str) else ''}"
    if kind == "missing":
        return f"{key}: missing; must be {allowed(field, key)}"
    hint = nearest(value, _choices(field, key)) if isinstance(value, str) else ""
    return f"{key}: {_shown(value)} is not allowed; must be {allowed(field, key)}{hint}"


def _place(location: tuple[int | str, ...]) -> tuple[str, type[BaseModel], FieldInfo | None]:
    """Where an error is: the dotted key, the section it lies in, and its field (None for an unknown key)."""
    owner: type[BaseModel] = config_schema()
    section: type[BaseModel] | None = owner
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
        section = field.annotation if is_section(field.annotation) else None
    return key or "(whole configuration)", owner, field


def is_section(annotation: Any) -> TypeGuard[type[BaseModel]]:
    """Whether the type of a key is a section with keys of its own."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _kinds(key: str, having: str = "name") -> list[str]:
    """The kinds of a section that have a key, for messages; none where no name chooses a kind."""
    names = [name for name, kind in KINDS.get(key, {}).items() if having in kind.model_fields]
    return ["a classifier of torchvision such as resnet18" if name == "torchvision" else name for name in names]


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_LENGTH else f"{text[:_SHOWN_LENGTH]}..."


def nearest(word: str, known: Iterable[str]) -> str:
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


def _keys(section: type[BaseModel] | None = None, prefix: str = "") -> list[str]:
    """Dotted names of all keys, those of every kind of section included."""
    found: list[str] = []
    for name, field in (section or config_schema()).model_fields.items():
        key = prefix + name
        found.append(key)
        inner = list(KINDS[key].values()) if key in KINDS else [field.annotation]
        for kind in inner:
            if is_section(kind):
                found += [each for each in _keys(kind, f"{key}.") if each not in found]
    return found


def _choices(field: FieldInfo | None, key: str) -> list[str]:
    if field is None or key == "device":
        return ["auto", "cpu", "cuda", "mps"] if field else []
    kinds = typing.get_args(field.annotation) if _is_union(field.annotation) else (field.annotation,)
    return [str(value) for kind in kinds if typing.get_origin(kind) is Literal for value in typing.get_args(kind)]


def allowed(field: FieldInfo | None, key: str) -> str:
    """What a key may hold, in words."""
    if field is None:
        return "a known key"
    if field.title:  # in words, where the annotation does not say it
        return field.title
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
    if is_section(annotation):
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
