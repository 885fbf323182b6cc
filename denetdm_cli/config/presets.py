"""The shipped configurations by name. The shell asks for the names at every press of a key, so this is quick."""

from pathlib import Path


def preset_folder() -> Path:
    """The folder of the shipped YAML files: inside the wheel, or beside the package in a checkout."""
    inside = Path(__file__).parents[1] / "configs"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "configs"


def preset_names() -> list[str]:
    """Names of the shipped configurations, sorted."""
    return sorted(path.stem for path in preset_folder().glob("*.yaml"))
