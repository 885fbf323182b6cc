"""The published models in a folder: fetched, verified, remembered by digest and converted."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from denetdm_cli.hub.download import forget, shown_address
from denetdm_cli.hub.published import PUBLISHED, Published, named
from denetdm_cli.hub.sources import Fetched, Job, obtain
from denetdm_cli.utils import files
from denetdm_cli.utils.errors import CheckpointError, ConfigError
from denetdm_cli.utils.files import new_folder, recover, temporary
from denetdm_cli.utils.log import shown
from denetdm_cli.utils.progress import Reporter

RECORDS = "pretrained.json"
"""The file in the folder that remembers the digest of each model since it was first seen."""

_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})")


class _Record(BaseModel):
    """What is remembered of a model that was fetched: its own digest, and that of what was made of it."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int
    source: str
    converted_sha256: str = Field(pattern="^[0-9a-f]{64}$")


_RECORDS = TypeAdapter(dict[str, _Record])


@dataclass(frozen=True)
class Listed:
    """A published model, and what of it is in a folder.

    Attributes:
        published: the model.
        size: of the authors' file in bytes, if it was ever fetched into this folder.
        sha256: of that file.
        path: the converted checkpoint, if it is here; whether it is unchanged, `fetch` verifies.
    """

    published: Published
    size: int | None
    sha256: str | None
    path: Path | None


def listing(folder: Path) -> list[Listed]:
    """All published models, and what of them is in `folder`.

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


def fetch(
    name: str,
    folder: Path,
    *,
    source: Path | None = None,
    url: str | None = None,
    sha256: str | None = None,
    force: bool = False,
    reporter: Reporter,
) -> Path:
    """Have a published model in `folder`: the authors' file as NAME.th, and the checkpoint made of it.

    What is here already, whole and unchanged, is not fetched again; a NAME.th put there by hand is taken. Without
    `source` and `url`, a missing file comes from the authors' Google Drive folder.

    Args:
        name: of a model in `PUBLISHED`.
        folder: where it goes; made if it is missing.
        source: a local file, or a folder or zip that holds it.
        url: an http(s) address of the file, or of a zip that holds it.
        sha256: the digest that the authors' file (not a zip around it) must have.
        force: fetch it again, and let it replace another file and another digest.
        reporter: told how it goes.
    Returns:
        The checkpoint NAME.safetensors.
    Raises:
        ConfigError: an unknown name, or arguments that make no sense.
        DownloadError: it could not be fetched, or a web page came in its place.
        CheckpointError: the source holds no such model, a digest is not as it must be, or a file here is another.
        StorageError: the disk has too little space.
    """
    published, expected = named(name), _checked_digest(sha256)
    _check_places(source, url)
    given = source if url is None else shown_address(url)
    job = Job(published, folder, reporter, None if given is None else str(given))
    with files.made_folder(folder), files.folder_lock(folder) as free:
        if not free:
            raise CheckpointError(
                f"another process is fetching models into {folder}", "Wait until it has ended, or give another folder."
            )
        recover(folder / name)  # also where nothing is fetched below
        record = _read_records(folder).get(name)
        usable = not force and _is_usable(job, record)
        if source is None and url is None and not force and job.original.exists():
            source = job.original
        if usable and record is not None and source in (None, job.original) and url is None:
            _verify_kept(job, record, expected)
            reporter.info(f"{name}: is here already, {job.converted} (SHA-256 of the authors' file: {record.sha256})")
            return job.converted
        with temporary(folder, f".{name}", new_folder) as scratch:
            fetched = obtain(job, scratch, source=source, url=url)
            if record is not None and source == job.original:
                fetched = replace(fetched, source=record.source)
            digest = _verify(fetched, expected, None if force else record)
            if not force:
                _require_no_other(job.original, digest)
            if usable:
                _put_back(job, fetched)
                reporter.info(f"{name}: the same file as before, {job.converted} (SHA-256 {digest})")
            else:
                _convert_and_keep(job, fetched, digest, scratch)
    return job.converted


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
            f"{path}, which remembers the digests of the models fetched, is damaged",
            "Restore it, or remove it to begin anew; the digests seen before are then forgotten.",
        ) from None


def _is_usable(job: Job, record: _Record | None) -> bool:
    """Whether the checkpoint is here as it was made; another file in its place is not replaced."""
    if not job.converted.exists():
        return False
    if record is None or not job.converted.is_file():
        raise CheckpointError(
            f"{job.converted} exists, and was not made by this command",
            "Move it away, give another folder, or replace it with --force.",
        )
    _require_unchanged(job.converted, record.converted_sha256, "made")
    return True


def _verify_kept(job: Job, record: _Record, expected: str | None) -> None:
    if job.original.exists():
        _require_unchanged(job.original, record.sha256, "fetched")
    if expected not in (None, record.sha256):
        raise _not_as_asked(f"the file that {job.converted} was made of", record.sha256, expected)


def _require_unchanged(path: Path, digest: str, when: str) -> None:
    found = files.sha256(path)
    if found != digest:
        raise CheckpointError(
            f"{path} is not the file that was {when} here: its SHA-256 is {found}, not {digest}",
            "Move it away, give another folder, or fetch it again with --force.",
        )


def _require_no_other(path: Path, digest: str) -> None:
    """Refuse to replace what is no such file."""
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


def _put_back(job: Job, fetched: Fetched) -> None:
    if not job.original.exists():
        _keep(fetched.path, job.original)
        job.reporter.info(f"{job.name}: {job.original} was missing, and is there again")


def _verify(fetched: Fetched, expected: str | None, record: _Record | None) -> str:
    """The digest of a file, which must be the one asked for and the one seen before."""
    digest = files.sha256(fetched.path)
    if expected not in (None, digest):
        raise _not_as_asked(fetched.shown, digest, expected)
    if record is not None and record.sha256 != digest:
        raise CheckpointError(
            f"{fetched.shown} is not the file that was fetched before: its SHA-256 is {digest}, not {record.sha256} "
            f"(from {record.source})",
            "Find out which of them is the authors' file. Nothing was changed here; --force takes the new one.",
        )
    return digest


def _not_as_asked(what: str, found: str, expected: str | None) -> CheckpointError:
    return CheckpointError(
        f"{what} is not the file asked for: its SHA-256 is {found}, not {expected}",
        "Check the digest and where the file came from. Nothing was changed here.",
    )


def _convert_and_keep(job: Job, fetched: Fetched, digest: str, scratch: Path) -> None:
    from denetdm_cli.hub.convert import convert_to_ours  # imports PyTorch, which takes seconds

    size = fetched.path.stat().st_size
    converted = scratch / job.converted.name
    origin: dict[str, str | int | None] = {
        "published_as": job.name,
        "fetched_from": fetched.source,
        "sha256": digest,
        "bytes": size,
    }
    job.reporter.info(f"{job.name}: converting {fetched.shown}")
    with _named_as_given(fetched):
        official = convert_to_ours(fetched.path, converted, origin=origin)
    published = job.published
    if (official.dataset, official.stage) != (published.dataset, published.stage):
        raise CheckpointError(
            f"{fetched.shown} is a model of {official.dataset}, {official.stage}, not of {published.dataset}, "
            f"{published.stage}",
            job.by_hand,
        )
    record = _Record(sha256=digest, bytes=size, source=fetched.source, converted_sha256=files.sha256(converted))
    records = {**_read_records(job.folder), job.name: record}
    # In this order, where nothing is replaced, a process that is killed in between is followed by one that goes on
    # without a question; where --force replaces, what is half replaced is refused, and the same command goes on.
    _keep(fetched.path, job.original)
    files.write_text(job.folder / RECORDS, _RECORDS.dump_json(records, indent=2).decode() + "\n")
    _keep(converted, job.converted)
    forget(job.part)
    job.reporter.info(f"{job.name}: {job.converted}, from {fetched.shown} ({size:,} bytes, SHA-256 {digest})")


def _keep(path: Path, destination: Path) -> None:
    with files.atomic_file(destination) as temporary:
        path.replace(temporary)


@contextmanager
def _named_as_given(fetched: Fetched) -> Iterator[None]:
    """Let an error name the file that the user knows, not its temporary copy."""
    try:
        yield
    except CheckpointError as error:
        path = str(fetched.path)
        raise CheckpointError(error.what.replace(path, fetched.shown), error.fix.replace(path, fetched.shown)) from None
