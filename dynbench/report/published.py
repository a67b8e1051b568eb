"""What papers and their repositories claim about time and computation, to be set beside what was measured here.

A figure that was only recalled is marked so, and nothing passes or fails by it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dynbench.analysis.overview import Summary
from dynbench.report.tables import Row
from dynbench.report.values import count, ratio, with_interval, words


@dataclass(frozen=True)
class Published:
    """A claim.

    Attributes:
        method: and where it was published.
        claim: what is said.
        known_from: 'abstract', 'README', 'issue', or 'recalled'.
        workloads: what the names of its counterparts begin with.
    """

    method: str
    claim: str
    known_from: str
    workloads: tuple[str, ...]


CLAIMS = (
    Published("SkipNet (ECCV 2018)", "30 to 90 % less computation", "abstract, recalled", ("skipnet",)),
    Published("BlockDrop (CVPR 2018)", "20 % faster on average, up to 36 %", "abstract, recalled", ("blockdrop",)),
    Published("ConvNet-AIG (ECCV 2018)", "20 to 38 % fewer FLOPs", "recalled", ("convnet_aig",)),
    Published("DynamicViT (NeurIPS 2021)", "over 30 % fewer FLOPs, over 40 % more throughput", "README", ("dynvit",)),
    Published("ToMe (ICLR 2023)", "1.65x the throughput of ViT-B/16 at r = 13, on a V100", "README", ("tome",)),
    Published(
        "LASNet (NeurIPS 2022) and DynConv (CVPR 2020): spatial skipping",
        "36 % less latency on a V100, predicted in part; up to 2x with a kernel of its own",
        "paper",
        ("spatial",),
    ),
    Published(
        "MSDNet (ICLR 2018) and BranchyNet (ICPR 2016)",
        "accuracy against multiply-adds, counted from stored logits",
        "recalled",
        ("msdnet", "branchynet"),
    ),
    Published("IDK cascades (UAI 2018)", "less expected cost, counted by stages", "recalled", ("idk",)),
    Published("DeepMoE (UAI 2019)", "fewer FLOPs at the same accuracy", "recalled", ("deepmoe",)),
    Published(
        "Sparse mixture of experts (Switch, JMLR 2022)",
        "4 to 7 times faster pre-training at the same quality; nothing on inference",
        "recalled",
        ("moe_",),
    ),
    Published("CALM (NeurIPS 2022): early exit in decoding", "up to 3x faster", "recalled", ("early_exit_lm",)),
)


def counterparts(summaries: Sequence[Summary]) -> Iterator[Row]:
    """A row for each claim, workload and batch size that was timed, the smallest and the largest.

    Args:
        summaries: of the run's workloads.
    """
    for claim in CLAIMS:
        for summary in summaries:
            if not summary.info.name.startswith(claim.workloads):
                continue
            timed = [at for at in summary.at.values() if at.best is not None]
            for at in [*timed[:1], *timed[1:][-1:]]:
                yield {
                    "method": words(claim.method),
                    "published_claim": words(claim.claim),
                    "known_from": words(claim.known_from),
                    "workload": words(summary.info.title),
                    "batch": count(at.batch_size),
                    "claim_ideal": ratio(at.ideal),
                    "step_1": ratio(None if at.masking is None else at.masking.speedup.value),
                    "step_2": ratio(None if at.written is None else at.written.speedup.value),
                    "step_3": with_interval(at.deployed.speedup) if at.deployed is not None else ratio(None),
                }
