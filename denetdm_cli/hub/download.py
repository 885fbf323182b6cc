"""Transfers of one file from an http(s) address or a Google Drive folder. gdown downloads, resumes and retries.

What gdown 6.5 does not do is added here: it retries neither a folder listing nor an HTTP status such as 503, has no
limit of size, and joins a part kept by an earlier process to whatever the address holds now.
"""

import hashlib
import re
import shutil
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit, urlunsplit

from denetdm_cli.data.raw.sources import UnusableError
from denetdm_cli.utils.errors import StorageError
from denetdm_cli.utils.files import PART, naming
from denetdm_cli.utils.log import shown
from denetdm_cli.utils.progress import Reporter
from denetdm_cli.utils.text import gigabytes

T = TypeVar("T")

PAUSES = (1.0, 2.0, 4.0)
"""Seconds before each retry of what gdown does not retry."""

_RETRIES = 3
_TIMEOUTS = (10.0, 30.0)
"""Seconds without a connection, and without a byte."""
_SECONDS_BETWEEN_LINES = 10.0
_REASON_LENGTH = 400
_TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_POOL = re.compile(r"^HTTPS?Connection(Pool)?\(.*?\): ")
_ADVICE = re.compile(r"(You may still be able to access|The received bytes are kept in|Check FAQ in) .*", re.DOTALL)
"""The part of gdown's messages that advises other ways than those of this program."""


class _TransientError(UnusableError):
    """A failure that a retry may mend."""


class _TooLargeError(UnusableError):
    """A file beyond the limit of size."""


class Transfer:
    """The download of one file to one path, with progress and a limit of size.

    A transfer that fails leaves its bytes in a file beside the path, and the next transfer to the same path resumes
    from them.

    Args:
        output: the file to write. It must belong to one address (see `address_key`).
        limit: the maximum size in bytes.
        what: the label of the progress.
        reporter: receives progress and retries.
    """

    def __init__(self, output: Path, *, limit: int, what: str, reporter: Reporter) -> None:
        self.output = output
        self._limit = limit
        self._what = what
        self._reporter = reporter
        self._last_line = time.monotonic()

    def from_url(self, url: str) -> None:
        """Download an http(s) address, which may redirect.

        Raises:
            UnusableError: the download failed after all retries; the message is the reason.
            StorageError: the disk has too little space.
        """
        self._retried(lambda: self._download(url))

    def from_drive(self, folder_id: str, choose: Callable[[Sequence[str]], str]) -> str:
        """Download one file of a public Google Drive folder.

        Args:
            folder_id: the last part of the folder's address.
            choose: selects one of the paths of all files in the folder, or raises `UnusableError`.
        Returns:
            The selected path.
        Raises:
            UnusableError: the download failed after all retries; the message is the reason.
            StorageError: the disk has too little space.
        """

        def list_folder() -> dict[str, str]:
            import gdown  # slow to import

            with _errors_named(_TransientError):
                listed = gdown.download_folder(
                    id=folder_id, quiet=True, use_cookies=False, skip_download=True, timeout=_TIMEOUTS
                )
            return {file.path.replace("\\", "/"): file.id for file in listed if not isinstance(file, str)}

        ids = self._retried(list_folder)
        path = choose(sorted(ids))
        self._retried(lambda: self._download(f"https://drive.google.com/uc?id={ids[path]}"))
        return path

    def kept_part(self) -> Path | None:
        """The file with the bytes of a failed transfer, if there is one."""
        parts = self.output.parent.glob(f"{self.output.name}????????{PART}")  # as gdown names it
        return next((part for part in parts if part.stat().st_size), None)

    def discard(self) -> None:
        """Remove the downloaded file and the part of a failed transfer."""
        for path in self.output.parent.glob(f"{self.output.name}*"):
            path.unlink()

    def _download(self, url: str) -> None:
        import gdown

        resumed = self.kept_part() is not None
        try:
            with _errors_named(UnusableError), naming(self.output):
                gdown.download(
                    url,
                    str(self.output),
                    quiet=True,
                    use_cookies=False,
                    resume=True,
                    retries=_RETRIES,
                    timeout=_TIMEOUTS,
                    progress=self._progress,
                )
        except _TooLargeError:
            self.discard()
            raise
        except UnusableError as error:
            if "byte range" not in str(error):
                raise
            self.discard()  # the file changed, or the server cannot resume
            raise _TransientError("the server did not continue the broken transfer") from error
        if resumed and not _has_valid_checksums(self.output, self._limit):
            self.discard()
            raise _TransientError("the kept bytes and the new ones are not of one file")

    def _progress(self, done: int, total: int | None) -> None:
        if max(done, total or 0) > self._limit:
            raise _TooLargeError(f"it has more than {gigabytes(self._limit)}, which is too much for a model")
        if total is None:
            if time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
                self._last_line = time.monotonic()
                self._reporter.info(f"{self._what}: {done // 1000:,} kB so far; the server does not say how many")
            return
        free = shutil.disk_usage(self.output.parent).free
        if total - done > free:
            raise StorageError(
                f"The download takes {gigabytes(total - done)}, but only {gigabytes(free)} are free in "
                f"{self.output.parent}.",
                "Make room, or give another folder with --folder.",
            )
        kilobytes = -(-total // 1000)
        self._reporter.advance(f"{self._what}, kB", kilobytes if done >= total else done // 1000, kilobytes)

    def _retried(self, attempt: Callable[[], T]) -> T:
        for pause in PAUSES:
            try:
                return attempt()
            except _TransientError as error:
                self._reporter.info(f"{error}; retrying in {pause:g} s")
                time.sleep(pause)
        return attempt()


def shown_address(url: str) -> str:
    """An address without the parts that may be secret: user, password, query and fragment."""
    parts = urlsplit(url)
    return shown(urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "")))


def address_key(url: str) -> str:
    """Eight characters that tell addresses apart and reveal nothing of them."""
    return hashlib.sha256(url.encode()).hexdigest()[:8]


def _has_valid_checksums(path: Path, limit: int) -> bool:
    """Whether a file is a zip, as PyTorch writes them, whose members all have their CRC-32."""
    try:
        with zipfile.ZipFile(path) as archive:
            return sum(info.file_size for info in archive.infolist()) <= limit and archive.testzip() is None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError):
        return False


@contextmanager
def _errors_named(transient: type[UnusableError]) -> Iterator[None]:
    """Turn the errors of gdown and requests into an UnusableError; errors of the disk pass unchanged.

    Args:
        transient: the class for network failures that gdown has not retried itself.
    """
    import gdown

    try:
        yield
    except gdown.FileURLRetrievalError as error:  # no permission, or the quota of downloads is used up
        raise UnusableError(_reason(error)) from error
    except gdown.DownloadError as error:
        raise transient(_reason(error)) from error
    except (UnusableError, StorageError):
        raise
    except Exception as error:  # gdown parses pages made for browsers, which change
        response = getattr(error, "response", None)
        if response is not None and response.status_code >= 400:
            kind = _TransientError if response.status_code in _TRANSIENT_STATUS else UnusableError
            raise kind(f"the server answers {response.status_code} {shown(response.reason or '')}".rstrip()) from error
        if isinstance(error, OSError):  # the exceptions of requests are OSErrors without a number
            if error.errno is not None:
                raise
            raise transient(_reason(error)) from error
        raise UnusableError(f"gdown failed with {type(error).__name__}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """The innermost cause of a network error in one line, without the address and its query."""
    error = error.__cause__ or error
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    error = getattr(error, "reason", None) or error
    text = str(error.args[0] if error.args else error)
    text = " ".join(_ADVICE.sub("", _POOL.sub("", text)).split())
    return shown(text)[:_REASON_LENGTH].rstrip(". ") or type(error).__name__
