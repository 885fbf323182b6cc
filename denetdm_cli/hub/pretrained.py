"""The published models in a folder: fetched, verified by digest, converted to checkpoints and recorded."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from denetdm_cli.hub.fetch import FetchedFile, FetchRequest, fetch_file
from denetdm_cli.hub.published import PUBLISHED, PublishedModel, named
from denetdm_cli.utils import files
from denetdm_cli.utils.errors import CheckpointError, ConfigError
from denetdm_cli.utils.files import new_folder, recover, temporary
from denetdm_cli.utils.log import shown
from denetdm_cli.utils.progress import Reporter

RECORDS = "pretrained.json"
"""The file in the folder with the digest of each model since its first download."""

_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})")


class _Record(BaseModel):
    """The digests of a fetched model: of the authors' file and of the checkpoint made from it."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int
    source: str
    converted_sha256: str = Field(pattern="^[0-9a-f]{64}$")


_RECORDS = TypeAdapter(dict[str, _Record])


@dataclass(frozen=True)
class Listed:
    """A published model and its state in a folder.

    Attributes:
        published: the model.
        size: bytes of the authors' file, if it was fetched into this folder.
        sha256: the digest of that file.
        path: the converted checkpoint, if it exists; `get_pretrained` verifies that it is unchanged.
    """

    published: PublishedModel
    size: int | None
    sha256: str | None
    path: Path | None


def listing(folder: Path) -> list[Listed]:
    """All published models and their state in `folder`.

    Raises:
        CheckpointError: the folder's records are damaged.
    """
    records = _read_records(folder)
    listed = []
    for published in PUBLISHED:
        record = records.get(published.name)
        path = folder / f"{published.name}.safetensors"
        if record is None:
            listed.append(Listed(published, None, None, None))
        else:
            listed.append(Listed(published, record.bytes, record.sha256, path if path.is_file() else None))
    return listed


def get_pretrained(
    name: str,
    folder: Path,
    *,
    source: Path | None = None,
    url: str | None = None,
    sha256: str | None = None,
    force: bool = False,
    reporter: Reporter,
) -> Path:
    """Fetch a published model into `folder`: the authors' file as NAME.th, and the checkpoint made from it.

    Files that are in the folder, whole and unchanged, are not fetched again; a NAME.th put there by hand is used.

    Args:
        name: a model in `PUBLISHED`.
        folder: the folder; made if it is missing.
        source: as in `FetchRequest`.
        url: as in `FetchRequest`.
        sha256: the digest that the authors' file (not a zip around it) must have.
        force: fetch it again, and replace a file or a digest that differs.
        reporter: receives progress.
    Returns:
        The checkpoint NAME.safetensors.
    Raises:
        ConfigError: an unknown name, or arguments that contradict each other.
        DownloadError: the download failed, or gave a web page instead.
        CheckpointError: the source holds no such model, a digest differs, or a file here is another.
        StorageError: the disk has too little space.
    """
    expected = _checked_digest(sha256)
    _check_places(source, url)
    request = FetchRequest(named(name), folder, reporter, source, url)
    with files.made_folder(folder), files.folder_lock(folder) as free:
        if not free:
            raise CheckpointError(
                f"another process is fetching models into {folder}", "Wait until it has ended, or give another folder."
            )
        recover(folder / name)  # leftovers of a killed process
        record = _read_records(folder).get(name)
        usable = not force and _is_usable(request, record)
        if source is None and url is None and not force and request.original.exists():
            request = replace(request, source=request.original)
        if usable and record is not None and request.source in (None, request.original) and url is None:
            _verify_kept(request, record, expected)
            reporter.info(
                f"{name}: is here already, {request.checkpoint} (SHA-256 of the authors' file: {record.sha256})"
            )
            return request.checkpoint
        with temporary(folder, f".{name}", new_folder) as scratch:
            file = fetch_file(request, scratch)
            if record is not None and request.source == request.original:
                file = replace(file, source=record.source)
            digest = _verify(file, expected, None if force else record)
            if not force:
                _require_no_other(request.original, digest)
            if usable:
                _put_back(request, file)
                reporter.info(f"{name}: the same file as before, {request.checkpoint} (SHA-256 {digest})")
            else:
                _convert_and_record(request, file, digest, scratch)
    return request.checkpoint


def _checked_digest(digest: str | None) -> str | None:
    if digest is None:
        return None
    match = _DIGEST.fullmatch(digest.strip().lower())
    if match is None:
        raise ConfigError(f"{shown(digest)!r} is no SHA-256 digest", "Give 64 hexadecimal digits.")
    return match[1]


def _check_places(source: Path | None, url: str | None) -> None:
    if source is not None and url is not None:
        raise ConfigError("both a local source and an address are given", "Give one of --from and --url.")
    if url is None:
        return
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        known = False
    if not known:
        raise ConfigError(f"{shown(url)!r} is no http(s) address", "Give one, or a local file with --from.")


def _read_records(folder: Path) -> dict[str, _Record]:
    path = folder / RECORDS
    try:
        return _RECORDS.validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValidationError:
        raise CheckpointError(
            f"{path}, which records the digests of the fetched models, is damaged",
            "Restore it, or remove it; its digests are then lost.",
        ) from None


def _is_usable(request: FetchRequest, record: _Record | None) -> bool:
    """Whether the checkpoint exists, unchanged.

    Raises:
        CheckpointError: it was changed, or another file has its place.
    """
    if not request.checkpoint.exists():
        return False
    if record is None or not request.checkpoint.is_file():
        raise CheckpointError(
            f"{request.checkpoint} exists, and was not made by this command",
            "Move it away, give another folder, or replace it with --force.",
        )
    _require_unchanged(request.checkpoint, record.converted_sha256, "made")
    return True


def _verify_kept(request: FetchRequest, record: _Record, expected: str | None) -> None:
    if request.original.exists():
        _require_unchanged(request.original, record.sha256, "fetched")
    if expected not in (None, record.sha256):
        raise _wrong_digest(f"the file that {request.checkpoint} was made of", record.sha256, expected)


def _require_unchanged(path: Path, digest: str, when: str) -> None:
    found = files.sha256(path)
    if found != digest:
        raise CheckpointError(
            f"{path} is not the file that was {when} here: its SHA-256 is {found}, not {digest}",
            "Move it away, give another folder, or fetch it again with --force.",
        )


def _require_no_other(path: Path, digest: str) -> None:
    """Refuse to replace another file."""
    if not path.exists():
        return
    if not path.is_file():
        raise CheckpointError(f"{path} is no plain file", "Move it away, or give another folder.")
    found = files.sha256(path)
    if found != digest:
        raise CheckpointError(
            f"{path} exists, and is another file: its SHA-256 is {found}, not {digest}",
            "Move it away, give another folder, or replace it with --force. Nothing was changed here.",
        )


def _put_back(request: FetchRequest, fetched: FetchedFile) -> None:
    if not request.original.exists():
        _keep(fetched.path, request.original)
        request.reporter.info(f"{request.name}: {request.original} was missing and is restored")


def _verify(fetched: FetchedFile, expected: str | None, record: _Record | None) -> str:
    """The digest of a file.

    Raises:
        CheckpointError: it is not the expected digest, or not the recorded one.
    """
    digest = files.sha256(fetched.path)
    if expected not in (None, digest):
        raise _wrong_digest(fetched.shown, digest, expected)
    if record is not None and record.sha256 != digest:
        raise CheckpointError(
            f"{fetched.shown} is not the file that was fetched before: its SHA-256 is {digest}, not {record.sha256} "
            f"(from {record.source})",
            "Find out which of them is the authors' file. Nothing was changed here; --force takes the new one.",
        )
    return digest


def _wrong_digest(what: str, found: str, expected: str | None) -> CheckpointError:
    return CheckpointError(
        f"{what} does not have the expected digest: its SHA-256 is {found}, not {expected}",
        "Check the digest and where the file came from. Nothing was changed here.",
    )


def _convert_and_record(request: FetchRequest, fetched: FetchedFile, digest: str, scratch: Path) -> None:
    from denetdm_cli.hub.convert import convert_to_ours  # imports PyTorch, which is slow

    size = fetched.path.stat().st_size
    converted = scratch / request.checkpoint.name
    origin: dict[str, str | int | None] = {
        "published_as": request.name,
        "fetched_from": fetched.source,
        "sha256": digest,
        "bytes": size,
    }
    request.reporter.info(f"{request.name}: converting {fetched.shown}")
    with _named_as_given(fetched):
        official = convert_to_ours(fetched.path, converted, origin=origin)
    published = request.published
    if (official.dataset, official.stage) != (published.dataset, published.stage):
        raise CheckpointError(
            f"{fetched.shown} is a model of {official.dataset}, {official.stage}, not of {published.dataset}, "
            f"{published.stage}",
            request.remedy,
        )
    record = _Record(sha256=digest, bytes=size, source=fetched.source, converted_sha256=files.sha256(converted))
    records = {**_read_records(request.folder), request.name: record}
    # In this order, the same command finishes the work of a killed process. With --force, a half replaced model is
    # refused until the same command replaces the rest.
    _keep(fetched.path, request.original)
    files.write_text(request.folder / RECORDS, _RECORDS.dump_json(records, indent=2).decode() + "\n")
    _keep(converted, request.checkpoint)
    request.discard_transfers()
    request.reporter.info(
        f"{request.name}: {request.checkpoint}, from {fetched.shown} ({size:,} bytes, SHA-256 {digest})"
    )


def _keep(path: Path, destination: Path) -> None:
    with files.atomic_file(destination) as temporary:
        path.replace(temporary)


@contextmanager
def _named_as_given(fetched: FetchedFile) -> Iterator[None]:
    """Replace the path of the temporary copy in an error by the name that the user knows."""
    try:
        yield
    except CheckpointError as error:
        path = str(fetched.path)
        raise CheckpointError(error.what.replace(path, fetched.shown), error.fix.replace(path, fetched.shown)) from None
