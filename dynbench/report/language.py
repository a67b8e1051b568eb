"""Why are language models dynamic? What their computation goes along with, token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle

from dynbench.analysis.formatting import percent, significant, times
from dynbench.analysis.overview import Summary
from dynbench.report.answer import Answer, folded
from dynbench.report.content import Panel
from dynbench.report.overview_drawings import Growth, Series
from dynbench.report.palette import SERIES
from dynbench.report.tables import Row
from dynbench.report.values import Value, count, missing, number, ratio, with_interval, words
from dynbench.store.schema import Accuracy, Correlation, Tokens
from dynbench.unavailable import Unavailable

QUESTION = "Why are language models dynamic?"
SAME = 0.01  # a spread below 1 % is none


def language_models(summaries: Sequence[Summary]) -> list[Answer]:
    """How computation follows the text; nothing where no workload decides about tokens."""
    known = [(s, s.info.tokens) for s in summaries if s.info.tokens is not None]
    if not known:
        return []
    sentences = [_sentence(s.info.title, tokens) for s, tokens in known]
    sentences += [found for s, _ in known for found in _at_what_loss(s)]
    rows = [_row(s.info.title, tokens) for s, tokens in known]
    keys = ["workload", "token_samples", "token_places", "token_spread", "token_entropy", "token_position"]
    blocks = [folded("Computation by token", "answer tokens", keys, rows)]
    networks = [row for s, _ in known for row in _networks(s)]
    if networks:
        keys = ["workload", "language_network", "language_loss", "batch", "dynamic_ms", "family_speedup"]
        blocks.append(folded("Loss and time of each network", "answer losses", keys, networks))
    return [Answer("answer-language", QUESTION, sentences, list(_panels(known)), blocks)]


def _sentence(title: str, tokens: Tokens) -> str:
    if tokens.spread < SAME:
        return f"{title}: every token costs the same; what differs is which parts compute it."
    said = f"{title}: a token's computation varies by {percent(tokens.spread)} of its mean (standard deviation)"
    if tokens.by_entropy:
        (low, least), (high, most) = tokens.by_entropy[0], tokens.by_entropy[-1]
        said += (
            f"; the eighth of the tokens at which the model is surest ({significant(low, 2)} bits) takes "
            f"{times(least)} the mean, the eighth at which it is least sure ({significant(high, 2)} bits) {times(most)}"
        )
    if tokens.with_entropy is not None:
        said += f"; rank correlation with entropy {_in_words(tokens.with_entropy)}"
    if tokens.with_position is not None:
        said += f"; with position {_in_words(tokens.with_position)}"
    return f"{said}."


def _in_words(found: Correlation) -> str:
    return f"{found.value:.2f} (95 % CI {found.low:.2f} to {found.high:.2f})"


def _at_what_loss(summary: Summary) -> Iterator[str]:
    """The dynamic network beside static ones, where losses are known: is it faster at the same loss?"""
    ours = summary.info.accuracies.get("dynamic")
    judged = summary.judged
    if ours is None or isinstance(ours.value, Unavailable) or judged is None or judged.best is None:
        return
    best = judged.best.cell
    for speedup in best.deployed_speedups or best.speedups:
        theirs = summary.info.accuracies.get(speedup.baseline)
        if theirs is None or isinstance(theirs.value, Unavailable) or theirs.metric != ours.metric:
            continue
        yield (
            f"{summary.info.title} has {_loss(ours)}, {speedup.baseline} {_loss(theirs)}; the dynamic network is "
            f"{times(speedup.value)} as fast at batch {judged.batch_size}."
        )


def _loss(found: Accuracy) -> str:
    assert not isinstance(found.value, Unavailable)
    if found.in_percent:
        return f"{percent(found.value, 1)} {found.metric}"
    return f"{significant(found.value, 4)} {found.unit or found.metric}"


def _row(title: str, tokens: Tokens) -> Row:
    return {
        "workload": words(title),
        "token_samples": count(tokens.samples),
        "token_places": count(tokens.tokens),
        "token_spread": number(100 * tokens.spread, 2),
        "token_entropy": _correlation(tokens.with_entropy, tokens.reason or "every token costs the same"),
        "token_position": _correlation(tokens.with_position, "every token costs the same"),
    }


def _correlation(found: Correlation | None, why: str) -> Value:
    return missing(why) if found is None else Value(_in_words(found), found.value)


def _networks(summary: Summary) -> Iterator[Row]:
    judged = summary.judged
    if judged is None or judged.best is None:
        return
    best = judged.best.cell
    against = {s.baseline: s for s in best.deployed_speedups or best.speedups}
    for name, found in sorted(summary.info.accuracies.items(), key=lambda pair: pair[0] != "dynamic"):
        if isinstance(found.value, Unavailable):
            continue
        mine = name == "dynamic"
        item_ms = best.latency.item_ms if mine and best.latency is not None else None
        yield {
            "workload": words(summary.info.title),
            "language_network": words("dynamic network" if mine else name),
            "language_loss": Value(_loss(found), found.value),
            "batch": count(judged.batch_size),
            "dynamic_ms": number(item_ms),
            "family_speedup": with_interval(against[name]) if name in against else ratio(None),
        }


def _panels(known: Sequence[tuple[Summary, Tokens]]) -> Iterator[Panel]:
    by_entropy, by_position = [], []
    for (summary, tokens), tone in zip(known, cycle(SERIES), strict=False):
        if tokens.spread < SAME:
            continue
        name = summary.info.title
        if tokens.by_entropy:
            bits, work = [e for e, _ in tokens.by_entropy], [w for _, w in tokens.by_entropy]
            by_entropy.append(Series(name, tone, bits, work, work, work))
        places = [float(i + 1) for i in range(len(tokens.by_position))]
        by_position.append(Series(name, tone, places, tokens.by_position, tokens.by_position, tokens.by_position))
    for key, title, over, series in (
        ("answer-entropy", "Computation against entropy", "entropy of the prediction (bits)", by_entropy),
        ("answer-position", "Computation against position", "place of the token, or step of decoding", by_position),
    ):
        if series:
            alt = "; ".join(
                f"{s.name}: {times(s.y[0])} at {s.x[0]:.2g} to {times(s.y[-1])} at {s.x[-1]:.2g}" for s in series
            )
            drawing = Growth(over, "FLOPs of a token / mean", series, log=False)
            yield Panel(key, title, "With the network's own decisions, on the stream.", f"{alt}.", drawing)
