"""Run folders of finished stages with made-up figures, in the form that `stages` leaves them in."""

import json
from pathlib import Path
from typing import Any

from denetdm_cli.config.load import load_config, preset_path, to_yaml
from denetdm_cli.config.schema import SELECTION_RULES
from denetdm_cli.methods import METHODS
from denetdm_cli.results.aggregate import FinishedRun, SeedGroup, group_by_seed
from denetdm_cli.results.records import find_stages, summarise_stage


def metrics(value: float) -> dict[str, Any]:
    """Two classes and two bias values; every figure follows from `value`."""
    return {
        "unbiased": value,
        "accuracy": value + 0.01,
        "aligned": value + 0.1,
        "conflicting": value - 0.1,
        "worst_group": value - 0.2,
        "worst_class": value - 0.15,
        "worst_group_of": [0, 1],
        "worst_class_of": 0,
        "groups": [[value, value - 0.2], [value - 0.1, None]],
    }


def finished(
    out: Path,
    seed: int,
    value: float,
    *,
    stage: str = "distill",
    teacher: str = "last",
    digest: str = "d" * 64,
    epochs: int = 2,
    preset: str = "coloredmnist",
    settings: tuple[str, ...] = (),
    **results: Any,
) -> Path:
    """The folder of a stage; the rules' figures are `value`, `value` + 0.01, `value` + 0.02.

    Args:
        out: where runs go.
        seed: of the run.
        value: between 0.2 and 0.85.
        stage: name of a method.
        teacher: the rule that picked the epoch of the teacher, where the method has one.
        digest: of the data.
        epochs: how many lines metrics.jsonl has.
        preset: the shipped configuration it was begun with.
        settings: `KEY=VALUE`, what is not as there.
        results: entries of results.json that replace what there would be.
    """
    method = METHODS[stage]
    resolved = load_config(preset_path(preset), settings, {"seed": seed})
    tree = resolved.model_dump(mode="json")
    dataset = f"{preset}-{tree['dataset'].get('ratio')}"
    name = stage if method.starts_from is None or teacher == "last" else f"{stage}-from-{teacher}"
    folder = out / dataset / f"seed{seed}" / name
    folder.mkdir(parents=True)
    picked = {"last": [], "valid": ["valid"], "paper": ["evaluation"]}
    rules = {}
    for at, rule in enumerate(SELECTION_RULES):
        picked_on = sorted({*picked[rule], *(picked[teacher] if method.starts_from else [])})
        rules[rule] = {
            "epoch": epochs - at,
            "metrics": {name: metrics(value + 0.01 * at - 0.05 * i) for i, name in enumerate(method.predictors)},
            "separation": None,
            "rule": rule,
            "teacher_rule": teacher if method.starts_from else None,
            "metric": None if rule == "last" else "target.unbiased",
            "selected_on": (picked[rule] or [None])[0],
            "picked_on": picked_on,
            "reported_on": "test" if "valid" in picked_on else "evaluation",
            "selected_on_test_data": "evaluation" in picked_on,
            "used_bias_labels": bool(picked_on),
        }
    document = {
        "format_version": 2,
        "stage": stage,
        "reported_metric": "unbiased",
        "seed": seed,
        "dataset": {
            "name": dataset,
            "digest": digest,
            "evaluation_digest": "e" * 64,
            "class_names": ["0", "1"],
            "bias_names": ["red", "blue"],
        },
        "start_weights": {},
        "config": tree,
        "selection": "last",
        "epochs": epochs,
        "rules": rules,
    }
    (folder / "config.yaml").write_text(to_yaml(resolved), "utf-8")
    (folder / "results.json").write_text(json.dumps(document | results), "utf-8")
    with (folder / "metrics.jsonl").open("w", encoding="utf-8") as file:
        for epoch in range(1, epochs + 1):
            figures = {name: metrics(value + 0.01 * epoch) for name in method.predictors}
            file.write(json.dumps({"epoch": epoch, "evaluation": figures, "seconds": 2.0 * epoch}) + "\n")
    return folder


def groups_of(out: Path, tell: list[str] | None = None) -> list[SeedGroup]:
    found = [summarise_stage(folder) for folder in find_stages(out)[0]]
    runs = [FinishedRun(each.folder, each.results) for each in found if each.results]
    assert len(runs) == len(found)
    return group_by_seed(runs, [].append if tell is None else tell.append)
