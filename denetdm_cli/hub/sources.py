"""Getting the file of a published model from wherever it lies."""

import re
import shlex
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from denetdm_cli.data.raw.sources import UnusableError, zip_members
from denetdm_cli.hub.download import download, download_from_drive, forget, kept_bytes, shown_address
from denetdm_cli.hub.published import DRIVE_ADDRESS, DRIVE_ID, Published
from denetdm_cli.utils.errors import CheckpointError, DownloadError, UserError
from denetdm_cli.utils.files import PART, naming
from denetdm_cli.utils.progress import Reporter
from denetdm_cli.utils.text import first_few, gigabytes

_SIZE_LIMIT = 1 << 32
_MEMBER_LIMIT = 1 << 30
_DEPTH = 3
_FETCHED = "fetched"
_ENDINGS = (".th", ".pth", ".pt")
_ZIP_START = b"PK\x03\x04"
_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<")
_GIVE_THE_FILE = "Give the file itself with --from FILE."
_QUOTA = re.compile(rb"quota|too many (users|times)|download limit", re.IGNORECASE)


@dataclass(frozen=True)
class Job:
    """One model to be had, and where it goes.

    Attributes:
        published: the model.
        folder: where it goes.
        reporter: told how it goes.
        given: the path or address, as it is shown, that the user gave; None where none was.
    """

    published: Published
    folder: Path
    reporter: Reporter
    given: str | None

    @property
    def name(self) -> str:
        """Of the model."""
        return self.published.name

    @property
    def original(self) -> Path:
        """The file as the authors published it, kept so that its digest can be verified later."""
        return self.folder / f"{self.name}.th"

    @property
    def converted(self) -> Path:
        """The checkpoint made of it."""
        return self.folder / f"{self.name}.safetensors"

    @property
    def part(self) -> Path:
        """Of a transfer that broke off: what has arrived."""
        return self.folder / f"{self.original.name}{PART}"

    @property
    def by_hand(self) -> str:
        """How to have the file where this program cannot fetch it, or got something else."""
        if self.given is not None:
            return (
                f"Look at what {self.given} is. Give the authors' {self.published.path}, or a folder or zip that holds "
                "it, with --from, or the address of the file or zip with --url."
            )
        again = ["denetdm", "download-pretrained", self.name, "--folder", str(self.folder)]
        return (
            f"Open {DRIVE_ADDRESS} in a browser, download {self.published.path}, and give it with --from FILE (or "
            f"--from with a folder or zip that holds it); or save it as {self.original} and run: {shlex.join(again)}"
        )


@dataclass(frozen=True)
class Fetched:
    """A file that may be the model.

    Attributes:
        path: of a temporary copy.
        shown: what messages call it.
        source: what records call it.
    """

    path: Path
    shown: str
    source: str


def obtain(job: Job, scratch: Path, *, source: Path | None, url: str | None) -> Fetched:
    """A file that may be the model, copied into a temporary folder: no web page, and out of the zip it came in.

    Args:
        job: what is to be had.
        scratch: the temporary folder, on the file system of the job's folder.
        source: a local file, or a folder or zip that holds it.
        url: an http(s) address of the file, or of a zip that holds it. Without both, it comes from the authors' folder.
    Raises:
        DownloadError: it could not be fetched, or what came is a web page or empty.
        CheckpointError: the source does not exist, or holds no such file; or what came is a zip without it, or damaged.
        StorageError: the disk has too little space.
    """
    if source is not None:
        fetched = _from_source(job, source, scratch)
    elif url is not None:
        fetched = _from_url(job, url, scratch)
    else:
        fetched = _from_drive(job, scratch)
    wrong = DownloadError if source is None else CheckpointError
    _refuse_page(job, fetched, wrong)
    inner = _out_of_zip(job, fetched, scratch)
    if inner is not fetched:
        _refuse_page(job, inner, wrong)
    path = scratch / job.published.file
    inner.path.replace(path)
    return Fetched(path, inner.shown, inner.source)


def _from_drive(job: Job, scratch: Path) -> Fetched:
    place = "the authors' Google Drive folder"
    job.reporter.info(f"{job.name}: looking into {place}")
    destination = scratch / _FETCHED
    try:
        path = download_from_drive(
            DRIVE_ID,
            partial(_choose, job.published),
            destination,
            limit=_SIZE_LIMIT,
            what=f"fetching {job.name}",
            reporter=job.reporter,
        )
    except UnusableError as error:
        raise DownloadError(f"{job.name} could not be fetched from {place}: {error}.", job.by_hand) from None
    return Fetched(destination, f"{path} from {place}", f"{DRIVE_ADDRESS} {path}")


def _from_url(job: Job, url: str, scratch: Path) -> Fetched:
    address = shown_address(url)
    job.reporter.info(f"{job.name}: fetching {address}")
    try:
        download(url, job.part, limit=_SIZE_LIMIT, what=f"fetching {job.name}", reporter=job.reporter)
    except UnusableError as error:
        raise DownloadError(
            f"{job.name} could not be fetched from {address}: {error}.",
            f"Open the address in a browser, and give the file with --from FILE.{_kept_words(job.part)}",
        ) from None
    except KeyboardInterrupt:
        if kept := _kept_words(job.part):
            job.reporter.info(f"{job.name}:{kept}")
        raise
    destination = scratch / _FETCHED
    job.part.replace(destination)
    return Fetched(destination, address, address)


def _kept_words(part: Path) -> str:
    """Say what is kept of a transfer that broke off; what is of no use later is removed."""
    kept = kept_bytes(part)
    if kept:
        return f" The {kept:,} bytes that have arrived are kept in {part}; the same command goes on from there."
    forget(part)
    return ""


def _from_source(job: Job, source: Path, scratch: Path) -> Fetched:
    if source.is_dir():
        paths = {path.relative_to(source).as_posix(): path for path in _model_files(source, _DEPTH)}
        try:
            source = paths[_choose(job.published, sorted(paths))]
        except UnusableError as error:
            raise CheckpointError(f"in {source} {error}", _GIVE_THE_FILE) from None
    if not source.is_file():
        state = "is no plain file" if source.exists() else "does not exist"
        raise CheckpointError(f"{source} {state}", "Check the path after --from.")
    if source.stat().st_size > _SIZE_LIMIT:
        raise CheckpointError(
            f"{source} has more than {gigabytes(_SIZE_LIMIT)}, which is too much for a model", job.by_hand
        )
    destination = scratch / _FETCHED  # a copy, so that what is verified is what is kept
    with naming(destination):
        shutil.copyfile(source, destination)
    return Fetched(destination, str(source), source.name)


def _model_files(folder: Path, depth: int) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir() and depth:
            yield from _model_files(path, depth - 1)
        elif path.is_file() and path.suffix.lower() in _ENDINGS:
            yield path


def _choose(published: Published, paths: Sequence[str]) -> str:
    """The path of a model among those in the authors' folder, or in a copy of it or of a part of it.

    Raises:
        UnusableError: none fits, or several do.
    """
    for ending in (published.path, f"{published.name}.th", published.file):
        found = [path for path in paths if f"/{path}".endswith(f"/{ending}")]
        if len(found) == 1:
            return found[0]
        if found:
            raise UnusableError(f"there is more than one {ending}: {first_few(found)}")
    raise UnusableError(f"there is no {published.path}, only {first_few(paths) or 'nothing of that kind'}")


def _refuse_page(job: Job, fetched: Fetched, wrong: type[UserError]) -> None:
    with fetched.path.open("rb") as file:
        start = file.read(1 << 16)
    if not start:
        raise wrong(f"{fetched.shown} is empty", job.by_hand)
    if _PAGE.match(start):
        quota = "; it says that too many have downloaded the file; try again in a day" if _QUOTA.search(start) else ""
        raise wrong(f"{fetched.shown} is a web page, not a model{quota}", job.by_hand)


def _out_of_zip(job: Job, fetched: Fetched, scratch: Path) -> Fetched:
    """The model in a zip; the files that PyTorch writes are zips too, and left as they are."""
    with fetched.path.open("rb") as file:
        if file.read(len(_ZIP_START)) != _ZIP_START:
            return fetched
    if not zipfile.is_zipfile(fetched.path):
        raise CheckpointError(f"{fetched.shown} is cut short or damaged", job.by_hand)
    destination = scratch / "unpacked"
    try:
        with zip_members(fetched.path, _MEMBER_LIMIT) as members:
            if any(name.rpartition("/")[2] == "data.pkl" for name in members):
                return fetched
            name = _choose(job.published, sorted(members))
            with naming(destination):
                destination.write_bytes(members[name]())
    except UnusableError as error:
        why = str(error).replace(f"{_FETCHED} ", "it ").replace(f"{_FETCHED}/", "")
        raise CheckpointError(f"nothing was taken from {fetched.shown}: {why}", job.by_hand) from None
    return Fetched(destination, f"{name} in {fetched.shown}", f"{fetched.source} {name}")
