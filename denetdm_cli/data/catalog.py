"""The data sets by name: where each lies, and how it comes to be."""

from collections.abc import Callable
from pathlib import Path

from denetdm_cli.config import DatasetConfig
from denetdm_cli.data.recipes import coloured_mnist_folder, ensure_coloured_mnist
from denetdm_cli.data.sources import lazy_mnist
from denetdm_cli.data.store import StoredDataset


def folder(config: DatasetConfig) -> Path:
    """Where a data set with these settings lies."""
    return coloured_mnist_folder(Path(config.root), config.ratio, config.severity)


def ensure_datasets(
    configs: list[DatasetConfig], *, source: Path | None, force: bool, say: Callable[[str], None]
) -> list[tuple[StoredDataset, bool]]:
    """Open the data sets with these settings, making those that are missing; raw images are read at most once.

    Args:
        configs: all below one root.
        source: a local copy of the raw images, or None to look where they can be had.
        force: make them anew where they exist.
        say: called with one line on what is done next.
    Returns:
        Each data set, and whether it was made now.
    Raises:
        DataError: an existing folder is damaged or has other settings.
        DownloadError: the raw images cannot be had.
    """
    load = lazy_mnist(Path(configs[0].root), source, say)
    return [
        ensure_coloured_mnist(
            Path(config.root), ratio=config.ratio, severity=config.severity, seed=config.seed, load=load, force=force
        )
        for config in configs
    ]
