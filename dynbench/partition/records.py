"""What is asked of a partition, and what was found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dynbench.devices.network import Network


@dataclass(frozen=True)
class Settings:
    """What to measure and to assume.

    Attributes:
        network: between device and cloud.
        slower: how many times slower than this machine the device is declared to be.
        device: what plays the device: 'cpu' or 'cuda:N'.
        cloud: what plays the cloud.
        qualities: of JPEG files.
        rounds: timed passes over the layers.
        requests: to a second process, for each placement that is measured from end to end; 0: none.
        threads: of either process.
        seed: of the round trips, and of the choice of inputs.
    """

    network: Network
    slower: float = 1.0
    device: str = "cpu"
    cloud: str = "cpu"
    qualities: Sequence[int] = (50, 75, 95)
    rounds: int = 30
    requests: int = 0
    threads: int = 1
    seed: int = 0


@dataclass(frozen=True)
class EndToEnd:
    """What a placement took from end to end, with a second process as the cloud.

    Attributes:
        total_ms: median over the requests.
        predicted_ms: for the median of their round trips, on a device as fast as this machine.
        requests: how many.
    """

    total_ms: float
    predicted_ms: float
    requests: int


@dataclass(frozen=True)
class Placement:
    """One way to share the work between device and cloud: a row of the table.

    Attributes:
        where: in words.
        after: layers on the device; None: a JPEG file is sent instead.
        sends: what crosses the network, in words.
        device_ms: measured, times the declared slowness.
        content_bytes: of what crosses: a byte per pixel, or the mean size of a JPEG file.
        sent_bytes: the same with the message's own header.
        network_ms: modelled.
        cloud_ms: measured.
        total_ms: sum of the three.
        quality: of the JPEG file.
        share_best: how often it is the best cut when the round trip varies.
        accuracy: of what is computed from what arrives; None: as on the device, or unknown.
        measured: from end to end.
    """

    where: str
    after: int | None
    sends: str
    device_ms: float
    content_bytes: int
    sent_bytes: int
    network_ms: float
    cloud_ms: float
    total_ms: float
    quality: int | None = None
    share_best: float | None = None
    accuracy: float | None = None
    measured: EndToEnd | None = None


@dataclass(frozen=True)
class Partition:
    """What was found for one neural network.

    Attributes:
        network: its name.
        placements: the cuts in order, then JPEG files.
        best: index of the best cut.
        whole_ms: the network called at once on the device, measured, times the declared slowness; the sum of its layers
            is a little more.
        sending_pays_from: how many times slower than this machine the device must be for a cut to be faster than the
            whole network on the device; None: there is nothing to send.
        accuracy: of the network on the device.
        items: that accuracies are of.
        no_jpeg: why its images were not sent as JPEG files, where they could have been.
    """

    network: str
    placements: list[Placement]
    best: int
    whole_ms: float
    sending_pays_from: float | None
    accuracy: float | None
    items: int
    no_jpeg: str | None = None

    def as_json(self) -> dict[str, Any]:
        """For a script; placements are called 'ways' there."""
        fields = asdict(self)
        ways = [{**row, "best": i == self.best} for i, row in enumerate(fields.pop("placements"))]
        return {"network": fields.pop("network"), "ways": ways, **fields}
