"""Google Drive as gdown reads it, on this machine: the page of a folder, the page before a large file, the file."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import parse_qsl, urlsplit

import pytest
import requests
from loopback import Request, Site, serving

from denetdm_cli.hub.published import DRIVE_ID

TOO_MANY = "Too many users have viewed or downloaded this file recently. Please try accessing the file again later."
_SEND = requests.Session.send


class GoogleDrive:
    """A public folder with files by path, and what its pages say.

    Attributes:
        files: below the folder.
        listing: makes the page of a folder of its name and its links.
        asking: makes the page that is shown before a file, of the address that the file then comes from.
        headers: of the file, besides its length.
    """

    def __init__(self, folder_id: str, site: Site, files: dict[str, bytes]) -> None:
        self.site, self.files, self._folder_id = site, files, folder_id
        self.listing: Callable[[str, str], str] = "<html><title>{0}</title><body>{1}</body></html>".format
        self.asking: Callable[[str], str] = _virus_warning
        self.headers = {"Content-Type": "application/x-zip", "Content-Disposition": 'attachment; filename="a b.th"'}
        site.usual = self._answer

    def send(self, session: requests.Session, request: requests.PreparedRequest, **options: object) -> object:
        """In place of `requests.Session.send`: what goes to Google goes to this machine."""
        address = urlsplit(str(request.url))
        if str(address.hostname).endswith(".google.com"):
            request.url = f"{self.site.address}/{address.hostname}{address.path}?{address.query}"
        return _SEND(session, request, **{**options, "proxies": {}})

    def asked(self, page: str) -> int:
        """How often a page was asked for."""
        return sum(urlsplit(request["path"]).path.endswith(f"/{page}") for request in self.site.asked)

    def _answer(self, request: Request) -> None:
        address = urlsplit(request.path)
        wanted = dict(parse_qsl(address.query))["id"]
        if address.path == "/drive.google.com/embeddedfolderview":
            self._give(request, self.listing(*self._folder(wanted)).encode(), {"Content-Type": "text/html"})
        elif address.path == "/drive.google.com/uc":
            page = self.asking(f"https://drive.usercontent.google.com/download?id={wanted}")
            self._give(request, page.encode(), {"Content-Type": "text/html; charset=utf-8"})
        else:
            self._give(request, next(self.files[path] for path in self.files if _id(path) == wanted), self.headers)

    def _give(self, request: Request, content: bytes, headers: dict[str, str]) -> None:
        request.start(200, {"Content-Length": len(content), **headers})
        request.wfile.write(content)

    def _folder(self, folder_id: str) -> tuple[str, str]:
        """The name of a folder, and links to what is in it."""
        folders = {""} | {path[:at] for path in self.files for at, letter in enumerate(path) if letter == "/"}
        (folder,) = [path for path in folders if (_id(path) if path else self._folder_id) == folder_id]
        links = {f"https://drive.google.com/drive/folders/{_id(path)}": path for path in folders - {""}}
        links |= {f"https://drive.google.com/file/d/{_id(path)}/view?usp=drive_web": path for path in self.files}
        within = {link: path for link, path in links.items() if path.rpartition("/")[0] == folder}
        shown = (f'<a href="{link}"><div>{path.rpartition("/")[2]}</div></a>' for link, path in within.items())
        return folder.rpartition("/")[2] or "DeNetDM", "".join(shown)


@contextmanager
def drive_serving(files: dict[str, bytes]) -> Iterator[GoogleDrive]:
    """The authors' folder with these files, for all that this process asks of Google."""
    with serving() as site, pytest.MonkeyPatch.context() as patch:
        drive = GoogleDrive(DRIVE_ID, site, files)
        patch.setattr(requests.Session, "send", lambda session, request, **more: drive.send(session, request, **more))
        yield drive


def _id(path: str) -> str:
    return hashlib.sha256(path.encode()).hexdigest()[:33]


def _virus_warning(address: str) -> str:
    action, _, wanted = address.partition("?id=")
    hidden = "".join(f'<input type="hidden" name="{k}" value="{v}">' for k, v in {"id": wanted, "confirm": "t"}.items())
    return (
        f'<html><p class="uc-warning-caption">Too large to scan</p><form id="download-form" action="{action}">{hidden}'
    )


def too_many(_: str) -> str:
    """The page before a file whose quota is used up."""
    return f'<html><p class="uc-error-caption">Sorry</p><p class="uc-error-subcaption">{TOO_MANY}</p></html>'
