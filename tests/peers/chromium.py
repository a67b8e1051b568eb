"""A real browser, driven over a pipe by its DevTools protocol, and a wire to the server that can be cut."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

PROGRAM = next((b for b in ("chromium", "chromium-browser", "google-chrome") if shutil.which(b)), None)
QUIET = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
]
PATIENCE_S = 240.0  # a machine that runs other tests beside is slow


class Chromium:
    """A browser with one page.

    Args:
        link: what it opens.
        profile: a folder of its own.
        more: arguments.
    """

    def __init__(self, link: str, profile: Path, *more: str) -> None:
        assert PROGRAM is not None
        to_it, self._write = os.pipe()
        self._read, from_it = os.pipe()
        shell = f'exec 3<&{to_it} 4>&{from_it}; exec "$@"'
        command = ["bash", "-c", shell, "bash", PROGRAM, *QUIET, f"--user-data-dir={profile}", *more, "about:blank"]
        self._process = subprocess.Popen(
            command,
            pass_fds=(to_it, from_it),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(to_it)
        os.close(from_it)
        self._ids = itertools.count(1)
        self._buffer = b""
        self._session: str | None = None
        pages = [t for t in self._call("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        attached = self._call("Target.attachToTarget", targetId=pages[0]["targetId"], flatten=True)
        self._session = attached["sessionId"]
        self._call("Page.navigate", url=link)

    def reload(self) -> None:
        """As a user does."""
        self._call("Page.reload")

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def screenshot(self) -> bytes:
        """The page as PNG."""
        import base64

        return base64.b64decode(self._call("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def kill(self) -> None:
        """Ends it and all its processes at once, as a crash would."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for end in (self._read, self._write):
            with contextlib.suppress(OSError):
                os.close(end)

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._ids)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + PATIENCE_S
        while True:
            said, found, rest = self._buffer.partition(b"\0")
            if not found:
                ready, _, _ = select.select([self._read], [], [], max(0.0, end - time.monotonic()))
                part = os.read(self._read, 1 << 16) if ready else b""
                assert part, f"the browser does not answer {method}"
                self._buffer += part
                continue
            self._buffer = rest
            answer = json.loads(said)
            if answer.get("id") == number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result


class Wire:
    """Passes connections on to a port, until it is cut: then it ends those there are and takes no others."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._open: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self.port = 0
        self.mend()

    def cut(self) -> None:
        """Ends all connections; new ones are refused."""
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        for end in list(self._open):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """Takes connections (again)."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", self._to))
                self._open |= {near, far}
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while part := one.recv(1 << 16):
                other.sendall(part)
        with contextlib.suppress(OSError):
            other.shutdown(socket.SHUT_WR)
        self._open.discard(one)
