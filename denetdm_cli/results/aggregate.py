"""Many finished stages as groups that differ in the seed alone, and their figures beside the paper's."""

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
from denetdm_cli.results.records import METRIC_NAMES, MetricName, Results, accuracy_of
from denetdm_cli.utils.errors import ConfigError

_NOT_A_METHOD = (
    "seed", *PLACE,
    "dataset.name", "dataset.folder", "dataset.type", "dataset.ratio",  # what a group is named by
    "selection", "distill.teacher",  # told by the rules that were followed
)  # fmt: skip
_NOT_OF_STAGE_1 = ("distill.", "model.target.")


class FinishedRun(NamedTuple):
    """A stage folder and its results."""

    folder: Path
    results: Results


class ChangedSetting(NamedTuple):
    """A setting that is not the preset's; None is null, and of the preset also a key that it does not have."""

    key: str
    value: Any
    preset: Any

    def __str__(self) -> str:
        """As YAML has it."""
        return f"{self.key}={as_yaml(self.value)}"


@dataclass(frozen=True)
class MetricSummary:
    """One figure of a group.

    Attributes:
        predictor: whose.
        metric: which accuracy.
        rule: the selection rule that picked the epochs.
        on_test_data: whether they, or their teachers', were picked by the images that are reported on.
        reported_on: the part of the evaluation split that it was measured on.
        values: of the runs of the group in turn, in %.
        paper: what the paper reports, in %.
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
        """Over the seeds."""
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        """Sample standard deviation (n - 1) over the seeds; None for one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def difference(self) -> float | None:
        """From the paper's mean, in percentage points."""
        return None if self.paper is None else self.mean - self.paper.mean


@dataclass(frozen=True)
class SeedGroup:
    """Runs of one stage that are alike in everything but the seed.

    Attributes:
        dataset: the data set, without ratio and place.
        ratio: conflict ratio; None for a data set without one.
        stage: train-poe or distill.
        teacher: the rule that picked the stage-1 epoch distilled from; None for stage 1.
        settings: those that are not the preset's.
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
        """Of the runs."""
        return [run.results.seed for run in self.runs]

    @property
    def reported_metric(self) -> MetricName:
        """What the literature reports for the data set."""
        return self.runs[0].results.reported_metric

    @cached_property
    def metrics(self) -> dict[tuple[str, MetricName, SelectionRule], MetricSummary]:
        """Every figure that all runs have, by predictor, metric and rule."""
        found = {}
        for rule in SELECTION_RULES:
            kept = [run.results.rules[rule] for run in self.runs]
            for predictor in kept[0].metrics:
                for metric in METRIC_NAMES:
                    values = [accuracy_of(each.metrics, predictor, metric) for each in kept]
                    known = tuple(100 * value for value in values if value is not None)
                    if len(known) == len(values):
                        found[predictor, metric, rule] = MetricSummary(
                            predictor,
                            metric,
                            rule,
                            kept[0].selected_on_test_data,
                            kept[0].reported_on,
                            known,
                            paper_figure(self.dataset, self.ratio, predictor, metric),
                        )
        return found

    @property
    def predictors(self) -> list[str]:
        """The one to ship first."""
        return list(dict.fromkeys(predictor for predictor, _, _ in self.metrics))

    @property
    def main_metrics(self) -> list[MetricName]:
        """Those that tell bias from signal, after the one to report; by class alone where there are no bias labels."""
        known = {metric for _, metric, _ in self.metrics}
        wanted: list[MetricName] = ["conflicting", "aligned"] if "conflicting" in known else ["accuracy", "worst_class"]
        return [metric for metric in dict.fromkeys([self.reported_metric, *wanted]) if metric in known]


def group_by_seed(runs: Iterable[FinishedRun], tell: Callable[[str], None]) -> list[SeedGroup]:
    """Put together what differs in the seed alone; `tell` gets a line for each copy of a run, which counts once.

    Returns:
        Groups by data set, stage 2 first, the preset's settings first.
    Raises:
        ConfigError: runs that would share a mean were trained or judged on different data, picked by different
            selection rules, or are different runs of one seed; names them.
    """
    together: dict[tuple[Any, ...], list[FinishedRun]] = {}
    settings: dict[tuple[Any, ...], tuple[ChangedSetting, ...]] = {}
    for run in runs:
        dataset = run.results.config["dataset"]
        differing = _settings(run.results)
        teacher = run.results.rules["last"].teacher_rule
        key = (_dataset_name(dataset), dataset.get("ratio"), run.results.stage, teacher, repr(differing))
        together.setdefault(key, []).append(run)
        settings[key] = differing
    groups = []
    for key, alike in together.items():
        _require_same_data(alike)
        _require_same_selection(alike)
        distinct = _by_seed(alike, tell)
        groups.append(SeedGroup(*key[:4], settings=settings[key], runs=tuple(distinct)))
    return sorted(groups, key=_order)


def _dataset_name(dataset: dict[str, Any]) -> str:
    """What a data set is called whatever its conflict ratio; `type` 1 of Corrupted CIFAR-10 is another one."""
    if dataset["name"] == "folder":
        return str(dataset.get("folder"))
    kind = f" type {dataset['type']}" if dataset.get("type") else ""
    return f"{dataset['name']}{kind}"


def _settings(results: Results) -> tuple[ChangedSetting, ...]:
    """What of a run's configuration is not as in the preset; keys that its version did not have yet are as there."""
    preset = _preset(results.config["dataset"]["name"])
    left_out = _NOT_OF_STAGE_1 if results.stage == "train-poe" else ()
    found = []
    for key, value in leaves(results.config):
        if key in _NOT_A_METHOD or key.startswith(left_out) or value == preset.get(key):
            continue
        if key.endswith(".weights") and value not in (None, "imagenet"):
            started = results.start_weights.get(key.split(".")[1], {})
            value = " ".join([Path(str(value)).name, started.get("sha256", "")[:12]]).strip()
        found.append(ChangedSetting(key, value, preset.get(key)))
    return tuple(sorted(found, key=lambda setting: setting.key))


def _preset(name: str) -> dict[str, object]:
    if name not in preset_names():
        return {}
    preset = load_config(preset_path(name))
    return dict(leaves(preset.model_dump(mode="json")))


def _require_same_data(runs: Sequence[FinishedRun]) -> None:
    by_digest: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        data = run.results.dataset
        by_digest.setdefault((data.digest, data.evaluation_digest), []).append(str(run.folder))
    if len(by_digest) > 1:
        lines = "".join(
            f"\n  data {digest[:16]}, evaluation {evaluation[:16]}: {', '.join(folders)}"
            for (digest, evaluation), folders in by_digest.items()
        )
        raise ConfigError(
            f"no mean over runs that were trained or judged on different data:{lines}",
            "Report them apart: name folders of runs on one data set.",
        )


def _require_same_selection(runs: Sequence[FinishedRun]) -> None:
    for rule in SELECTION_RULES:
        by_way: dict[str, list[str]] = {}
        for run in runs:
            kept = run.results.rules[rule]
            way = f"rule {kept.rule}, metric {kept.metric}, picked on {kept.picked_on}, reported on {kept.reported_on}"
            by_way.setdefault(way, []).append(str(run.folder))
        if len(by_way) > 1:
            lines = "".join(f"\n  {way}: {', '.join(folders)}" for way, folders in by_way.items())
            raise ConfigError(
                f"no mean over epochs that were selected in different ways:{lines}",
                "Report them apart: name folders of runs that were selected alike.",
            )


def _by_seed(runs: Sequence[FinishedRun], tell: Callable[[str], None]) -> list[FinishedRun]:
    """One run a seed.

    Raises:
        ConfigError: two of one seed differ in their results.
    """
    found: dict[int, FinishedRun] = {}
    for run in runs:
        first = found.setdefault(run.results.seed, run)
        if first is run:
            continue
        if first.results.rules != run.results.rules:
            raise ConfigError(
                f"no mean over two runs of seed {run.results.seed} that came out differently: {first.folder} and "
                f"{run.folder}",
                "A mean would count the seed twice. Name the folder of one of them.",
            )
        tell(f"{run.folder} equals {first.folder} and is counted once")
    return [found[seed] for seed in sorted(found)]


def _order(group: SeedGroup) -> tuple[Any, ...]:
    settings = len(group.settings), repr(group.settings)
    teacher = SELECTION_RULES.index(group.teacher) if group.teacher else 0
    return group.dataset, group.stage != "distill", *settings, teacher, group.ratio or 0
