"""Stand-ins for the network: a web server on this machine, and a reporter that keeps what it receives."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[["Request"], None]


class Request(BaseHTTPRequestHandler):
    """One request, and the ways to answer it."""

    protocol_version = "HTTP/1.1"
    server: "_Server"

    def do_GET(self) -> None:
        site = self.server.site
        site.asked.append({"path": self.path, **dict(self.headers.items())})
        self.close_connection = True
        (site.answers.pop(0) if site.answers else site.usual)(self)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def start(self, status: int, headers: dict[str, object]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Connection": "close"}.items():
            self.send_header(name, str(value))
        self.end_headers()


class Site:
    """What the server has, what it was asked, its answers to the next requests, and the usual one to all others."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.content = bytes(range(256)) * 1000
        self.tag = '"1"'
        self.answers: list[Answer] = []
        self.usual: Answer = whole
        self.asked: list[dict[str, str]] = []


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    site: Site

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # the other side hung up, as tests do


@contextmanager
def serving() -> Iterator[Site]:
    server = _Server(("127.0.0.1", 0), Request)
    server.site = Site(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server.site
    finally:
        server.shutdown()
        server.server_close()


def whole(request: Request) -> None:
    """All of it, or the part asked for, as good servers do."""
    site = request.server.site
    content, total = site.content, len(site.content)
    wanted = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
    headers: dict[str, object] = {"ETag": site.tag} if site.tag else {}
    if wanted is None or request.headers.get("If-Range", site.tag) != site.tag:
        request.start(200, {**headers, "Content-Length": total})
    elif int(wanted[1]) >= total:
        request.start(416, {**headers, "Content-Range": f"bytes */{total}", "Content-Length": 0})
        return
    else:
        content = content[int(wanted[1]) :]
        place = f"bytes {wanted[1]}-{total - 1}/{total}"
        request.start(206, {**headers, "Content-Range": place, "Content-Length": len(content)})
    request.wfile.write(content)


def cut(count: int, **headers: object) -> Answer:
    """Promise all of it, and hang up after some bytes."""

    def answer(request: Request) -> None:
        site = request.server.site
        tag = {"ETag": site.tag} if site.tag else {}
        request.start(200, {**tag, "Content-Length": len(site.content), **headers})
        request.wfile.write(site.content[:count])

    return answer


def status(code: int, content: bytes = b"", **headers: object) -> Answer:
    def answer(request: Request) -> None:
        request.start(code, {"Content-Length": len(content), **headers})
        request.wfile.write(content)

    return answer


def without_length(request: Request) -> None:
    request.start(200, {})
    request.wfile.write(request.server.site.content)


def endless(request: Request) -> None:
    request.start(200, {})
    while True:
        request.wfile.write(bytes(1 << 16))


def silent(count: int, seconds: float, **headers: object) -> Answer:
    """Some bytes, and then nothing for a while."""

    def answer(request: Request) -> None:
        cut(count, **headers)(request)
        request.wfile.flush()
        time.sleep(seconds)

    return answer


def dropped(request: Request) -> None:
    """No answer at all."""


class Heard:
    def __init__(self) -> None:
        self.said: list[str] = []
        self.advanced: list[tuple[str, int, int]] = []

    def info(self, line: str) -> None:
        self.said.append(line)

    def warn(self, warning: str) -> None:
        self.said.extend(warning.splitlines())

    def advance(self, what: str, done: int, total: int) -> None:
        self.advanced.append((what, done, total))
