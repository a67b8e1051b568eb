"""What was found, in words: the rows of a table, sentences, and what a reader must not conclude."""

from __future__ import annotations

from typing import Any

from dynbench.devices.network import Network
from dynbench.partition.records import Partition, Placement, Settings

BUSY = 1.5  # times as long as predicted, with no network in it


def network_in_words(network: Network) -> str:
    """'Network lte: ...; 5.85 Mbit/s up, 12.7 down, 50 ms round trip'."""
    title = f": {network.title}" if network.title and network.status != "own" else ""
    rate = "bytes make no difference" if network.up_mbit_s is None else f"{network.up_mbit_s:g} Mbit/s up"
    back = "" if network.down_mbit_s is None else f", {network.down_mbit_s:g} down"
    jitter = f" (standard deviation {network.jitter_ms:g})" if network.jitter_ms else ""
    return f"Network {network.name}{title}; {rate}{back}, {network.round_trip_ms:g} ms round trip{jitter}"


def rows(partition: Partition) -> list[dict[str, Any]]:
    """A row for each placement; columns that would say nothing are left out."""
    return [_row(partition, placement, i == partition.best) for i, placement in enumerate(partition.placements)]


def _row(partition: Partition, placement: Placement, best: bool) -> dict[str, Any]:
    row: dict[str, Any] = {
        "": "best" if best else "",
        "cut": placement.where,
        "sends": placement.sends,
        "sent_bytes": placement.sent_bytes,
        "device_ms": f"{placement.device_ms:.2f}",
        "network_ms": f"{placement.network_ms:.2f}",
        "cloud_ms": f"{placement.cloud_ms:.2f}",
        "total_ms": f"{placement.total_ms:.2f}",
    }
    if any(0 < (other.share_best or 0) < 1 for other in partition.placements):
        row["best_in_%"] = None if placement.share_best is None else f"{100 * placement.share_best:.0f}"
    if partition.accuracy is not None:
        row["accuracy_%"] = None if placement.accuracy is None else f"{100 * placement.accuracy:.1f}"
    if any(other.measured for other in partition.placements):
        measured = placement.measured
        row["predicted_ms"] = None if measured is None else f"{measured.predicted_ms:.2f}"
        row["measured_ms"] = None if measured is None else f"{measured.total_ms:.2f}"
    return row


def sentences(partition: Partition, slower: float) -> list[str]:
    """What the table shows.

    Args:
        partition: of one network.
        slower: how many times slower than this machine the device is declared to be.
    """
    found = [_best(partition)]
    if partition.no_jpeg is not None:
        found.append(f"JPEG files: unavailable, {partition.no_jpeg}.")
    if partition.sending_pays_from is not None:
        found.append(
            f"Some cut is faster than all on the device if that is {partition.sending_pays_from:.3g} times as slow as "
            f"this machine or more (declared: {slower:g})."
        )
    whole = next((p.measured for p in partition.placements if p.measured is not None and not p.sent_bytes), None)
    if whole is not None and whole.total_ms > BUSY * whole.predicted_ms:
        found.append(
            f"Doubt: all on the device took {whole.total_ms / whole.predicted_ms:.1f} times as long as predicted, so "
            "this machine was busy while it was measured."
        )
    if partition.accuracy is not None:
        found.append(
            f"Accuracy with nothing lost: {100 * partition.accuracy:.1f} % on {partition.items} inputs; the column has "
            "what arrives as pixels of 8 bits or as JPEG."
        )
    return found


def _best(partition: Partition) -> str:
    best, raw = partition.placements[partition.best], partition.placements[0]
    said = f"Best cut: {best.where}, {best.total_ms:.2f} ms; sending the input takes {raw.total_ms:.2f} ms"
    files = [p for p in partition.placements if p.quality is not None]
    if files:
        fastest = min(files, key=lambda p: p.total_ms)
        said += f", as JPEG of quality {fastest.quality} {fastest.total_ms:.2f} ms"
    return f"{said}."


def caveats(settings: Settings) -> list[str]:
    """What is measured, modelled and declared."""
    network = settings.network
    found = [
        "Measured: the layers one by one, and coding of JPEG files, on this machine, with one thread and one input at "
        "a time. Packing a message and handing it to a socket is not predicted.",
        f"Modelled, not measured: the network{f' ({network.source})' if network.source else ''}. No packet is lost, no "
        "connection is made, and its rate does not vary.",
    ]
    if settings.slower != 1:
        found.append(f"Declared, not measured: a device {settings.slower:g} times slower than this machine.")
    if settings.requests:
        found.append(
            f"measured_ms is the median of {settings.requests} requests from end to end: device and cloud are two "
            "processes of this machine, which share its caches and cores, over a loopback socket paced by a token "
            "bucket, the round trip waited for. predicted_ms is for the median of the same round trips"
            + (", without the declared slowness." if settings.slower != 1 else ".")
        )
    return found
