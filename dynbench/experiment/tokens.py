"""How the computation of a language model changes from token to token, with its own decisions."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from dynbench.dynamic import Execution
from dynbench.dynamic.items import tensors
from dynbench.experiment.build import Prepared
from dynbench.meters.required import PartCosts
from dynbench.store.schema import Correlation, Tokens
from dynbench.strategies import Masking

EIGHTHS = 8
RESAMPLED = 300  # times, for an interval
SAME = 1e-9  # a spread below it is none


@torch.inference_mode()
def study_tokens(p: Prepared) -> Tokens | None:
    """What each token of the stream costs, and what that goes along with.

    Args:
        p: a workload; its own decisions are replayed.

    Returns:
        None: the inputs are no sequences of tokens, nothing is decided about single tokens, or decisions are made up.
    """
    source = p.sources[0]
    learned = source.decisions.source == "learned" and not source.sweep
    if not learned or not isinstance(p.inputs, Tensor) or p.inputs.is_floating_point() or p.inputs.dim() != 2:
        return None
    trace = p.trace(source, max(p.batch_sizes))
    sizes = {key[1][0] for key in trace.entries if key[1]} or {p.inputs.shape[1]}
    if len(sizes) != 1:
        return None
    (parts,) = sizes
    work = PartCosts(p.model, p.inputs[:1]).required_by_part(trace, parts)
    if not work.mean():
        return None
    work = work / work.mean()
    found = Tokens(
        samples=len(work),
        tokens=parts,
        spread=float(work.std()),
        by_position=[float(w) for w in work.mean(0)],
    )
    if found.spread < SAME:
        return found
    places = np.broadcast_to(np.arange(parts, dtype=float), work.shape)
    found = found.model_copy(update={"with_position": _correlation(work, places)})
    entropy = _entropy_bits(p, parts)
    if entropy is None:
        why = "the model answers with tokens, not with its predictions"
        return found.model_copy(update={"reason": why})
    order = np.argsort(entropy, axis=None, kind="stable")
    eighths = [(entropy.flat[some], work.flat[some]) for some in np.array_split(order, EIGHTHS) if len(some)]
    pairs = [(float(np.mean(e)), float(np.mean(w))) for e, w in eighths]
    return found.model_copy(update={"by_entropy": pairs, "with_entropy": _correlation(work, entropy)})


def _entropy_bits(p: Prepared, parts: int) -> np.ndarray | None:
    """Of the model's prediction at each token, [samples, tokens]; None: its answer holds no logits [n, T, V]."""
    source, size, found = p.sources[0], max(p.batch_sizes), []
    trace = p.trace(source, size)
    for start, x in p.batches(size):
        answer = next(tensors(Execution(Masking(), replay=trace).run(p.model, x, start=start, items=p.items)), None)
        if answer is None or answer.dim() != 3 or not answer.is_floating_point() or answer.shape[1] != parts:
            return None
        logs = answer.double().log_softmax(-1)
        found.append((-(logs.exp() * logs).sum(-1) / math.log(2)).cpu().numpy())
    return np.concatenate(found)


def _correlation(a: np.ndarray, b: np.ndarray) -> Correlation | None:
    """Of ranks over all tokens; samples are drawn again, as tokens of one sample are alike."""
    value = _ranked(a, b)
    if value is None:
        return None
    random = np.random.default_rng(0)
    drawn = (random.integers(0, len(a), len(a)) for _ in range(RESAMPLED))
    again = [r for some in drawn if (r := _ranked(a[some], b[some])) is not None]
    low, high = np.quantile(again, (0.025, 0.975)) if again else (value, value)
    return Correlation(value=value, low=float(low), high=float(high))


def _ranked(a: np.ndarray, b: np.ndarray) -> float | None:
    from scipy.stats import rankdata

    first, second = rankdata(a, axis=None), rankdata(b, axis=None)
    if first.std() == 0 or second.std() == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])
