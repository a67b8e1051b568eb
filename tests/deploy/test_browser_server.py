"""The server of the page, and what a hostile guest can do: nothing, and learn nothing."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dynbench.deploy.targets import browser_server
from dynbench.deploy.targets.browser_server import Refused, Server, Take
from dynbench.errors import UserError

MIB = 1 << 20


def taken(body: bytes, parameters: dict[str, str]) -> Any:
    if body == b"bad":
        raise Refused("this is bad")
    if body == b"full":
        raise UserError("cannot write to /somewhere: No space left on device")
    return {"bytes": len(body), **parameters}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "graph").write_bytes(b"g" * (3 << 18))
    files = {"": b"<!doctype html>", "a.js": b"1", "a.mjs": b"1", "a.wasm": b"1", "jobs/x/g.onnx": tmp_path / "graph"}
    with Server("127.0.0.1", 0, files, {"result": Take(8 * MIB, taken)}) as server:
        yield server


def ask(server: Server, path: str, method: str = "GET", body: bytes | None = None) -> tuple[int, bytes, dict[str, str]]:
    """The status, content and headers of an answer; `path` is below the token."""
    return ask_any(server, f"/{server.token}/{path}", method, body)


def ask_any(server: Server, path: str, method: str, body: bytes | None) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    with contextlib.closing(connection):
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read(), dict(answer.getheaders())


def say(server: Server, text: str | bytes) -> bytes:
    """Sends these bytes, and returns all that comes back until the other side ends it."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as wire:
        wire.sendall(text.encode() if isinstance(text, str) else text)
        parts = []
        with contextlib.suppress(ConnectionResetError):
            while part := wire.recv(1 << 16):
                parts.append(part)
        return b"".join(parts)


def status(answer: bytes) -> int:
    return int(answer.split()[1])


def test_files_of_the_table_are_given_with_their_types(server: Server) -> None:
    kinds = {
        "": "text/html",
        "a.js": "text/javascript",
        "a.mjs": "text/javascript",
        "a.wasm": "application/wasm",
        "jobs/x/g.onnx": "application/octet-stream",
    }
    for name, kind in kinds.items():
        code, _, headers = ask(server, name)
        assert code == 200 and headers["Content-Type"].startswith(kind), name
    assert ask(server, "jobs/x/g.onnx")[1] == b"g" * (3 << 18)
    assert ask(server, "?autostart=1")[0] == 200


def test_every_answer_isolates_the_page_and_keeps_it_from_other_hosts(server: Server) -> None:
    for answer in (ask(server, ""), ask(server, "nothing"), ask(server, "result", "POST", b"bad")):
        headers = answer[2]
        assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        assert headers["Cache-Control"] == "no-store" and headers["Referrer-Policy"] == "no-referrer"
        policy = headers["Content-Security-Policy"]
        assert "default-src 'self'" in policy and "'wasm-unsafe-eval'" in policy
        assert "unsafe-inline" not in policy and "http" not in policy and "*" not in policy
        assert headers["Server"] == "dynbench"


def test_the_token_is_long_random_and_needed_for_everything(server: Server) -> None:
    with Server("127.0.0.1", 0, {}, {}) as other:
        assert other.token != server.token
    assert len(server.token) * 6 >= 128
    wrong = ["/", "//", "/x/", f"/{server.token}", f"/{server.token[:-1]}/", f"/{server.token}x/", "/favicon.ico"]
    wrong += [f"/x/{server.token}/", f"/{server.token.swapcase()}/", "/%00/", "/\xff/"]
    for method in ("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "BREW"):
        for path in wrong:
            raw = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode("latin-1")
            answer = say(server, raw)
            assert status(answer) == 404, (method, path)
            assert server.token.encode() not in answer


def test_another_method_is_refused(server: Server) -> None:
    for method in ("HEAD", "PUT", "DELETE", "OPTIONS"):
        assert ask(server, "", method)[0] == 405


@pytest.mark.parametrize(
    "path",
    [
        "../../etc/passwd",
        "jobs/x/../x/g.onnx",
        "jobs/x/%2e%2e/x/g.onnx",
        "..%2f..%2fetc%2fpasswd",
        "/etc/passwd",
        "jobs//x/g.onnx",
        "jobs/x/",
        "jobs/x/g.onnx/",
        "jobs\\x\\g.onnx",
        "a.js%00",
        "A.JS",
        "file:///etc/passwd",
    ],
)
def test_nothing_is_given_by_a_name_that_is_not_in_the_table(server: Server, path: str) -> None:
    code, content, _ = ask(server, path)
    assert (code, content) == (404, b"not found")


def test_a_file_that_vanished_is_not_found(server: Server, tmp_path: Path) -> None:
    (tmp_path / "graph").unlink()
    assert ask(server, "jobs/x/g.onnx")[0] == 404


def test_a_body_is_taken_and_answered(server: Server) -> None:
    code, content, headers = ask(server, "result?client=c&n=1", "POST", b"x" * MIB)
    assert code == 200 and headers["Content-Type"] == "application/json"
    assert json.loads(content) == {"bytes": MIB, "client": "c", "n": "1"}


def test_what_a_taker_refuses_is_400_and_what_it_cannot_store_now_503(server: Server) -> None:
    assert ask(server, "result", "POST", b"bad")[:2] == (400, b"this is bad")
    code, content, _ = ask(server, "result", "POST", b"full")
    assert code == 503 and b"/somewhere" not in content


def test_a_body_nobody_takes_is_not_found(server: Server) -> None:
    assert ask(server, "a.js", "POST", b"1")[0] == 404
    assert ask(server, "result", "GET")[0] == 404


@pytest.mark.parametrize(
    ("head", "code"),
    [
        ("Content-Length: 104857600", 413),  # 100 MB, announced and never sent
        ("Content-Length: 99999999999999999999999999", 413),
        ("Content-Length: 8388609", 413),
        ("Transfer-Encoding: chunked", 411),
        ("Transfer-Encoding: chunked\r\nContent-Length: 3", 411),
        ("X: y", 411),
        ("Content-Length: -1", 400),
        ("Content-Length: 0x10", 400),
        ("Content-Length: ٣", 400),
        ("Content-Length: 3\r\nContent-Length: 4", 400),
    ],
)
def test_a_body_is_refused_by_what_it_announces(server: Server, head: str, code: int) -> None:
    assert status(say(server, f"POST /{server.token}/result HTTP/1.1\r\n{head}\r\n\r\nabc")) == code


def test_100_mb_that_are_really_sent_are_refused_before_they_are_read(server: Server) -> None:
    head = f"POST /{server.token}/result HTTP/1.1\r\nContent-Length: {100 * MIB}\r\n\r\n".encode()
    sent = 0
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as wire:
        wire.sendall(head)
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                sent += wire.send(b"x" * MIB)
    assert sent < 50 * MIB  # what fits into buffers, and what is read away
    assert ask(server, "")[0] == 200


def test_a_chunked_body_that_is_really_sent_is_refused(server: Server) -> None:
    chunk = b"100000\r\n" + b"x" * MIB + b"\r\n"
    head = f"POST /{server.token}/result HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    assert status(say(server, head + chunk)) == 411


def test_a_body_that_ends_early_is_refused(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as wire:
        wire.sendall(f"POST /{server.token}/result HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc".encode())
        wire.shutdown(socket.SHUT_WR)
        assert status(wire.recv(1 << 16)) == 400


@pytest.mark.parametrize(
    "head", ["", "GET", "GET /x HTTP/9.9\r\n\r\n", "\r\n\r\n", "GET / HTTP/1.1\r\n" + "a: b\r\n" * 200]
)
def test_what_is_no_request_ends_the_connection_and_nothing_else(server: Server, head: str) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as wire:
        wire.sendall(head.encode())
        wire.shutdown(socket.SHUT_WR)
        while part := wire.recv(1 << 16):
            assert server.token.encode() not in part
    assert ask(server, "")[0] == 200


def test_a_request_that_trickles_in_is_cut_off(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browser_server, "HEAD_S", 0.3)
    address = ("127.0.0.1", server.port)
    with socket.create_connection(address, timeout=20) as wire, contextlib.suppress(ConnectionError):
        for _ in range(200):  # 10 s, each byte long before a time-out of its own
            wire.sendall(b"G")
            time.sleep(0.05)
        pytest.fail("it was listened to until the end")
    assert ask(server, "")[0] == 200


def test_a_body_that_trickles_in_is_cut_off(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browser_server, "BODY_S", 0.3)
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as wire:
        wire.sendall(f"POST /{server.token}/result HTTP/1.1\r\nContent-Length: 1000\r\n\r\n".encode())
        with contextlib.suppress(ConnectionError):
            for _ in range(200):
                wire.sendall(b"x")
                time.sleep(0.05)
            pytest.fail("it was listened to until the end")


def test_connections_are_limited_and_come_free_again() -> None:
    with Server("127.0.0.1", 0, {"": b"page"}, {}, most_connections=2) as server:
        idle = [socket.create_connection(("127.0.0.1", server.port), timeout=20) for _ in range(2)]
        while server._free.acquire(blocking=False):  # until both have their threads
            server._free.release()
            time.sleep(0.01)
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as third:
            assert third.recv(100) == b""
        for wire in idle:
            wire.close()
        for _ in range(500):
            with contextlib.suppress(ConnectionError, http.client.BadStatusLine):
                assert ask(server, "")[0] == 200
                return
            time.sleep(0.01)
        pytest.fail("no connection came free")


def test_a_port_that_is_used_is_one_sentence(server: Server) -> None:
    with pytest.raises(UserError, match=rf"cannot serve at 127\.0\.0\.1 port {server.port}: .* choose another `port`"):
        Server("127.0.0.1", server.port, {}, {})
    with pytest.raises(UserError, match="choose another `port`"):
        Server("192.0.2.77", 0, {}, {})
