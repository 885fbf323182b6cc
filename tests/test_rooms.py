"""The rooms of the package and the one direction in which they may import."""

import ast
from pathlib import Path

import denetdm_cli

PACKAGE = Path(denetdm_cli.__file__).parent
FLOORS = "utils < config < data models < methods < evaluation < training < results hub audit < cli"
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS.split("<")) for room in rooms.split()}


def _imports(path: Path) -> set[str]:
    """The rooms that a file imports from, wherever in it."""
    tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    modules = [f"{node.module}.{node.names[0].name}" for node in tree if isinstance(node, ast.ImportFrom)]
    return {module.split(".")[1] for module in modules if module.startswith("denetdm_cli.")} & set(FLOOR)


def test_rooms_import_only_from_themselves_and_from_floors_below() -> None:
    rooms = {path: path.relative_to(PACKAGE).parts[0] for path in PACKAGE.glob("*/**/*.py")}
    assert set(rooms.values()) <= set(FLOOR)
    wrong = [(p, r) for p, room in rooms.items() for r in _imports(p) if r != room and FLOOR[r] >= FLOOR[room]]
    assert wrong == []


def test_the_package_root_holds_the_rooms_and_no_loose_files() -> None:
    loose = {path.name for path in PACKAGE.glob("*") if path.is_file()}
    assert loose <= {"__init__.py", "__main__.py", "api.py", "py.typed"}


def test_only_the_command_line_prints() -> None:
    talking = {
        path.relative_to(PACKAGE).parts[0]
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in ("print", "echo")
    }
    assert talking <= {"cli"} | {"utils"}
