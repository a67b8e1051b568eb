"""Messages over a line, its pace in a clock of the test's own, and what is said when the other end is gone."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynbench.devices.link import CHUNK, LARGEST, Line, PeerLost, TokenBucket, framed_bytes


class Clock:
    """Passes only while somebody sleeps; then a bit too long, as clocks do."""

    def __init__(self, late: float = 0.0) -> None:
        self.now, self.late, self.slept = 0.0, late, 0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds + self.late
        self.slept += 1


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    a, b = socket.socketpair()
    yield a, b
    a.close()
    b.close()


def test_messages_arrive_whole_and_in_order(ends: tuple[socket.socket, socket.socket]) -> None:
    here, there = Line(ends[0], 5), Line(ends[1], 5)
    sent = [b"", b"x", bytes(range(256)) * 8000]  # the last does not fit a socket's buffer

    def send_all() -> None:
        for message in sent:
            here.send(message)

    sender = threading.Thread(target=send_all)
    sender.start()
    assert [there.receive() for _ in sent] == sent
    sender.join()
    there.send(b"back")
    assert here.receive() == b"back"


@pytest.mark.parametrize("late", [0.0, 0.01])
def test_a_paced_message_takes_its_bits_however_late_a_sleeper_wakes(
    ends: tuple[socket.socket, socket.socket], late: float
) -> None:
    clock, message = Clock(late), bytes(20_000)
    line = Line(ends[0], 5, TokenBucket(100_000), clock, clock.sleep)
    reader = threading.Thread(target=Line(ends[1], 5).receive)
    reader.start()
    line.send(message)
    reader.join()
    exact = framed_bytes(len(message)) / 100_000
    assert clock.slept > 1
    assert exact <= clock.now + 1e-9 <= exact + late + 2e-9  # a late wake-up is made up for within the message


def test_a_second_message_waits_for_the_first_and_a_pause_gives_no_credit() -> None:
    bucket = TokenBucket(1000)
    assert bucket.reserve(500, 10.0) == pytest.approx(10.5)
    assert bucket.reserve(500, 10.0) == pytest.approx(11.0)
    assert bucket.reserve(100, 50.0) == pytest.approx(50.1)


def test_a_burst_passes_at_once_after_a_pause() -> None:
    bucket = TokenBucket(1000, burst_bytes=300)
    assert bucket.reserve(300, 0.0) == pytest.approx(0.0)
    assert bucket.reserve(300, 0.0) == pytest.approx(0.3)
    assert bucket.reserve(200, 100.0) == pytest.approx(99.9)  # less than the burst: at once


@given(st.floats(1, 1e6), st.floats(0, 1e4), st.lists(st.tuples(st.floats(0, 5), st.integers(1, 5000)), min_size=1))
def test_no_span_of_time_lets_more_pass_than_rate_and_burst(
    rate: float, burst: float, waits: list[tuple[float, int]]
) -> None:
    bucket, now, left = TokenBucket(rate, burst), 0.0, []
    for pause, n in waits:
        now += pause
        now = max(now, bucket.reserve(n, now))
        left.append((now, n))
    for i, (start, first) in enumerate(left):
        total = first
        for end, n in left[i + 1 :]:
            total += n
            # what is let go at `start` may be the tail of an earlier wait: it is not held against the span
            assert total - first <= (end - start) * rate + burst + 1e-3 * rate + 1e-6 * total


@pytest.mark.parametrize(("rate", "burst"), [(0, 0), (-1, 0), (1, -1), (float("nan"), 0)])
def test_a_bucket_without_a_rate_is_refused(rate: float, burst: float) -> None:
    with pytest.raises(ValueError, match="rate"):
        TokenBucket(rate, burst)


def test_small_messages_are_charged_too(ends: tuple[socket.socket, socket.socket]) -> None:
    clock = Clock()
    Line(ends[0], 5, TokenBucket(100), clock, clock.sleep).send(b"12")
    assert clock.now == pytest.approx(framed_bytes(2) / 100)
    assert framed_bytes(2) < CHUNK


def test_a_peer_that_closed_is_lost(ends: tuple[socket.socket, socket.socket]) -> None:
    ends[1].close()
    with pytest.raises(PeerLost, match="closed the connection"):
        Line(ends[0], 5).receive()


def test_a_peer_that_ends_within_a_message_is_lost(ends: tuple[socket.socket, socket.socket]) -> None:
    ends[1].sendall(struct.pack(">Q", 100) + b"only this")
    ends[1].close()
    with pytest.raises(PeerLost, match="gone"):
        Line(ends[0], 5).receive()


def test_sending_to_a_peer_that_is_gone_fails(ends: tuple[socket.socket, socket.socket]) -> None:
    ends[1].close()
    with pytest.raises(PeerLost, match="gone"):
        Line(ends[0], 5).send(bytes(10))


def test_a_silent_peer_is_lost_after_the_timeout(ends: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(PeerLost, match="silent for 0.01 s"):
        Line(ends[0], 0.01).receive()


def test_a_peer_that_accepts_nothing_is_lost(ends: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(PeerLost, match="accepted nothing for 0.01 s"):
        Line(ends[0], 0.01).send(bytes(1 << 24))


def test_an_absurd_length_is_refused_before_memory_is_allocated(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ends[1].sendall(struct.pack(">Q", LARGEST + 1))
    with pytest.raises(PeerLost, match="announces a message"):
        Line(ends[0], 5).receive()
