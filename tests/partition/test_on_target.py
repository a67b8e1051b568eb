"""A network cut between an agent and this machine: the same answers at every cut, and what cannot be is said."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from dynbench.cli import main
from dynbench.deploy.agents.python_split import packed, unpacked
from dynbench.deploy.targets.profile import DeviceProfile
from dynbench.devices.link import Line
from dynbench.devices.network import Network
from dynbench.errors import UserError
from dynbench.partition.cut_server import CutServer
from dynbench.partition.half import Half
from dynbench.partition.on_target import Where, candidates, on_target
from dynbench.partition.parts import Cut, cut_at
from dynbench.partition.records import Settings
from dynbench.partition.target_words import target_caveats, target_rows, target_sentences
from tests.partition.test_split import CINET

HERE = DeviceProfile.model_validate({"title": "This machine", "target": {"kind": "local"}})
QUICK = Settings(network=Network("none", 0.0), rounds=1, requests=4)
ITEMS = 3


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(ITEMS, 1, 24, 24, generator=torch.Generator().manual_seed(3)).clamp(-3, 3)


@pytest.fixture(scope="module")
def cuts(x: Tensor) -> list[Cut]:
    half = Half(CINET)
    return [cut_at(half, after, x) for after in candidates([c.bytes for c in half.chain.crossings])]


def ask(server: CutServer, secret: str, **head: object) -> dict[str, object]:
    """What it answers to the tensors of an item, which are those of the cut's first part."""
    (parts,) = [c.arriving for c in server._cuts.values() if c.name == head["arm"]]
    line = Line(socket.create_connection(("127.0.0.1", server.port)), 10.0)
    try:
        line.send(secret.encode())
        item = int(str(head["item"]))
        line.send(packed(dict(head), [p[item : item + 1] for p in parts]))
        told, arrays = unpacked(np, line.receive())
        return {**told, "arrays": arrays}
    finally:
        line.close()


def test_cuts_that_send_no_less_than_an_earlier_one_are_no_candidates() -> None:
    assert candidates([100, 400, 90, 90, 200, 10, 4]) == [0, 2, 5, 6]
    assert candidates([4, 40]) == [0, 1]


def test_a_message_is_read_as_it_was_packed_and_nothing_else_is() -> None:
    arrays = [np.arange(6, dtype=np.float32).reshape(1, 6), np.array([[1]], np.uint8), np.zeros((1, 0), np.int64)]
    head, found = unpacked(np, packed({"do": "cut"}, arrays))
    assert head["do"] == "cut" and all(
        np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(arrays, found, strict=True)
    )
    for bad in (b"", b"\0\0\0\2{}", packed({}, arrays)[:-9], packed({}, arrays) + b"1", packed({}, [])[:-1]):
        with pytest.raises(ValueError):
            unpacked(np, bad)
    objects = packed({}, arrays).replace(b"<f4", b"|O4")
    with pytest.raises(ValueError, match="arrays of object|no message"):
        unpacked(np, objects)


def test_the_second_part_answers_as_the_network_in_torch_and_another_answer_is_counted(cuts: list[Cut]) -> None:
    with CutServer(cuts) as server:
        for cut in cuts[:-1]:
            for item in range(ITEMS):
                told = ask(server, server.secret, do="cut", arm=cut.name, item=item)
                assert "error" not in told
        assert (server.answered, server.wrong) == (ITEMS * len(cuts[:-1]), 0)
        first = cuts[0]
        moved = ask(server, server.secret, do="transfer", arm=first.name, item=0)
        (blank,) = moved["arrays"]  # type: ignore[misc]
        assert blank.shape == first.answers[0][:1].shape and server.answered == ITEMS * len(cuts[:-1])  # type: ignore[has-type]
        right = first.answers[0].copy()
        first.answers[0] = right + 1
        try:
            ask(server, server.secret, do="cut", arm=first.name, item=0)
        finally:
            first.answers[0] = right
        assert server.wrong == 1
        assert "KeyError" in str(ask(server, server.secret, do="cut", arm=first.name, item=0) and _error(server))


def _error(server: CutServer) -> str:
    """What it says of a cut that it does not know; it goes on after that."""
    line = Line(socket.create_connection(("127.0.0.1", server.port)), 10.0)
    try:
        line.send(server.secret.encode())
        line.send(packed({"do": "cut", "arm": "nowhere", "item": 0}, []))
        told, _ = unpacked(np, line.receive())
        return str(told["error"])
    finally:
        line.close()


def test_who_does_not_know_the_secret_gets_nothing(cuts: list[Cut]) -> None:
    from dynbench.devices.link import PeerLost

    with CutServer(cuts) as server:
        with pytest.raises(PeerLost):
            ask(server, "0" * 32, do="cut", arm=cuts[0].name, item=0)
        stranger = socket.create_connection(("127.0.0.1", server.port))
        stranger.sendall(b"\xff" * 40)  # a message of 2^64 bytes
        assert stranger.recv(1) == b""
        stranger.close()
        assert server.answered == 0
        assert "error" not in ask(server, server.secret, do="cut", arm=cuts[0].name, item=0)  # the next one may come


def test_every_candidate_is_predicted_and_measured_on_an_agent(x: Tensor) -> None:
    said: list[str] = []
    where = Where("this machine", HERE)
    found = on_target(CINET, "CiNet in small", x, where, QUICK, said.append)
    assert len(found.cuts) > 2 and not found.left_out and any("measuring" in s for s in said)
    assert [c.where for c in found.cuts][0] == "all in the cloud" and found.cuts[-1].where == "all on the device"
    assert found.answered == (QUICK.requests + 2) * (len(found.cuts) - 1) and found.wrong == 0
    for cut in found.cuts:
        assert cut.predicted_ms == pytest.approx(cut.device_ms + cut.transfer_ms + cut.cloud_ms) and cut.device_ms > 0
        assert cut.measured_ms.low <= cut.measured_ms.value <= cut.measured_ms.high
    whole = found.cuts[-1]
    assert whole.sent_bytes == 0 and whole.transfer_ms == whole.cloud_ms == 0
    sent = [c.sent_bytes for c in found.cuts]
    assert sent == sorted(set(sent), reverse=True)
    assert json.loads(json.dumps(found.as_json()))["best_predicted_after"] == found.predicted.after
    assert len(target_rows(found)) == len(found.cuts)
    words = " ".join(target_sentences(found) + target_caveats(where, 4))
    assert f"{found.answered} of {found.answered} answers" in words and "loopback" in words


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ({"kind": "browser"}, "is reached by browser"),
        ({"kind": "adb"}, "is reached by adb"),
        ({"kind": "local", "agent": "native"}, "sends no tensors"),
    ],
)
def test_devices_that_cannot_send_are_refused(target: dict[str, str], why: str) -> None:
    with pytest.raises(UserError, match=why):
        Where("phone", DeviceProfile.model_validate({"title": "A phone", "target": target}))


def test_a_port_in_use_is_one_sentence(cuts: list[Cut]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy, pytest.raises(UserError, match="cannot listen at"):
        CutServer(cuts, port=int(busy.getsockname()[1]))


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["--target", "this-machine", "--network", "lte"], "--network does not go with --target"),
        (["--target", "this-machine", "--slower", "3"], "--slower does not go with --target"),
        (["--target", "this-machin"], "this-machine"),
        (["--target", "browser"], "is reached by browser"),
        (["--target", "this-machine", "--cloud-address", "a:99999"], "port up to 65535"),
        (["--cloud-address", "desk"], "give --target, too"),
    ],
)
def test_the_command_refuses_what_does_not_go_together(more: list[str], why: str, tmp_path: Path) -> None:
    found = CliRunner().invoke(main, ["partition", "cinet_digits60", *more])
    assert found.exit_code == 2 and why in found.output + str(found.exception)
