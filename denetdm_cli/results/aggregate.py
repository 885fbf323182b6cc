"""Finished stages grouped by everything but the seed, with means and the paper's figures."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from denetdm_cli.config.load import as_yaml, leaves, load_config, preset_path
from denetdm_cli.config.presets import preset_names
from denetdm_cli.config.schema import PLACE, SELECTION_RULES, SelectionRule
from denetdm_cli.results.paper import PaperFigure, paper_figure
from denetdm_cli.results.records import METRIC_NAMES, MetricName, Results, Selected, accuracy_of
from denetdm_cli.utils.errors import ConfigError

_NOT_A_SETTING = (
    "seed", *PLACE,
    "dataset.name", "dataset.folder", "dataset.type", "dataset.ratio",  # in the name of the group
    "selection",  # compared by rule
)  # fmt: skip


class FinishedRun(NamedTuple):
    """A finished stage folder and its results."""

    folder: Path
    results: Results


class ChangedSetting(NamedTuple):
    """A setting that differs from the preset; None stands for null, and for a key that the preset does not have."""

    key: str
    value: Any
    preset: Any

    def __str__(self) -> str:
        """As in YAML."""
        return f"{self.key}={as_yaml(self.value)}"


@dataclass(frozen=True)
class MetricSummary:
    """One metric of one predictor over the seeds of a group.

    Attributes:
        predictor: name of the predictor.
        metric: name of the metric.
        rule: the selection rule that picked the epochs.
        on_test_data: whether the reported images picked the epoch, or the epoch of its teacher.
        reported_on: the part of the evaluation split that was measured.
        values: one for each seed, in %.
        paper: the paper's figure, in %.
    """

    predictor: str
    metric: MetricName
    rule: SelectionRule
    on_test_data: bool
    reported_on: str
    values: tuple[float, ...]
    paper: PaperFigure | None

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        """Sample standard deviation (n - 1) over the seeds; None for one seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def difference(self) -> float | None:
        """Mean minus the paper's mean, in percentage points."""
        return None if self.paper is None else self.mean - self.paper.mean


@dataclass(frozen=True)
class SeedGroup:
    """Runs of one stage that differ only in the seed.

    Attributes:
        dataset: the data set without ratio and folder.
        ratio: conflict ratio; None for a data set without one.
        stage: name of the method.
        teacher: the rule that picked the teacher's epoch; None for a method without a teacher.
        settings: those that differ from the preset.
        runs: by seed.
    """

    dataset: str
    ratio: float | None
    stage: str
    teacher: SelectionRule | None
    settings: tuple[ChangedSetting, ...]
    runs: tuple[FinishedRun, ...]

    @property
    def seeds(self) -> list[int]:
        """Seeds of the runs."""
        return [run.results.seed for run in self.runs]

    @property
    def reported_metric(self) -> MetricName:
        """The metric that the literature reports for the data set."""
        return self.runs[0].results.reported_metric

    @cached_property
    def metrics(self) -> dict[tuple[str, MetricName, SelectionRule], MetricSummary]:
        """Every metric that all runs have, by predictor, metric and rule."""
        found = {}
        for rule in SELECTION_RULES:
            kept = [run.results.rules[rule] for run in self.runs]
            for predictor in kept[0].metrics:
                for metric in METRIC_NAMES:
                    values = [accuracy_of(each.metrics, predictor, metric) for each in kept]
                    known = tuple(100 * value for value in values if value is not None)
                    if len(known) == len(values):
                        found[predictor, metric, rule] = self._summary(kept[0], predictor, metric, known)
        return found

    def _summary(self, kept: Selected, predictor: str, metric: MetricName, values: tuple[float, ...]) -> MetricSummary:
        first = predictor == next(iter(kept.metrics))
        paper = paper_figure(self.dataset, self.ratio, self.stage, predictor, metric, reported=first)
        return MetricSummary(predictor, metric, kept.rule, kept.selected_on_test_data, kept.reported_on, values, paper)

    @property
    def predictors(self) -> list[str]:
        """Names of the predictors; the first is the one that is reported."""
        return list(dict.fromkeys(predictor for predictor, _, _ in self.metrics))

    def reported(self, rule: SelectionRule) -> MetricSummary | None:
        """The reported metric of the reported predictor; None if a run lacks it."""
        return self.metrics.get((self.predictors[0], self.reported_metric, rule))

    @property
    def main_metrics(self) -> list[MetricName]:
        """The reported metric, then conflicting and aligned accuracy, or those by class without bias labels."""
        known = {metric for _, metric, _ in self.metrics}
        wanted: list[MetricName] = ["conflicting", "aligned"] if "conflicting" in known else ["accuracy", "worst_class"]
        return [metric for metric in dict.fromkeys([self.reported_metric, *wanted]) if metric in known]


def group_by_seed(runs: Iterable[FinishedRun], info: Callable[[str], None]) -> list[SeedGroup]:
    """Group runs that differ only in the seed.

    Args:
        runs: finished runs; a copy of a run counts once.
        info: gets a line for each copy.
    Returns:
        Groups by data set; methods with a teacher first, and settings of the preset first.
    Raises:
        ConfigError: runs of a group have different data or different selection, or are different runs of one seed.
    """
    grouped: dict[tuple[Any, ...], list[FinishedRun]] = {}
    settings: dict[tuple[Any, ...], tuple[ChangedSetting, ...]] = {}
    for run in runs:
        dataset, stage = run.results.config["dataset"], run.results.stage
        changed = _changed_settings(run.results)
        key = (
            _dataset_name(dataset),
            dataset.get("ratio"),
            stage,
            run.results.rules["last"].teacher_rule,
            str(changed),
        )
        grouped.setdefault(key, []).append(run)
        settings[key] = changed
    groups = []
    for key, members in grouped.items():
        _require_one(members, _data_of, "trained or evaluated on different data", "runs on one data set")
        _require_one(members, _selection_of, "whose epochs were selected in different ways", "runs selected alike")
        groups.append(SeedGroup(*key[:4], settings=settings[key], runs=tuple(_by_seed(members, info))))
    return sorted(groups, key=_order)


def settings_of_other_methods(method: str, config: dict[str, Any]) -> tuple[str, ...]:
    """Prefixes of the keys that a method does not depend on: sections of other methods, and networks it has not."""
    from denetdm_cli.methods import METHODS
    from denetdm_cli.training.pipeline import methods_up_to

    if method not in METHODS:
        return ()
    used = methods_up_to(method)
    networks = {branch for name in used for branch in METHODS[name].branches}
    return (
        *(f"{name.replace('-', '_')}." for name in METHODS if name not in used),
        *(f"model.{branch}." for branch in config["model"] if branch not in networks),
    )


def _dataset_name(dataset: dict[str, Any]) -> str:
    """The name of a data set without its ratio; another `type` is another data set."""
    if dataset["name"] == "folder":
        return str(dataset.get("folder"))
    kind = f" type {dataset['type']}" if dataset.get("type") else ""
    return f"{dataset['name']}{kind}"


def _changed_settings(results: Results) -> tuple[ChangedSetting, ...]:
    """The settings that differ from the preset; a key that the run's version did not have counts as equal."""
    name = results.config["dataset"]["name"]
    preset: dict[str, object] = {}
    if name in preset_names():
        preset = dict(leaves(load_config(preset_path(name)).model_dump(mode="json")))
    others = settings_of_other_methods(results.stage, results.config)
    found = []
    for key, value in leaves(results.config):
        # the rule of a teacher is part of the group's name
        if key in _NOT_A_SETTING or key.endswith(".teacher") or key.startswith(others) or value == preset.get(key):
            continue
        if key.endswith(".weights") and value not in (None, "imagenet"):
            started = results.start_weights.get(key.split(".")[1], {})
            value = " ".join([Path(str(value)).name, started.get("sha256", "")[:12]]).strip()
        found.append(ChangedSetting(key, value, preset.get(key)))
    return tuple(sorted(found, key=lambda setting: setting.key))


def _data_of(results: Results) -> str:
    return f"data {results.dataset.digest[:16]}, evaluation {results.dataset.evaluation_digest[:16]}"


def _selection_of(results: Results) -> str:
    return "; ".join(
        f"rule {kept.rule}, metric {kept.metric}, picked on {kept.picked_on}, reported on {kept.reported_on}"
        for kept in results.rules.values()
    )


def _require_one(runs: Sequence[FinishedRun], of: Callable[[Results], str], what: str, remedy: str) -> None:
    """Refuse a mean over runs that differ in a property.

    Raises:
        ConfigError: with the folders by property.
    """
    folders: dict[str, list[str]] = {}
    for run in runs:
        folders.setdefault(of(run.results), []).append(str(run.folder))
    if len(folders) > 1:
        lines = "".join(f"\n  {value}: {', '.join(paths)}" for value, paths in folders.items())
        raise ConfigError(
            f"no mean over runs {what}:{lines}", f"Report them in separate calls: name folders of {remedy}."
        )


def _by_seed(runs: Sequence[FinishedRun], info: Callable[[str], None]) -> list[FinishedRun]:
    """One run for each seed.

    Raises:
        ConfigError: two runs of one seed have different results.
    """
    found: dict[int, FinishedRun] = {}
    for run in runs:
        first = found.setdefault(run.results.seed, run)
        if first is run:
            continue
        if first.results.rules != run.results.rules:
            raise ConfigError(
                f"no mean over two runs of seed {run.results.seed} with different results: {first.folder} and "
                f"{run.folder}",
                "A mean would count the seed twice. Name the folder of one of them.",
            )
        info(f"{run.folder} equals {first.folder} and is counted once")
    return [found[seed] for seed in sorted(found)]


def _order(group: SeedGroup) -> tuple[Any, ...]:
    settings = len(group.settings), repr(group.settings)
    teacher = SELECTION_RULES.index(group.teacher) if group.teacher else 0
    return group.dataset, group.teacher is None, group.stage, *settings, teacher, group.ratio or 0
