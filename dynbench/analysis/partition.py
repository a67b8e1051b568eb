"""Where to cut a chain of layers between a device and the cloud (Kang et al., Neurosurgeon, ASPLOS 2017).

For a cut after p of L layers: T(p) = sum of the first p on the device + the network + sum of the rest in the cloud.
p = 0 sends the raw input. p = L runs all on the device, and then nothing is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Cut:
    """One way to share the layers.

    Attributes:
        after: how many layers are on the device.
        device_ms: their time.
        sent_bytes: what the cloud is sent.
        network_ms: mean time of sending it and of the answer; 0 where nothing is sent.
        cloud_ms: time of the other layers.
    """

    after: int
    device_ms: float
    sent_bytes: int
    network_ms: float
    cloud_ms: float

    @property
    def total_ms(self) -> float:
        """Until the answer is on the device."""
        return self.device_ms + self.network_ms + self.cloud_ms


def all_cuts(
    device_ms: Sequence[float],
    cloud_ms: Sequence[float],
    sent_bytes: Sequence[int],
    request_ms: Callable[[int], float],
) -> list[Cut]:
    """Every cut of a chain.

    Args:
        device_ms: of each layer on the device.
        cloud_ms: of each layer in the cloud.
        sent_bytes: of each cut; one more than there are layers, the last 0: all is on the device.
        request_ms: time of the network for that many bytes, the answer included; not called where nothing is sent.

    Raises:
        ValueError: the lengths do not fit, or something is sent where all layers are on the device.
    """
    layers = len(device_ms)
    if len(cloud_ms) != layers or len(sent_bytes) != layers + 1 or sent_bytes[-1] != 0:
        raise ValueError(f"{layers} layers on the device, {len(cloud_ms)} in the cloud, cuts send {list(sent_bytes)}")
    on_device = np.concatenate([[0.0], np.cumsum(device_ms)])
    in_cloud = np.concatenate([np.cumsum(list(cloud_ms)[::-1])[::-1], [0.0]])
    return [
        Cut(p, float(on_device[p]), sent_bytes[p], request_ms(sent_bytes[p]) if p < layers else 0.0, float(in_cloud[p]))
        for p in range(layers + 1)
    ]


def best(cuts: Sequence[Cut]) -> Cut:
    """The cut of least total; of several the one that sends least, then the one that leaves most to the cloud."""
    return min(cuts, key=lambda cut: (cut.total_ms, cut.sent_bytes, cut.after))


def pays_from(cuts: Sequence[Cut], slower: float = 1.0) -> float | None:
    """How many times slower the device must be for some cut to be as fast as computing all on it.

    Args:
        cuts: of a device that is `slower` times slower than what was measured.
        slower: that factor, already in `device_ms`.

    Returns:
        Relative to what was measured; None: no cut takes any work from the device.
    """
    whole = cuts[-1]
    points = [
        slower * (cut.network_ms + cut.cloud_ms) / (whole.device_ms - cut.device_ms)
        for cut in cuts[:-1]
        if whole.device_ms > cut.device_ms
    ]
    return min(points, default=None)


def shares_best(cuts: Sequence[Cut], mean_round_trip_ms: float, round_trips_ms: np.ndarray) -> dict[int, float]:
    """How often each cut is the best one when the round trip varies.

    Args:
        cuts: at the mean round trip.
        mean_round_trip_ms: that is part of `network_ms` of every cut that sends something.
        round_trips_ms: draws [n]; in one draw it is the same for all cuts.

    Returns:
        Share of the draws by `Cut.after`, of those that are ever best.
    """
    sends = np.array([cut.after != len(cuts) - 1 for cut in cuts])
    fixed = np.array([cut.total_ms for cut in cuts]) - mean_round_trip_ms * sends
    totals = fixed + np.outer(round_trips_ms, sends)  # [n, cuts]
    order = sorted(range(len(cuts)), key=lambda i: (cuts[i].sent_bytes, cuts[i].after))
    winners = np.array(order)[totals[:, order].argmin(1)]
    found, counts = np.unique(winners, return_counts=True)
    return {cuts[i].after: float(c) / len(round_trips_ms) for i, c in zip(found.tolist(), counts.tolist(), strict=True)}
