"""The network between a device and the cloud: bandwidth, round trip and its jitter. A model, not a measurement.

Presets are the files under `hardware/networks/`; a user's own network is a TOML file of the same form.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from dynbench.errors import UserError, suggestion
from dynbench.paths import project_dir
from dynbench.reading import read_toml

LEAST, MOST = 1e-9, 1e12  # of any figure that is not 0


@dataclass(frozen=True)
class Network:
    """A network between two ends.

    Attributes:
        name: for reports.
        round_trip_ms: mean time of an empty request and its empty answer.
        jitter_ms: standard deviation of that time.
        up_mbit_s: bandwidth from the device to the cloud; None: unlimited.
        down_mbit_s: bandwidth from the cloud to the device; None: unlimited.
        title: what it stands for.
        source: of the figures.
        status: 'verified' (read in the source), 'recalled', or 'own' (the user's).

    Raises:
        UserError: a number out of range.
    """

    name: str
    round_trip_ms: float
    jitter_ms: float = 0.0
    up_mbit_s: float | None = None
    down_mbit_s: float | None = None
    title: str = ""
    source: str = ""
    status: str = "own"

    def __post_init__(self) -> None:
        for key in ("round_trip_ms", "jitter_ms", "up_mbit_s", "down_mbit_s"):
            value, least = getattr(self, key), "0 or more" if key.endswith("_ms") else "above 0"
            if value is None:
                continue
            right = type(value) in (int, float) and (value == 0 or LEAST <= value <= MOST)
            if not right or (value == 0 and key.endswith("mbit_s")):
                raise UserError(
                    f"network {self.name!r}: {key} = {value!r}; it must be a number {least}, up to {MOST:g}"
                    + (f", from {LEAST:g}" if isinstance(value, float) and 0 < value < LEAST else "")
                )
        for key in ("name", "title", "source", "status"):
            if not isinstance(getattr(self, key), str):
                raise UserError(f"network {self.name!r}: {key} = {getattr(self, key)!r}; it must be a text")
        if self.jitter_ms and not self.round_trip_ms:
            raise UserError(f"network {self.name!r}: jitter_ms = {self.jitter_ms:g}, but a round trip of 0 cannot vary")

    def transmission_ms(self, sent_bytes: float, received_bytes: float) -> float:
        """Time that this many bytes occupy the line."""
        up, down = (0.0 if rate is None else 8e-3 / rate for rate in (self.up_mbit_s, self.down_mbit_s))
        return sent_bytes * up + received_bytes * down

    def request_ms(self, sent_bytes: float, received_bytes: float) -> float:
        """Mean time of a request and its answer; 0 if nothing is sent."""
        return self.round_trip_ms + self.transmission_ms(sent_bytes, received_bytes) if sent_bytes else 0.0

    def round_trips_ms(self, n: int, seed: int) -> np.ndarray:
        """Samples of the round trip [n] from a gamma distribution of this mean and standard deviation.

        The published figures give these two moments only; the family is our choice, because it is never negative.
        """
        if not self.jitter_ms:
            return np.full(n, float(self.round_trip_ms))
        spread = self.jitter_ms**2 / self.round_trip_ms
        drawn: np.ndarray = np.random.default_rng(seed).gamma(self.round_trip_ms / spread, spread, n)
        return drawn

    def but(self, **changes: float | None) -> Network:
        """A copy with other figures; `None` changes nothing."""
        given = {k: v for k, v in changes.items() if v is not None}
        if not given:
            return self
        return replace(self, name=f"{self.name}, changed", status="own", **given)  # type: ignore[arg-type]


def presets() -> dict[str, Path]:
    """The networks that come with dynbench, by name."""
    return {p.stem: p for p in sorted((project_dir("hardware") / "networks").glob("*.toml"))}


def load_network(name: str) -> Network:
    """A preset, or a TOML file of the same form.

    Raises:
        UserError: no such network, malformed TOML, or a key or value that is not accepted.
    """
    known = presets()
    path = known.get(name, Path(name))
    if not path.is_file():
        raise UserError(f"no network {name!r}, and no such file; {suggestion(name, known)}")
    table = read_toml(path)
    accepted = [f.name for f in fields(Network)]
    for key in table:
        if key not in accepted:
            raise UserError(f"{path}: unknown key {key}; {suggestion(key, accepted)}")
    if "round_trip_ms" not in table:
        raise UserError(f"{path}: key round_trip_ms is missing")
    return Network(**{"name": path.stem, **table})
