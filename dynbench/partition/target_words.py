"""What was found of a network that is cut between a device and this machine, in words."""

from __future__ import annotations

import math
from typing import Any

from dynbench.partition.on_target import TargetCut, TargetSplit, Where

NEAR = 0.1  # of the time: a prediction within it is called right


def target_rows(found: TargetSplit) -> list[dict[str, Any]]:
    """A row for each cut that was measured."""
    return [
        {
            "": ", ".join(
                name for name, best in (("predicted", found.predicted), ("measured", found.measured)) if best is cut
            ),
            "cut": cut.where,
            "sends": cut.sends,
            "sent_bytes": cut.sent_bytes,
            "device_ms": f"{cut.device_ms:.3g}",
            "transfer_ms": f"{cut.transfer_ms:.3g}",
            "cloud_ms": f"{cut.cloud_ms:.3g}",
            "predicted_ms": f"{cut.predicted_ms:.3g}",
            "measured_ms": f"{cut.measured_ms.value:.3g} ({cut.measured_ms.low:.3g} to {cut.measured_ms.high:.3g})",
            "measured/predicted": f"{cut.measured_ms.value / cut.predicted_ms:.2f}",
        }
        for cut in found.cuts
    ]


def target_sentences(found: TargetSplit) -> list[str]:
    """What the table shows."""
    predicted, measured = found.predicted, found.measured
    if predicted is measured:
        said = [f"The prediction chooses {_at(predicted)}, and so do whole requests: {_ms(measured)}."]
    else:
        more = predicted.measured_ms.value / measured.measured_ms.value - 1
        apart = predicted.measured_ms.low > measured.measured_ms.high
        said = [
            f"The prediction chooses {_at(predicted)}, which takes {_ms(predicted)}: {100 * more:.0f} % longer than "
            f"the fastest, {_at(measured)}, with {_ms(measured)}" + ("." if apart else "; their intervals overlap.")
        ]
    off = max(found.cuts, key=lambda c: abs(math.log(c.measured_ms.value / c.predicted_ms)))
    worst = off.measured_ms.value / off.predicted_ms
    if abs(worst - 1) <= NEAR:
        said.append(f"All requests took within {100 * NEAR:.0f} % of what is predicted.")
    else:
        said.append(
            f"Furthest from its prediction is {_at(off)}: {worst:.2f} times; within these requests the device took "
            f"{off.within_ms[0]:.3g} ms and this machine {off.within_ms[1]:.3g} ms."
        )
    if found.answered:
        said.append(f"{found.answered - found.wrong} of {found.answered} answers are those of the network in torch.")
    said += [f"Not measured: {name}: {why}." for name, why in found.left_out.items()]
    return said


def _at(cut: TargetCut) -> str:
    return f"'{cut.where}'"


def _ms(cut: TargetCut) -> str:
    return f"{cut.measured_ms.value:.3g} ms ({cut.measured_ms.low:.3g} to {cut.measured_ms.high:.3g})"


def target_caveats(where: Where, requests: int) -> list[str]:
    """What is measured, and how."""
    near = where.profile.target.kind == "local"
    link = "a loopback socket, as this target is a process of this machine" if near else "the real link, unencrypted"
    return [
        f"device_ms: the first part alone on {where.name}; cloud_ms: the second part alone on this machine; both by "
        "the python agent and ONNX Runtime, for one input at a time, as static twins.",
        f"transfer_ms: the same bytes and those of an answer over {link}, without computing, packing included; the "
        "median of as many as there are requests.",
        f"measured_ms: the median of {requests} requests from end to end with its 95 % interval, cuts in random order.",
        "Cuts that send no less than an earlier one are left out: they can be better only where this machine is slower "
        "than the device.",
    ]
