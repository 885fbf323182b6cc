"""One typed, frozen configuration: a YAML preset or file, then `--set` and plain options on top."""

import difflib
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from denetdm_cli.errors import ConfigError

SelectionRule = Literal["last", "valid", "paper"]
SELECTION_RULES: tuple[SelectionRule, ...] = typing.get_args(SelectionRule)

_SHOWN_LENGTH = 80


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DatasetConfig(_Section):
    """The data set and the settings it is made with."""

    name: Literal["coloredmnist"]
    root: str
    ratio: float = Field(gt=0, lt=1)
    severity: int = Field(ge=1, le=5)
    seed: int = Field(ge=0, lt=2**32)


class BranchConfig(_Section):
    """One branch: `depth` linear layers up to and including the head, `width` units a hidden layer."""

    name: Literal["mlp"]
    depth: int = Field(ge=2, le=100)
    width: int = Field(ge=1, le=16384)


class ModelConfig(_Section):
    """The three branches; their last hidden widths must agree, for they share one head."""

    shallow: BranchConfig
    deep: BranchConfig
    target: BranchConfig

    @model_validator(mode="after")
    def _one_feature_width(self) -> "ModelConfig":
        widths = {name: getattr(self, name).width for name in type(self).model_fields}
        if len(set(widths.values())) > 1:
            found = ", ".join(f"{name}.width={width}" for name, width in widths.items())
            raise ValueError(f"the branches share one head and must end in the same width, but {found}")
        return self


class StageConfig(_Section):
    """What both stages have: Adam with coupled weight decay and a constant learning rate."""

    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    drop_last: bool


class TrainPoeConfig(StageConfig):
    """Stage 1 (paper section 3.1)."""

    selection_metric: Literal[
        "shallow.conflicting", "shallow.unbiased", "shallow.worst_group", "shallow.accuracy",
        "product.conflicting", "product.unbiased", "product.worst_group", "product.accuracy",
    ]  # fmt: skip


class DistillConfig(StageConfig):
    """Stage 2 (paper section 3.2)."""

    selection_metric: Literal["target.unbiased", "target.conflicting", "target.worst_group", "target.accuracy"]
    teacher: Literal["selected", "last"]
    w_poe: float = Field(ge=0)
    w_dist: float = Field(ge=0)
    tau: float = Field(gt=0)

    @model_validator(mode="after")
    def _some_loss(self) -> "DistillConfig":
        if self.w_poe == 0 and self.w_dist == 0:
            raise ValueError("w_poe and w_dist are both 0, so there is nothing to train; set one above 0")
        return self


class Config(_Section):
    """Everything a run depends on."""

    dataset: DatasetConfig
    model: ModelConfig
    train_poe: TrainPoeConfig
    distill: DistillConfig
    selection: SelectionRule
    seed: int = Field(ge=0, lt=2**63)
    device: str = Field(pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")
    threads: int = Field(ge=0, le=1024)
    out: str

    def to_yaml(self) -> str:
        """The resolved configuration as YAML that `load` reads back to an equal object."""
        return yaml.dump(self.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False)


def preset_folder() -> Path:
    """The folder of the shipped YAML files: inside the wheel, or beside the package in a checkout."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "configs"


def preset_names() -> list[str]:
    """Names of the shipped configurations, sorted."""
    return sorted(path.stem for path in preset_folder().glob("*.yaml"))


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
    a, b = dict(_leaves(ours.model_dump())), dict(_leaves(theirs.model_dump()))
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
            "denetdm configs show coloredmnist prints a complete example.",
        )
    return config


def _explain(details: ErrorDetails) -> str:
    key = ".".join(str(part) for part in details["loc"]) or "(whole configuration)"
    value, kind = details["input"], details["type"]
    if kind == "extra_forbidden":
        known = [name for name, _ in _fields(Config)]
        section = key.rpartition(".")[0]
        beside = ", ".join(name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == section)
        return f"{key}: unknown key (value {_shown(value)}); {section or 'the top'} has {beside}{_nearest(key, known)}"
    if kind == "missing":
        return f"{key}: missing; must be {_allowed(key)}"
    if kind == "value_error":
        return f"{key}: {details['ctx']['error']}"
    hint = _nearest(value, _choices(key)) if isinstance(value, str) else ""
    return f"{key}: {_shown(value)} is not allowed; must be {_allowed(key)}{hint}"


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


def _fields(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and pydantic field of everything a section holds, sections included."""
    for name, field in section.model_fields.items():
        yield prefix + name, field
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _fields(field.annotation, f"{prefix}{name}.")


def _choices(key: str) -> list[str]:
    if key == "device":
        return ["auto", "cpu", "cuda", "mps"]
    annotation = dict(_fields(Config))[key].annotation
    return [str(choice) for choice in typing.get_args(annotation)] if typing.get_origin(annotation) is Literal else []


def _allowed(key: str) -> str:
    """What a key may hold, in words."""
    field = dict(_fields(Config))[key]
    if key == "device":
        return "auto, cpu, cuda, cuda:N or mps"
    if choices := _choices(key):
        return "one of " + ", ".join(choices)
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
        return "a section with the keys " + ", ".join(field.annotation.model_fields)
    words = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text, if need be in quotes"}
    if isinstance(field.annotation, types.UnionType):
        return " or ".join(words.get(kind, str(kind)) for kind in typing.get_args(field.annotation))
    bounds: list[str] = []
    for rule in field.metadata:
        for kind, word in ((Ge, "at least"), (Gt, "above"), (Le, "at most"), (Lt, "below")):
            if isinstance(rule, kind):
                bounds.append(f"{word} {getattr(rule, kind.__name__.lower())}")
    return " ".join([words[field.annotation], " and ".join(bounds)]).strip()


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
