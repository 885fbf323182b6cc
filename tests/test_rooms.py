"""The rooms of the package and the one direction in which they may import."""

import ast
from pathlib import Path

import denetdm_cli

PACKAGE = Path(denetdm_cli.__file__).parent

ROOMS = [
    "errors", "logs", "stopping", "allotment", "presets", "authors_models", "temporary", "files", "state_dicts",
    "schema", "config", "ranks", "runtime",
    "data.store", "data.writing", "data.progress", "data.fetch", "data.mnist", "data.cifar", "data.frost",
    "data.recipes", "data.coloredmnist", "data.weather", "data.corruptions", "data.corruptedcifar10",
    "data.archives", "data.importing", "data.table_layouts", "data.layouts", "data.folders", "data.catalog",
    "data.preview", "data.augment", "data.batches",
    "models.mlp", "models.convnets", "models.torchvision_nets", "models.branches", "models.experts",
    "models.official", "models.portable",
    "methods.base", "methods.poe", "methods.distill",
    "evaluation", "selection", "separation", "optimizer", "checkpoint", "training", "batched", "runs",
    "preflight", "running", "stages", "together", "tracking", "trackers", "jobs", "workers",
    "scoring", "conversion", "transfer", "published", "pretrained", "shipped", "model_card", "exporting", "predicting",
    "paper_figures", "summaries", "reporting", "sheets", "run_sheets", "plots",
    "details", "console", "board", "tables", "launch", "shell", "cli_options", "cli_arguments", "cli_models",
    "cli_evaluation", "cli_runs", "cli_training", "cli", "__main__",
]  # fmt: skip
"""From the bottom to the top; a room may import only from rooms before it."""


def _modules() -> dict[str, Path]:
    files = {
        path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."): path for path in PACKAGE.rglob("*.py")
    }
    return {name: path for name, path in files.items() if not name.endswith("__init__")}


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("denetdm_cli"):
            base = node.module.removeprefix("denetdm_cli").strip(".")
            # `from denetdm_cli import x` names a room; `from denetdm_cli.room import x` names something in it.
            found |= {base} if base in ROOMS else {f"{base}.{alias.name}".strip(".") for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {
                alias.name.removeprefix("denetdm_cli.") for alias in node.names if alias.name.startswith("denetdm_cli.")
            }
    return found - {"__version__"}


def test_every_file_is_a_room() -> None:
    assert sorted(_modules()) == sorted(ROOMS)


def test_rooms_import_only_from_rooms_before_them() -> None:
    wrong = {
        name: sorted(target for target in _imports(path) if target not in ROOMS[: ROOMS.index(name)])
        for name, path in _modules().items()
    }
    assert {name: targets for name, targets in wrong.items() if targets} == {}


def test_only_the_console_and_the_commands_print() -> None:
    talking = {
        name
        for name, path in _modules().items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in ("print", "echo")
    }
    assert talking <= {"logs", "console", "board", "tables", "cli", "cli_models", "cli_runs"}
