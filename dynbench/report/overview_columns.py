"""The columns of an overview and of its answers."""

from __future__ import annotations

from dynbench.report.columns import COLUMNS as OF_CELLS
from dynbench.report.columns import Column

BY_PROFILE = "\N{DAGGER}"
"""Marks a loss that no control has measured."""
AS_WRITTEN = "\N{DOUBLE DAGGER}"
"""Marks a speed-up as written in a run whose others are deployed."""
_JUDGED = "At the largest batch size that was timed."

_COLUMNS = [
    Column("overview_workload", "workload", kind="name", definition="Leads to the workload's own page."),
    Column(
        "decision_kind",
        "decides by",
        definition="The kind of decision, from the kinds of the network's decision points.",
        kind="text",
        stays=True,
    ),
    Column(
        "saved",
        "saved",
        "% of FLOPs",
        "Share of the primary baseline's FLOPs that the decisions do not ask for, gates and heads left out.",
        "Not time.",
        stays=True,
    ),
    Column(
        "accuracy_gain",
        "accuracy",
        "points more",
        "Accuracy of the dynamic network less that of the primary baseline; above 0 the dynamic one is better. A dash: "
        "decisions are made up, or an accuracy is unknown.",
        stays=True,
    ),
    Column(
        "overview_ideal", "ideal", "x", f"Dense / required FLOPs: the speed-up if time followed computation. {_JUDGED}"
    ),
    Column("overview_efficiency", "efficiency", "% of ideal", f"Speed-up / ideal. {_JUDGED}"),
    Column(
        "largest_loss",
        "largest loss",
        "factor",
        "The cause that costs the deployed network most, by controls: arms of the same rounds with a part left out. "
        f"{BY_PROFILE}: it has no controls in this run, so this is what costs the best strategy most as written, from "
        f"counters and one profiled pass. A dash where 95 % of the ideal is reached. {_JUDGED}",
        kind="text",
    ),
    Column(
        "overview_verdict",
        "verdict",
        definition="Against the primary baseline, beyond what the run could resolve. 'use NAME': this static network "
        f"of the workload is faster deployed, and at least as accurate. {_JUDGED}",
        kind="text",
        stays=True,
    ),
    Column(
        "overview_role",
        "known beforehand",
        definition="A positive control removes work in a way that plain hardware turns into time; it has to be faster. "
        "A null control decides and saves nothing; it must not differ from its baseline. As expected or not; not "
        f"judged: a figure is missing or too imprecise. {_JUDGED}",
        kind="text",
        stays=True,
    ),
    Column("workloads", "workloads", definition="How many were timed.", stays=True),
    Column("outcome_faster", "faster", "workloads", "Measurably faster than the primary baseline.", stays=True),
    Column("outcome_unclear", "not told apart", "workloads", "No difference that the run could resolve.", stays=True),
    Column("outcome_slower", "slower", "workloads", "Measurably slower than the primary baseline.", stays=True),
    Column("median_ideal", "ideal", "x, median", "Median of the ideal speed-ups.", stays=True),
    Column(
        "median_speedup", "speed-up", "x, median", "Median of the speed-ups that workloads are judged by.", stays=True
    ),
    Column("median_efficiency", "efficiency", "%, median", "Median of speed-up / ideal.", stays=True),
    Column(
        "median_memory", "peak memory", "x, median", "Of the dynamic network over the primary baseline.", stays=True
    ),
    Column("median_energy", "energy", "x, median", "Of the dynamic network over the primary baseline.", stays=True),
    Column(
        "break_even",
        "break-even",
        "% kept",
        "Keep-rate up to which the strategy is at least as fast as the primary baseline, as written.",
        stays=True,
    ),
    Column("step_0", "promised", "x", "Dense FLOPs over FLOPs as the paper counts them.", stays=True),
    Column(
        "step_1", "masking", "x", "Speed-up of the form that computes everything and masks, as written.", stays=True
    ),
    Column("step_2", "best as written", "x", "Speed-up of the best strategy as written, in eager PyTorch.", stays=True),
    Column("step_3", "deployed", "x", "Deployed against the deployed primary baseline.", stays=True),
    Column(
        "step_4",
        "against any static",
        "x",
        "Deployed against the fastest static network of the workload that is at least as accurate, deployed too.",
        stays=True,
    ),
    Column(
        "stronger_static",
        "stronger static",
        definition="That network, where it is not the primary baseline.",
        kind="text",
    ),
    Column("argument", "varied", definition="Argument of the model that was varied.", kind="text", stays=True),
    Column("argument_value", "value", definition="Of that argument.", stays=True),
    Column("dynamic_ms", "dynamic", "ms/item", "Time of the dynamic network, as it is judged.", stays=True),
    Column("static_ms", "static", "ms/item", "Time of the primary baseline with the same value.", stays=True),
    Column(
        "family_speedup",
        "speed-up",
        "x (95 % CI)",
        "Of the dynamic network, in the same rounds.",
        stays=True,
    ),
    Column("token_samples", "samples"),
    Column("token_places", "tokens", "per sample"),
    Column("token_spread", "spread", "% of mean", "Standard deviation of a token's FLOPs over tokens.", stays=True),
    Column(
        "token_entropy",
        "with entropy",
        "rank correlation",
        "Of a token's FLOPs with the entropy of the model's prediction there; samples drawn again for the interval.",
        stays=True,
    ),
    Column("token_position", "with position", "rank correlation", "The same with the place of the token.", stays=True),
    Column("language_network", "network", kind="text", stays=True),
    Column("language_loss", "loss", kind="text", stays=True),
    Column("method", "method", kind="name"),
    Column("published_claim", "what is claimed", kind="prose"),
    Column("known_from", "known from", definition="Recalled: from memory, not checked.", kind="text", stays=True),
    Column("published_doubt", "what speaks against it", definition="From code and issues, as found.", kind="prose"),
    Column(
        "counterpart_note",
        "counterpart",
        definition="How what was measured differs from what is claimed about, or why nothing was measured.",
        kind="prose",
    ),
    Column("claim_ideal", "ideal", "x", "Dense / required FLOPs: the speed-up if time followed them.", stays=True),
    Column(
        "our_lines",
        "here",
        "lines",
        "Lines with code that define the network and its dynamic parts in this package. What all networks share, "
        "decision points and strategies, is not counted.",
        stays=True,
    ),
    Column("their_lines", "authors", "lines", "The same of the authors' code, by the same rule.", stays=True),
    Column("lines_ratio", "here / authors", "x", stays=True),
    Column(
        "their_form",
        "what theirs executes",
        definition="How the authors' code carries out what is decided.",
        kind="prose",
    ),
    Column("backbone", "static part", definition="Whether it is counted, on both sides.", kind="prose"),
    Column("counted_in", "counted in", definition="The authors' repository, commit and files.", kind="prose"),
    Column("cause", "loss", kind="name"),
    Column("median_loss", "median", "x lost", "Median factor over the workloads where it is known.", stays=True),
    Column("lower_quartile", "lower quartile", "x lost", stays=True),
    Column("upper_quartile", "upper quartile", "x lost", stays=True),
    Column("largest_for", "largest for", "workloads", "For how many it is the largest loss.", stays=True),
]

COLUMNS = OF_CELLS | {c.key: c for c in _COLUMNS}
