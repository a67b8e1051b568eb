"""The columns of an overview and of its answers."""

from __future__ import annotations

from dynbench.report.columns import COLUMNS as OF_CELLS
from dynbench.report.columns import Column

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
        "The cause that costs the best strategy most as written, by controls, else by counters and profile; a dash "
        f"where 95 % of the ideal is reached. {_JUDGED}",
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
    Column("claim_ideal", "ideal", "x", "Dense / required FLOPs: the speed-up if time followed them.", stays=True),
    Column("cause", "loss", kind="name"),
    Column("median_loss", "median", "x lost", "Median factor over the workloads where it is known.", stays=True),
    Column("lower_quartile", "lower quartile", "x lost", stays=True),
    Column("upper_quartile", "upper quartile", "x lost", stays=True),
    Column("largest_for", "largest for", "workloads", "For how many it is the largest loss.", stays=True),
]

COLUMNS = OF_CELLS | {c.key: c for c in _COLUMNS}
