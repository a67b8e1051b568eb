"""Placements measured from end to end, with a second process as the cloud."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from dynbench import devices
from dynbench.data.pixels import jpeg
from dynbench.partition.half import Half
from dynbench.partition.records import EndToEnd, Placement, Settings
from dynbench.partition.remote import Cloud

WARM_UP = 2  # requests of each placement that are not timed


def measured(half: Half, placements: list[Placement], best: int, inputs: Tensor, settings: Settings) -> list[Placement]:
    """The placements, those that a reader compares with their times from end to end.

    Every placement is asked once per round trip, one after the other.

    Args:
        half: computes the device's layers.
        placements: all.
        best: layers on the device of the best cut.
        inputs: [items, ...], on the device.
        settings: network and number of requests among them.
    """
    compared = [i for i, p in enumerate(placements) if p.after is None or p.after in _cuts(half, placements, best)]
    trips_ms = settings.network.round_trips_ms(settings.requests, settings.seed)
    spent_ms: dict[int, list[float]] = {i: [] for i in compared}
    clock = devices.device(settings.device)
    source = replace(half.source, device=settings.cloud)
    with Cloud(source, settings.network, threads=settings.threads) as cloud:
        for i in compared * WARM_UP:
            _request(half, placements[i], cloud, inputs[:1], 0.0)
        for n, trip_ms in enumerate(trips_ms.tolist()):
            x = inputs[n % len(inputs)][None]
            for i in compared:
                clock.synchronize()
                start = clock.clock_ns()
                _request(half, placements[i], cloud, x, trip_ms / 1e3)
                clock.synchronize()
                spent_ms[i].append((clock.clock_ns() - start) / 1e6)
    longer_trip_ms = float(np.median(trips_ms)) - settings.network.round_trip_ms
    return [
        replace(p, measured=_end_to_end(p, spent_ms[i], longer_trip_ms, settings.slower)) if i in spent_ms else p
        for i, p in enumerate(placements)
    ]


def _cuts(half: Half, placements: list[Placement], best: int) -> set[int]:
    """Layers on the device of the cuts to compare: none, all, the best, the best that sends, those that send pixels."""
    sending = [p for p in placements if p.after is not None and p.after < half.layers]
    after = min(sending, key=lambda p: p.total_ms).after
    assert after is not None
    pixels = [cut for cut in range(half.layers) if all(half.chain.crossings[cut].pixels)]
    return {0, half.layers, best, after, *pixels}


def _request(half: Half, placement: Placement, cloud: Cloud, x: Tensor, round_trip_s: float) -> None:
    """One request from end to end, for x [1, ...]."""
    if placement.after is None:
        assert placement.quality is not None
        file = jpeg(half.pixels.encode(x.cpu().numpy())[0], placement.quality)
        cloud.ask([torch.frombuffer(bytearray(file), dtype=torch.uint8)], round_trip_s, do="jpeg")
        return
    values = half.run(0, placement.after, [x])
    if placement.after < half.layers:
        parts = half.to_wire(values, half.chain.crossings[placement.after])
        cloud.ask(parts, round_trip_s, do="layers", after=f"{placement.after}")


def _end_to_end(placement: Placement, spent_ms: list[float], longer_trip_ms: float, slower: float) -> EndToEnd:
    predicted_ms = placement.total_ms - placement.device_ms * (1 - 1 / slower)  # declared slowness cannot be measured
    if placement.sent_bytes:
        predicted_ms += longer_trip_ms
    return EndToEnd(float(np.median(spent_ms)), predicted_ms, len(spent_ms))
