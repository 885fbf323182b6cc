"""Files over the network: from any http(s) address, resumed where it broke off, and from a Google Drive folder."""

import contextlib
import hashlib
import io
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeVar
from urllib.parse import urlsplit, urlunsplit

import requests
from pydantic import BaseModel, ValidationError

from denetdm_cli.data.raw.sources import UnusableError
from denetdm_cli.utils.errors import StorageError
from denetdm_cli.utils.files import naming, write_text
from denetdm_cli.utils.log import shown
from denetdm_cli.utils.progress import Reporter
from denetdm_cli.utils.text import gigabytes

T = TypeVar("T")

PAUSES = (1.0, 2.0, 4.0)
"""Seconds before each further try."""

_CONNECT_SECONDS = 10.0
_SILENCE_SECONDS = 30.0
_DRIVE_SECONDS = 1800.0
_SECONDS_BETWEEN_LINES = 10.0
_CHUNK = 1 << 16
_REASON_LENGTH = 400
_PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_PASSING = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
    requests.exceptions.ContentDecodingError,
)
_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")
_POOL = re.compile(r"^HTTPS?Connection(Pool)?\(.*?\): ")
_ADVICE = re.compile(r"(You may still be able to access|The received bytes are kept in|Check FAQ in) .*", re.DOTALL)
"""What gdown adds to a reason: other ways than this program's, and a temporary file that is not kept."""


class _PassingError(UnusableError):
    """What may go better at the next try."""


class _Kept(BaseModel):
    """What is known of a file of which the first bytes are here; without it they are worth nothing."""

    url: str
    header: Literal["ETag", "Last-Modified"]
    value: str
    total: int


def shown_address(url: str) -> str:
    """An address without what may be secret in it: user, password, query and fragment."""
    parts = urlsplit(url)
    return shown(urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "")))


def download(url: str, part: Path, *, limit: int, what: str, reporter: Reporter) -> None:
    """Fetch a file from an http(s) address, and go on with what is in `part` if it is of the same, unchanged file.

    Args:
        url: the address; it may redirect to other http(s) addresses.
        part: the file to write. Until it is whole, a file beside it, with `.json` at its end, says what it is part of.
            If the transfer breaks off, both are kept, for the next call to go on.
        limit: more bytes are refused, before they are fetched where the server says how many there are.
        what: is fetched, in the progress shown.
        reporter: told of progress and of further tries.
    Raises:
        UnusableError: it could not be had, even by further tries where they make sense; the message says why.
        StorageError: the disk has too little space.
    """
    meter = _Meter(what, limit, reporter)
    with requests.Session() as session:
        session.headers["Accept-Encoding"] = "identity"  # bytes are counted as they lie on the server
        _retried(lambda: _go_on(session, url, part, meter), reporter)
    _notes(part).unlink(missing_ok=True)


def kept_bytes(part: Path) -> int:
    """How many bytes a call to `download` that broke off has left for the next one to go on from."""
    return part.stat().st_size if part.is_file() and _notes(part).is_file() else 0


def forget(part: Path) -> None:
    """Remove what a call to `download` has left for the next one."""
    part.unlink(missing_ok=True)
    _notes(part).unlink(missing_ok=True)


def download_from_drive(
    folder_id: str,
    choose: Callable[[Sequence[str]], str],
    destination: Path,
    *,
    limit: int,
    what: str,
    reporter: Reporter,
) -> str:
    """Fetch one file of a public Google Drive folder.

    Args:
        folder_id: as in the folder's address.
        choose: given the paths of all files in the folder, returns one of them or raises `UnusableError`.
        destination: the file to write, in a folder for temporary files.
        limit: more bytes are refused.
        what: is fetched, in the progress shown.
        reporter: told of progress and of further tries.
    Returns:
        The path that was chosen.
    Raises:
        UnusableError: it could not be had, even by further tries where they make sense; the message says why.
    """

    def attempt() -> str:
        import gdown  # slow, and needed by few

        with _drive_errors():
            listed = gdown.download_folder(
                id=folder_id, quiet=True, use_cookies=False, skip_download=True, timeout=timeouts
            )
        ids = {file.path.replace("\\", "/"): file.id for file in listed if not isinstance(file, str)}
        path = choose(sorted(ids))
        stop = threading.Event()
        timer = threading.Timer(_DRIVE_SECONDS, stop.set)
        timer.daemon = True
        timer.start()
        try:
            with _drive_errors():
                gdown.download(
                    id=ids[path],
                    output=str(destination),
                    quiet=True,
                    use_cookies=False,
                    progress=meter,
                    timeout=timeouts,
                    cancel=stop,
                )
        finally:
            timer.cancel()
        return path

    timeouts = (_CONNECT_SECONDS, _SILENCE_SECONDS)
    meter = _Meter(what, limit, reporter)
    return _retried(attempt, reporter)


def _retried(attempt: Callable[[], T], reporter: Reporter) -> T:
    for pause in PAUSES:
        try:
            return attempt()
        except _PassingError as error:
            reporter.info(f"{error}; trying again in {pause:g} s")
            time.sleep(pause)
    return attempt()


class _Meter:
    """Shows how many bytes have arrived, and stops at the limit."""

    def __init__(self, what: str, limit: int, reporter: Reporter) -> None:
        self._what = what
        self._limit = limit
        self._reporter = reporter
        self._told = time.monotonic()

    def __call__(self, done: int, total: int | None) -> None:
        """`done` bytes have arrived of `total`, if that is known."""
        if max(done, total or 0) > self._limit:
            raise UnusableError(f"it has more than {gigabytes(self._limit)}, which is too much for a model")
        if total is not None:
            kilobytes = -(-total // 1000)
            self._reporter.advance(f"{self._what}, kB", kilobytes if done >= total else done // 1000, kilobytes)
        elif time.monotonic() - self._told > _SECONDS_BETWEEN_LINES:
            self._told = time.monotonic()
            self._reporter.info(f"{self._what}: {done // 1000:,} kB so far, of how many the server does not say")


def _go_on(session: requests.Session, url: str, part: Path, meter: _Meter) -> None:
    """One try: ask for what is missing, and write it to `part`."""
    kept = _read_notes(part, url)
    offset = part.stat().st_size if kept is not None and part.is_file() else 0
    headers = {"Range": f"bytes={offset}-", "If-Range": kept.value} if kept is not None and offset else {}
    timeouts = (_CONNECT_SECONDS, _SILENCE_SECONDS)
    with _http_errors(), session.get(url, headers=headers, stream=True, timeout=timeouts) as response:
        if response.status_code in (206, 416) and kept is not None and offset:
            if not _continues(response, kept, offset):
                forget(part)
                raise _PassingError("the file has changed since the last try, so it is fetched anew")
            if response.status_code == 416:
                return  # it is whole
        elif response.status_code == 200:
            offset = 0
            kept = None
        else:
            kind = _PassingError if response.status_code in _PASSING_STATUS else UnusableError
            raise kind(f"the server answers {response.status_code} {shown(response.reason or '')}".rstrip())
        total = kept.total if kept is not None else _length(response)
        meter(offset, total)
        _require_space(part, (total or 0) - offset)
        if not offset:
            _write_notes(part, url, response, total)
        with naming(part), part.open("ab" if offset else "wb") as file:
            for chunk in response.iter_content(_CHUNK):
                offset += len(chunk)
                meter(offset, total)
                file.write(chunk)
    if total is not None and offset != total:
        raise _PassingError(f"the transfer broke off after {offset:,} of {total:,} bytes")


def _continues(response: requests.Response, kept: _Kept, offset: int) -> bool:
    """Whether a 206 or 416 says that the bytes from `offset` on are those of the file that `kept` tells of."""
    match = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if match is None or response.headers.get(kept.header, kept.value) != kept.value:
        return False
    start, total = match.groups()
    if response.status_code == 416:
        return start is None and total == str(offset)
    return start == str(offset) and total in ("*", str(kept.total))


def _length(response: requests.Response) -> int | None:
    """How many bytes will come, where the server says so in a form that can be checked."""
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() and _is_plain(response) else None


def _is_plain(response: requests.Response) -> bool:
    """Whether the bytes come as they lie on the server, not compressed for the journey."""
    return response.headers.get("Content-Encoding", "identity").lower() == "identity"


def _require_space(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise StorageError(
            f"The download takes {gigabytes(needed)}, but only {gigabytes(free)} are free in {part.parent}.",
            "Make room, or give another folder with --folder.",
        )


def _notes(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_notes(part: Path, url: str) -> _Kept | None:
    try:
        kept = _Kept.model_validate_json(_notes(part).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    return kept if kept.url == _fingerprint(url) else None


def _write_notes(part: Path, url: str, response: requests.Response, total: int | None) -> None:
    """Keep what tells whether the file is still the same; a server that says nothing of it gets no second part."""
    forget(part)
    tag, date = response.headers.get("ETag", ""), response.headers.get("Last-Modified", "")
    if not _is_plain(response) or total is None:
        return
    if tag and not tag.startswith("W/"):  # a weak one may stay the same while the bytes change
        kept = _Kept(url=_fingerprint(url), header="ETag", value=tag, total=total)
    elif date:
        kept = _Kept(url=_fingerprint(url), header="Last-Modified", value=date, total=total)
    else:
        return
    write_text(_notes(part), kept.model_dump_json())


def _fingerprint(url: str) -> str:
    """Tells addresses apart without keeping what may be secret in them."""
    return hashlib.sha256(url.encode()).hexdigest()


@contextmanager
def _http_errors() -> Iterator[None]:
    """Turn what requests raises into an UnusableError; errors of the disk go through."""
    try:
        yield
    except (requests.RequestException, ValueError) as error:
        passing = isinstance(error, _PASSING) and not isinstance(error, requests.exceptions.SSLError)
        raise (_PassingError if passing else UnusableError)(_reason(error)) from error


@contextmanager
def _drive_errors() -> Iterator[None]:
    """Turn what gdown raises into an UnusableError, and keep what it prints from stdout."""
    import gdown

    try:
        with contextlib.redirect_stdout(io.StringIO()), _http_errors():
            yield
    except gdown.DownloadCancelled:
        raise UnusableError(f"it was not here after {_DRIVE_SECONDS:,.0f} s") from None
    except gdown.FileURLRetrievalError as error:  # no permission, or too many downloads on this day
        raise UnusableError(_reason(error)) from error
    except gdown.DownloadError as error:
        raise _PassingError(_reason(error)) from error
    except (UnusableError, OSError):
        raise
    except Exception as error:  # it reads pages made for browsers, which change
        raise UnusableError(f"gdown failed with {type(error).__name__}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Why, in one line; what requests wraps around the cause is left out, with the address and its query."""
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    error = getattr(error, "reason", None) or error
    text = str(error.args[0] if error.args else error)
    text = " ".join(_ADVICE.sub("", _POOL.sub("", text)).split())
    return shown(text)[:_REASON_LENGTH].rstrip(". ") or type(error).__name__
