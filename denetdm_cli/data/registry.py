"""The data sets by the class of their `dataset` section: the folder of each, and how it is made or imported."""

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from denetdm_cli.config.schema import (
    BarConfig,
    BffhqConfig,
    CelebaConfig,
    ColoredMnistConfig,
    CorruptedCifar10Config,
    DatasetConfig,
    DfaConfig,
    FolderConfig,
    Section,
    WaterbirdsConfig,
)
from denetdm_cli.data.importers.archives import unpacked
from denetdm_cli.data.importers.bar import bar_folder, list_bar
from denetdm_cli.data.importers.bffhq import list_bffhq
from denetdm_cli.data.importers.celeba import celeba_folder, list_celeba
from denetdm_cli.data.importers.dfa import dfa_folder, list_dfa
from denetdm_cli.data.importers.folders import list_folder
from denetdm_cli.data.importers.listing import Importer, gap_notes
from denetdm_cli.data.importers.pack import pack
from denetdm_cli.data.importers.waterbirds import list_waterbirds
from denetdm_cli.data.raw.cifar10 import lazy_cifar10
from denetdm_cli.data.raw.frost import load_textures
from denetdm_cli.data.raw.mnist import lazy_mnist
from denetdm_cli.data.recipe import Recipe, command, ensure
from denetdm_cli.data.store import Scalar, StoredDataset
from denetdm_cli.data.synthetic.colored_mnist import colored_mnist_recipe
from denetdm_cli.data.synthetic.corrupted_cifar10 import corrupted_cifar10_recipe
from denetdm_cli.utils.errors import DataError
from denetdm_cli.utils.files import sha256
from denetdm_cli.utils.progress import Reporter, Silent

IMPORTERS: Mapping[type[Section], Importer] = {
    BarConfig: Importer(list_bar, bar_folder),
    BffhqConfig: Importer(list_bffhq),
    CelebaConfig: Importer(list_celeba, celeba_folder),
    DfaConfig: Importer(list_dfa, dfa_folder),
    FolderConfig: Importer(list_folder, lambda config: config.folder),
    WaterbirdsConfig: Importer(list_waterbirds),
}
"""The imported data sets, by the class of their `dataset` section; the others are made from originals."""


def is_imported(config: DatasetConfig) -> bool:
    """Whether a data set is imported from files the user has, rather than made from originals."""
    return type(config) in IMPORTERS


class _OneOfSeveral:
    """Adds the name of one of several data sets to what is reported of it."""

    def __init__(self, name: str, reporter: Reporter) -> None:
        self._name = name
        self._reporter = reporter

    def info(self, line: str) -> None:
        self._reporter.info(f"{self._name}: {line}")

    def warn(self, warning: str) -> None:
        self._reporter.warn(f"{self._name}: {warning}")

    def advance(self, what: str, done: int, total: int) -> None:
        self._reporter.advance(f"{self._name}: {what}", done, total)


@dataclass(frozen=True)
class _Sources:
    """The sources given; an archive is unpacked, and its SHA-256 computed, once and only when needed.

    Attributes:
        source: as the user names it; None to download the images.
        root: the folder, or the CSV file, that the source is or holds.
        sha256: of an archive.
        frost: a local copy of the frost textures.
    """

    source: Path | None
    root: Callable[[], Path]
    sha256: Callable[[], str | None]
    frost: Path | None


def folder(config: DatasetConfig) -> Path:
    """Where a data set with these settings lies."""
    return _recipes([config], _open_sources(None, None, ExitStack(), Silent()), Silent())[0].path


def ensure_datasets(
    configs: Sequence[DatasetConfig],
    *,
    source: Path | None = None,
    frost: Path | None = None,
    force: bool = False,
    reporter: Reporter,
) -> list[tuple[StoredDataset, bool]]:
    """Open the data sets with these settings, making those that are missing.

    Raw images are read, and archives unpacked, at most once.

    Args:
        configs: all of one name and below one root.
        source: a local copy of the raw images, or None to download them.
        frost: a local copy of the frost textures of Corrupted CIFAR-10.
        force: make them again where they exist.
        reporter: receives progress and warnings.
    Returns:
        Each data set, and whether it was made now.
    Raises:
        DataError: an existing folder is damaged or has other settings.
        DownloadError: the raw images cannot be downloaded.
    """
    found = []
    with ExitStack() as stack:
        sources = _open_sources(source, frost, stack, reporter)
        for config, recipe in zip(configs, _recipes(configs, sources, reporter), strict=True):
            dataset, made = ensure(recipe, force=force)
            if not made:
                _check_sources(sources, config, dataset, recipe, reporter)
            found.append((dataset, made))
    return found


def _open_sources(source: Path | None, frost: Path | None, stack: ExitStack, reporter: Reporter) -> _Sources:
    """The sources given; an archive stays unpacked as long as the stack is open."""

    def root() -> Path:
        if source is None:
            raise ValueError("no source was given")
        return stack.enter_context(unpacked(source, reporter))

    archive = source if source is not None and source.is_file() and source.suffix.lower() != ".csv" else None
    digest = functools.cache(lambda: sha256(archive) if archive else None)
    return _Sources(source, functools.cache(root), digest, frost)


def _recipes(configs: Sequence[DatasetConfig], sources: _Sources, reporter: Reporter) -> list[Recipe]:
    root = Path(configs[0].root)
    mnist = lazy_mnist(root, sources.source, reporter.info)
    cifar = lazy_cifar10(root, sources.source, reporter.info)
    textures = functools.cache(lambda: load_textures(root, sources.frost, reporter.info))

    def recipe(config: DatasetConfig) -> Recipe:
        ratio = getattr(config, "ratio", None)
        own = reporter if ratio is None or len(configs) == 1 else _OneOfSeveral(f"ratio {ratio}", reporter)
        if isinstance(config, ColoredMnistConfig):
            return colored_mnist_recipe(config, mnist)
        if isinstance(config, CorruptedCifar10Config):
            return corrupted_cifar10_recipe(config, cifar, textures, own)
        return _import_recipe(config, sources, own)

    return [recipe(config) for config in configs]


def _import_recipe(config: DatasetConfig, sources: _Sources, reporter: Reporter) -> Recipe:
    path = Path(config.root) / IMPORTERS[type(config)].folder(config)
    settings: dict[str, Scalar] = config.model_dump(exclude={"root", "folder"})
    again = f"{command(config)} --source FOLDER_OR_ARCHIVE"

    def make(replace: bool) -> StoredDataset:
        if sources.source is None:
            raise DataError(
                f"data set {config.name} is not in {path}, and it cannot be downloaded",
                f"Bring the files and import them once: `{again}`.",
            )
        listing = IMPORTERS[type(config)].list(sources.root(), config)
        for note in (*listing.notes, *gap_notes(listing)):
            reporter.warn(note)
        digest = sources.sha256()
        return pack(
            listing,
            path,
            size=getattr(config, "size", None),
            fit=getattr(config, "fit", "stretch"),
            recipe=settings | ({"source_sha256": digest} if digest else {}),
            replace=replace,
            reporter=reporter,
        )

    return Recipe(path, settings, make, again)


def _check_sources(
    sources: _Sources, config: DatasetConfig, dataset: StoredDataset, recipe: Recipe, reporter: Reporter
) -> None:
    """For an existing data set: warn of options that were not used, or refuse a source it was not imported from."""
    if not is_imported(config):
        unused = [
            option for option, path in (("--source", sources.source), ("--frost", sources.frost)) if path is not None
        ]
        if unused:
            what = f"{' and '.join(unused)} {'was' if len(unused) == 1 else 'were'}"
            reporter.warn(f"{dataset.path} exists already, so {what} not used; --force makes it again")
    elif sources.source is not None:
        _require_same_source(sources, config, dataset, recipe)


def _require_same_source(sources: _Sources, config: DatasetConfig, dataset: StoredDataset, recipe: Recipe) -> None:
    """Refuse a source whose fingerprint differs from that of the source an existing data set was imported from."""
    noted = dataset.manifest.recipe if dataset.manifest else {}
    digest = sources.sha256()
    if digest is not None and noted.get("source_sha256") == digest:
        return  # the very archive, which need not be unpacked again
    key = "source_fingerprint"
    listing = IMPORTERS[type(config)].list(sources.root(), config)
    found = listing.fingerprint()
    if noted.get(key, found) != found:
        before = sum(len(split.target) for split in dataset.splits.values()) + int(noted.get("images_left_out") or 0)
        now = sum(map(len, listing.splits.values()))
        name = " (or --name)" if isinstance(config, FolderConfig) else ""
        raise DataError(
            f"{dataset.path} was imported from other files than {sources.source} holds: "
            f"{before:,} images then, {now:,} now, and names, labels or sizes of files differ",
            f"Leave out --source to use the existing data set, give another --data-root{name}, or replace it with "
            f"`{recipe.again} --force`.",
        )
