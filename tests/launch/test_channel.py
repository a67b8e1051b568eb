"""Messages over descriptors."""

from __future__ import annotations

import json
import os
import socket
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynbench.launch.channel import Channel

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(messages=st.lists(st.dictionaries(st.text(), VALUES, max_size=3), max_size=5), cuts=st.lists(st.integers(1, 40)))
def test_messages_arrive_whole_however_they_are_cut(messages: list[dict[str, Any]], cuts: list[int]) -> None:
    data = b"".join(json.dumps(m).encode() + b"\n" for m in messages)
    here, there = socket.socketpair()
    with here, there:
        channel = Channel(there.fileno(), there.fileno())
        received = []
        for size in [*cuts, len(data) or 1]:
            here.sendall(data[:size])
            data = data[size:]
            while True:
                try:
                    received.append(channel.receive(0.0))
                except TimeoutError:
                    break
        assert received == messages


def test_a_message_larger_than_a_pipe_is_sent_whole() -> None:
    read_fd, write_fd = os.pipe()
    message = {"text": "x" * 1_000_000}
    sender = threading.Thread(target=Channel(read_fd, write_fd).send, args=(message,))
    sender.start()
    assert Channel(read_fd, write_fd).receive(10) == message
    sender.join()
    os.close(write_fd)
    channel = Channel(read_fd, write_fd)
    with pytest.raises(EOFError):
        channel.receive(10)
    assert list(channel) == []
    os.close(read_fd)
