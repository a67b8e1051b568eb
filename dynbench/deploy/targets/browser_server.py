"""A small HTTP server for a page, some files and answers to POST, behind a random token; made for hostile guests.

It serves a fixed table of files and nothing from the disk by a name that came over the network. Whoever does not know
the token gets 404 for everything. Bodies need a length and are limited before they are read; a request must be complete
and an answer taken within a time; connections are limited.
"""

from __future__ import annotations

import hmac
import io
import json
import secrets
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from dynbench.errors import DynbenchError, UserError

TOKEN_BYTES = 18  # 144 bits
MOST_CONNECTIONS = 64
HEAD_S, BODY_S, CHUNK_S = 10.0, 120.0, 30.0  # to send a request's head, its body; to take a part of an answer
CHUNK = 1 << 18
LINGER_BYTES, LINGER_S = 1 << 20, 1.0  # of a refused body, which is read away so that the answer is not lost with it

HEADERS = {
    # Shared memory, and with it threads and a fine clock, are given to isolated pages only.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; img-src 'self' data:; "
        "media-src 'self' mediastream:; worker-src 'self' blob:; "
        "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",  # it would hold the token
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".wasm": "application/wasm",
}


class Refused(DynbenchError):
    """A body that is not what it should be; the sentence is the answer, with status 400."""


@dataclass(frozen=True)
class Take:
    """What answers a POST.

    Attributes:
        most_bytes: of a body.
        answer: is called with the body and the parameters of the address, by several threads at once; returns what is
            sent back as JSON, or raises `Refused`.
    """

    most_bytes: int
    answer: Callable[[bytes, dict[str, str]], Any]


class Server(ThreadingHTTPServer):
    """Serves until it is closed. It is a context manager.

    Args:
        host: the address to listen at; empty: all.
        port: 0: any that is free.
        files: what GET gives, by the path below the token: a file, or the content itself.
        takes: what answers POST, by the path below the token.
        most_connections: at once; others are closed unanswered.

    Raises:
        UserError: the port is in use or may not be used, or the machine has no such address.
    """

    daemon_threads = True
    block_on_close = False  # a guest that says nothing would keep it open
    request_queue_size = 128

    def __init__(
        self,
        host: str,
        port: int,
        files: Mapping[str, Path | bytes],
        takes: Mapping[str, Take],
        most_connections: int = MOST_CONNECTIONS,
    ) -> None:
        self.token = secrets.token_urlsafe(TOKEN_BYTES)
        self.files = dict(files)
        self.takes = dict(takes)
        self._free = threading.BoundedSemaphore(most_connections)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as e:
            why = getattr(e, "strerror", None) or e
            raise UserError(
                f"cannot serve at {host or 'all addresses'} port {port}: {why}; choose another `port`"
            ) from e
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.server_address[1])

    def server_bind(self) -> None:
        """Binds without asking a name server what this machine is called, which can take long."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Starts a thread for it, unless there are too many."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread was started, so none will give it back
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answers it."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing: a guest that leaves early is no error of ours."""


class _Until(socket.SocketIO):
    """Reads from a socket until a time; `socket.settimeout` alone would begin anew with each byte."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        super().__init__(connection, "r")
        self._connection = connection
        self.allow(seconds)

    def allow(self, seconds: float) -> None:
        """Begins a new span of time."""
        self._end = time.monotonic() + seconds

    def readinto(self, buffer: Any) -> int | None:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request took too long")
        self._connection.settimeout(left)
        return super().readinto(buffer)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.0"  # one request per connection

    def setup(self) -> None:
        super().setup()
        self._until = _Until(self.connection, HEAD_S)
        self.rfile = io.BufferedReader(self._until)

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:  # it left, or took too long
            self.close_connection = True

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):  # any other method
            return self._other
        raise AttributeError(name)

    def version_string(self) -> str:
        """Names no versions."""
        return "dynbench"

    def log_message(self, *_: Any) -> None:
        """Writes nothing: addresses hold the token."""

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def do_GET(self) -> None:
        found = self._below_token()
        content = None if found is None else self.server.files.get(found[0])
        if found is None or content is None:
            self._say(HTTPStatus.NOT_FOUND, "not found")
            return
        kind = TYPES.get(Path(found[0] or "page.html").suffix, "application/octet-stream")
        try:
            with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
                length = file.seek(0, io.SEEK_END)
                file.seek(0)
                self._head(HTTPStatus.OK, kind, length)
                while part := file.read(CHUNK):
                    self.connection.settimeout(CHUNK_S)
                    self.wfile.write(part)
        except FileNotFoundError:
            self._say(HTTPStatus.NOT_FOUND, "not found")

    def do_POST(self) -> None:
        found = self._below_token()
        take = None if found is None else self.server.takes.get(found[0])
        if found is None or take is None:
            self._refuse_body(HTTPStatus.NOT_FOUND, "not found")
            return
        lengths = self.headers.get_all("Content-Length", [])
        if "Transfer-Encoding" in self.headers or not lengths:
            self._refuse_body(HTTPStatus.LENGTH_REQUIRED, "a body needs a Content-Length")
        elif len(lengths) > 1 or not (lengths[0].isascii() and lengths[0].isdigit()):
            self._refuse_body(HTTPStatus.BAD_REQUEST, "this Content-Length is no number of bytes")
        elif len(lengths[0]) > 12 or int(lengths[0]) > take.most_bytes:
            self._refuse_body(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body has at most {take.most_bytes} bytes")
        else:
            self._until.allow(BODY_S)
            body = self.rfile.read(int(lengths[0]))
            if len(body) < int(lengths[0]):
                self._say(HTTPStatus.BAD_REQUEST, "the body is shorter than its Content-Length")
                return
            try:
                self._say(HTTPStatus.OK, json.dumps(take.answer(body, found[1])), "application/json")
            except Refused as e:
                self._say(HTTPStatus.BAD_REQUEST, str(e))
            except DynbenchError:  # a full disk: the page sends it again
                self._say(HTTPStatus.SERVICE_UNAVAILABLE, "this cannot be stored now")

    def _other(self) -> None:
        if self._below_token() is None:
            self._refuse_body(HTTPStatus.NOT_FOUND, "not found")
        else:
            self._refuse_body(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and POST")

    def _below_token(self) -> tuple[str, dict[str, str]] | None:
        """The path below the token, as it came, and the parameters; None: it is not the token."""
        path, _, query = self.path.partition("?")
        empty, _, rest = path.partition("/")
        token, slash, name = rest.partition("/")
        right = hmac.compare_digest(token.encode("utf-8", "replace"), self.server.token.encode())
        if not right or empty or not slash:
            return None
        try:
            return name, dict(urllib.parse.parse_qsl(query, max_num_fields=8))
        except ValueError:  # more of them
            return name, {}

    def _head(self, status: HTTPStatus, kind: str, length: int) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _say(self, status: HTTPStatus, text: str, kind: str = "text/plain; charset=utf-8") -> None:
        content = text.encode("utf-8", "replace")
        self.connection.settimeout(CHUNK_S)
        self._head(status, kind, len(content))
        if self.command != "HEAD":
            self.wfile.write(content)

    def _refuse_body(self, status: HTTPStatus, text: str) -> None:
        """Answers without having read the body; a part of it is read away, or the answer would be lost."""
        self._say(status, text)
        self.connection.shutdown(socket.SHUT_WR)
        self._until.allow(LINGER_S)
        left = LINGER_BYTES
        while left > 0 and (part := self.rfile.read1(min(left, CHUNK))):
            left -= len(part)
