"""The data sets by name: where each lies, and how it comes to be."""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from denetdm_cli.data.archives import unpacked
from denetdm_cli.data.cifar import lazy_cifar10
from denetdm_cli.data.coloredmnist import coloured_mnist_recipe
from denetdm_cli.data.corruptedcifar10 import corrupted_cifar10_recipe
from denetdm_cli.data.folders import list_folder
from denetdm_cli.data.frost import load_textures
from denetdm_cli.data.importing import Listing, pack
from denetdm_cli.data.layouts import list_bar, list_bffhq, list_dfa
from denetdm_cli.data.mnist import lazy_mnist
from denetdm_cli.data.progress import Reporter
from denetdm_cli.data.recipes import Recipe, command, ensure
from denetdm_cli.data.store import Scalar, StoredDataset
from denetdm_cli.data.table_layouts import list_celeba, list_waterbirds
from denetdm_cli.errors import DataError
from denetdm_cli.files import sha256
from denetdm_cli.schema import (
    BarConfig,
    BffhqConfig,
    CelebaConfig,
    ColoredMnistConfig,
    CorruptedCifar10Config,
    DatasetConfig,
    DfaConfig,
    FolderConfig,
    WaterbirdsConfig,
)

ImportConfig = BffhqConfig | BarConfig | CelebaConfig | WaterbirdsConfig | DfaConfig | FolderConfig


class _Silent:
    def say(self, line: str) -> None:
        pass

    def warn(self, warning: str) -> None:
        pass

    def advance(self, what: str, done: int, total: int) -> None:
        pass


def folder(config: DatasetConfig) -> Path:
    """Where a data set with these settings lies."""
    return _recipes([config], None, None, _Silent())[0].path


def ensure_datasets(
    configs: Sequence[DatasetConfig],
    *,
    source: Path | None = None,
    frost: Path | None = None,
    force: bool = False,
    reporter: Reporter,
) -> list[tuple[StoredDataset, bool]]:
    """Open the data sets with these settings, making those that are missing; raw images are read at most once.

    Args:
        configs: all of one name and below one root.
        source: a local copy of the raw images, or None to look where they can be had.
        frost: a local copy of the frost textures of Corrupted CIFAR-10.
        force: make them anew where they exist.
        reporter: told what is done.
    Returns:
        Each data set, and whether it was made now.
    Raises:
        DataError: an existing folder is damaged or has other settings.
        DownloadError: the raw images cannot be had.
    """
    found = []
    for config, recipe in zip(configs, _recipes(configs, source, frost, reporter), strict=True):
        dataset, made = ensure(recipe, force=force)
        if source is not None and not made:
            if isinstance(config, ColoredMnistConfig | CorruptedCifar10Config):
                reporter.warn(f"{dataset.path} is there already, so --source was not looked at; --force makes it anew")
            else:
                _require_same_source(dataset, config, source)
        found.append((dataset, made))
    return found


def _recipes(
    configs: Sequence[DatasetConfig], source: Path | None, frost: Path | None, reporter: Reporter
) -> list[Recipe]:
    root = Path(configs[0].root)
    mnist = lazy_mnist(root, source, reporter.say)
    cifar = lazy_cifar10(root, source, reporter.say)
    textures = functools.cache(lambda: load_textures(root, frost, reporter.say))

    def recipe(config: DatasetConfig) -> Recipe:
        if isinstance(config, ColoredMnistConfig):
            return coloured_mnist_recipe(config, mnist)
        if isinstance(config, CorruptedCifar10Config):
            return corrupted_cifar10_recipe(config, cifar, textures, reporter)
        return _import_recipe(config, source, reporter)

    return [recipe(config) for config in configs]


def _import_recipe(config: ImportConfig, source: Path | None, reporter: Reporter) -> Recipe:
    path = Path(config.root) / _import_folder(config)
    settings: dict[str, Scalar] = config.model_dump(exclude={"root", "folder"})
    again = f"{command(config)} --source FOLDER_OR_ARCHIVE"

    def make(replace: bool) -> StoredDataset:
        if source is None:
            raise DataError(
                f"data set {config.name} is not in {path}, and it cannot be downloaded",
                f"Bring the files and import them once: `{again}`.",
            )
        with _listed(config, source, reporter) as listing:
            for note in listing.notes:
                reporter.warn(note)
            return pack(
                listing,
                path,
                size=None if isinstance(config, DfaConfig) else config.size,
                fit="stretch" if isinstance(config, DfaConfig) else config.fit,
                recipe=settings | ({"source_sha256": sha256(source)} if _is_archive(source) else {}),
                replace=replace,
                reporter=reporter,
            )

    return Recipe(path, settings, make, again)


def _import_folder(config: ImportConfig) -> str:
    if isinstance(config, FolderConfig):
        return config.folder
    if isinstance(config, DfaConfig) or (isinstance(config, BarConfig) and config.ratio is not None):
        return f"{config.name}-{config.ratio}"
    return "celeba-subsampled" if isinstance(config, CelebaConfig) and config.subsample else config.name


@contextmanager
def _listed(config: ImportConfig, source: Path, reporter: Reporter) -> Iterator[Listing]:
    """What there is to import, while the files it names are there."""
    if isinstance(config, FolderConfig) and source.suffix.lower() == ".csv":
        yield list_folder(source, config)
        return
    with unpacked(source, reporter) as root:
        if isinstance(config, FolderConfig):
            yield list_folder(root, config)
        elif isinstance(config, BffhqConfig):
            yield list_bffhq(root)
        elif isinstance(config, BarConfig):
            yield list_bar(root, config.ratio)
        elif isinstance(config, CelebaConfig):
            yield list_celeba(root, config.subsample, config.seed)
        elif isinstance(config, WaterbirdsConfig):
            yield list_waterbirds(root)
        else:
            yield list_dfa(root, config.name, config.ratio)


def _is_archive(source: Path) -> bool:
    return source.is_file() and source.suffix.lower() != ".csv"


def _require_same_source(dataset: StoredDataset, config: ImportConfig, source: Path) -> None:
    """Refuse a source that is not the one an existing data set was imported from, as far as that can be told."""
    noted = dataset.manifest.recipe if dataset.manifest else {}
    key = "source_fingerprint"
    if _is_archive(source) and noted.get("source_sha256") == sha256(source):
        return  # the very archive, which need not be unpacked again
    with _listed(config, source, _Silent()) as listing:
        found = listing.fingerprint()
    if noted.get(key, found) != found:
        raise DataError(
            f"{dataset.path} was imported from other files than {source} holds: {key} {noted[key]} there, {found} here",
            "Leave out --source to use what is there, give another --data-root (or --name), or replace it with "
            "denetdm make-data ... --force.",
        )
