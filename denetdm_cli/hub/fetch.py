"""The authors' file of a published model: from Google Drive, an address, or a local file, folder or zip."""

import re
import shlex
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from denetdm_cli.data.raw.sources import UnusableError, zip_members
from denetdm_cli.hub.download import Transfer, address_key, shown_address
from denetdm_cli.hub.published import DRIVE_ADDRESS, DRIVE_ID, PublishedModel
from denetdm_cli.utils.errors import CheckpointError, DownloadError, UserError
from denetdm_cli.utils.files import naming
from denetdm_cli.utils.progress import Reporter
from denetdm_cli.utils.text import first_few, gigabytes

_SIZE_LIMIT = 1 << 32
_MEMBER_LIMIT = 1 << 30
_DEPTH = 3
_COPY = "fetched"
_ENDINGS = (".th", ".pth", ".pt")
_ZIP_START = b"PK\x03\x04"
_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<")
_QUOTA = re.compile(rb"quota|too many (users|times)|download limit", re.IGNORECASE)


@dataclass(frozen=True)
class FetchRequest:
    """One published model to fetch, from where and into which folder.

    Attributes:
        published: the model.
        folder: the folder that receives it.
        reporter: receives progress.
        source: a local file, or a folder or zip that holds it.
        url: an http(s) address of the file, or of a zip that holds it. Without both, the authors' folder is the source.
    """

    published: PublishedModel
    folder: Path
    reporter: Reporter
    source: Path | None
    url: str | None

    @property
    def name(self) -> str:
        """The name of the model."""
        return self.published.name

    @property
    def original(self) -> Path:
        """The authors' file, kept so that its digest can be verified later."""
        return self.folder / f"{self.name}.th"

    @property
    def checkpoint(self) -> Path:
        """The checkpoint made from the authors' file."""
        return self.folder / f"{self.name}.safetensors"

    @property
    def remedy(self) -> str:
        """How to get the file by hand."""
        if self.url is not None or self.source not in (None, self.original):
            given = self.source if self.url is None else shown_address(self.url)
            return (
                f"Look at what {given} is. Give the authors' {self.published.path}, or a folder or zip that holds it, "
                "with --from, or the address of the file or zip with --url."
            )
        again = ["denetdm", "download-pretrained", self.name, "--folder", str(self.folder)]
        return (
            f"Open {DRIVE_ADDRESS} in a browser, download {self.published.path}, and give it with --from FILE (or "
            f"--from with a folder or zip that holds it); or save it as {self.original} and run: {shlex.join(again)}"
        )

    def transfer(self, address: str) -> Transfer:
        """A transfer from an address to a path of its own in the folder, where a broken one can be resumed."""
        return Transfer(
            self.folder / f"{self.original.name}.download-{address_key(address)}",
            limit=_SIZE_LIMIT,
            what=f"fetching {self.name}",
            reporter=self.reporter,
        )

    def discard_transfers(self) -> None:
        """Remove the parts of broken transfers, from any address."""
        for path in self.folder.glob(f"{self.original.name}.download-*"):
            path.unlink()


@dataclass(frozen=True)
class FetchedFile:
    """A file that may be the model.

    Attributes:
        path: a temporary copy.
        shown: its name in messages.
        source: its name in records.
    """

    path: Path
    shown: str
    source: str


def fetch_file(request: FetchRequest, scratch: Path) -> FetchedFile:
    """A copy in `scratch` of a file that may be the model: no web page, and out of the zip it came in.

    Raises:
        DownloadError: the download failed, or gave a web page or nothing.
        CheckpointError: the source does not exist or holds no such file, or the file is a zip without it, or damaged.
        StorageError: the disk has too little space.
    """
    if request.source is None:
        wrong: type[UserError] = DownloadError
        fetched = _downloaded(request, scratch)
    else:
        wrong = CheckpointError
        fetched = _copied(request, request.source, scratch)
    _refuse_page(request, fetched, wrong)
    inner = _out_of_zip(request, fetched, scratch)
    if inner is not fetched:
        _refuse_page(request, inner, wrong)
    path = scratch / request.published.file
    inner.path.replace(path)
    return replace(inner, path=path)


def _downloaded(request: FetchRequest, scratch: Path) -> FetchedFile:
    name, path = request.name, scratch / _COPY
    place = "the authors' Google Drive folder" if request.url is None else shown_address(request.url)
    transfer = request.transfer(request.url or f"{DRIVE_ADDRESS}/{request.published.path}")
    request.reporter.info(f"{name}: fetching from {place}")
    try:
        if request.url is not None:
            transfer.from_url(request.url)
            fetched = FetchedFile(path, place, place)
        else:
            chosen = transfer.from_drive(DRIVE_ID, partial(_choose, request.published))
            fetched = FetchedFile(path, f"{chosen} from {place}", f"{DRIVE_ADDRESS} {chosen}")
    except UnusableError as error:
        remedy = request.remedy
        if request.url is not None:
            remedy = "Open the address in a browser, and give the file with --from FILE."
        raise DownloadError(
            f"{name} could not be fetched from {place}: {error}.", f"{remedy}{_kept_words(transfer)}"
        ) from None
    except KeyboardInterrupt:
        if kept := _kept_words(transfer):
            request.reporter.info(f"{name}:{kept}")
        raise
    transfer.output.replace(path)
    return fetched


def _kept_words(transfer: Transfer) -> str:
    """A sentence on the bytes kept of a broken transfer; an empty part is removed."""
    part = transfer.kept_part()
    if part is None:
        transfer.discard()
        return ""
    return f" The {part.stat().st_size:,} bytes received so far are kept in {part}; the same command resumes there."


def _copied(request: FetchRequest, source: Path, scratch: Path) -> FetchedFile:
    if source.is_dir():
        paths = {path.relative_to(source).as_posix(): path for path in _model_files(source, _DEPTH)}
        try:
            source = paths[_choose(request.published, sorted(paths))]
        except UnusableError as error:
            raise CheckpointError(f"in {source} {error}", "Give the file itself with --from FILE.") from None
    if not source.is_file():
        state = "is no plain file" if source.exists() else "does not exist"
        raise CheckpointError(f"{source} {state}", "Check the path after --from.")
    if source.stat().st_size > _SIZE_LIMIT:
        raise CheckpointError(
            f"{source} has more than {gigabytes(_SIZE_LIMIT)}, which is too much for a model", request.remedy
        )
    path = scratch / _COPY  # a copy, so that the verified bytes are the kept ones
    with naming(path):
        shutil.copyfile(source, path)
    return FetchedFile(path, str(source), source.name)


def _model_files(folder: Path, depth: int) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir() and depth:
            yield from _model_files(path, depth - 1)
        elif path.is_file() and path.suffix.lower() in _ENDINGS:
            yield path


def _choose(published: PublishedModel, paths: Sequence[str]) -> str:
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


def _refuse_page(request: FetchRequest, fetched: FetchedFile, wrong: type[UserError]) -> None:
    with fetched.path.open("rb") as file:
        start = file.read(1 << 16)
    if not start:
        raise wrong(f"{fetched.shown} is empty", request.remedy)
    if _PAGE.match(start):
        quota = "; its download quota is used up; try again in a day" if _QUOTA.search(start) else ""
        raise wrong(f"{fetched.shown} is a web page, not a model{quota}", request.remedy)


def _out_of_zip(request: FetchRequest, fetched: FetchedFile, scratch: Path) -> FetchedFile:
    """The model in a zip; a zip that PyTorch wrote is the model itself."""
    with fetched.path.open("rb") as file:
        if file.read(len(_ZIP_START)) != _ZIP_START:
            return fetched
    if not zipfile.is_zipfile(fetched.path):
        raise CheckpointError(f"{fetched.shown} is cut short or damaged", request.remedy)
    destination = scratch / "unpacked"
    try:
        with zip_members(fetched.path, _MEMBER_LIMIT) as members:
            if any(name.rpartition("/")[2] == "data.pkl" for name in members):
                return fetched
            name = _choose(request.published, sorted(members))
            with naming(destination):
                destination.write_bytes(members[name]())
    except UnusableError as error:
        why = str(error).replace(f"{_COPY} ", "it ").replace(f"{_COPY}/", "")
        raise CheckpointError(f"{fetched.shown} was not unpacked: {why}", request.remedy) from None
    return FetchedFile(destination, f"{name} in {fetched.shown}", f"{fetched.source} {name}")
