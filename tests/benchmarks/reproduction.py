"""Print the summary of a reproduction that tests/data/reproduction keeps: the figures of every run, without paths.

Run: denetdm report runs --format json | python tests/benchmarks/reproduction.py
"""

import json
import sys
from typing import Any

METRICS = ("unbiased", "aligned", "conflicting", "worst_group")


def summary(report: dict[str, Any]) -> dict[str, Any]:
    """Per group the seeds and, of every model, accuracy and rule, the values in %."""
    kept = ("dataset", "conflict_ratio", "stage", "teacher_rule", "differing_settings", "digest", "evaluation_digest")
    return {
        "unit": report["unit"],
        "groups": [
            {key: group[key] for key in kept}
            | {"seeds": [run["seed"] for run in group["runs"]]}
            | {"epochs": {rule: [run["epochs"][rule] for run in group["runs"]] for rule in ("last", "valid", "paper")}}
            | {
                "values": {
                    f"{figure['predictor']}.{figure['metric']}.{figure['rule']}": [
                        round(value, 10) for value in figure["values"]
                    ]
                    for figure in group["figures"]
                    if figure["metric"] in METRICS
                }
            }
            for group in report["groups"]
        ],
    }


if __name__ == "__main__":
    found = summary(json.load(sys.stdin))
    head = json.dumps(found["unit"])
    groups = ",\n".join(json.dumps(group) for group in found["groups"])
    print(f'{{"unit": {head}, "groups": [\n{groups}\n]}}')
