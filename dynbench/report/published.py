"""What papers and their repositories claim about time and computation, to be set beside what was measured here.

A figure that was only recalled is marked so, and nothing passes or fails by it. Claims that no workload stands for are
kept with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dynbench.analysis.overview import Standing, Summary
from dynbench.report.tables import Row
from dynbench.report.values import count, number, ratio, with_interval, words


@dataclass(frozen=True)
class Published:
    """A claim.

    Attributes:
        method: and where it was published.
        claim: what is said.
        known_from: 'abstract', 'README', 'issue', 'paper', or 'recalled'.
        doubt: what is known to speak against it, or what the figure leaves out; from the authors' code and the issues
            of their repository unless marked as recalled.
        workloads: what the names of its counterparts begin with.
        note: how the counterpart differs from what is claimed about; without counterparts, why there are none.
    """

    method: str
    claim: str
    known_from: str
    doubt: str = ""
    workloads: tuple[str, ...] = ()
    note: str = ""


CLAIMS = (
    Published(
        "SkipNet (ECCV 2018)",
        "30 to 90 % less computation",
        "abstract, recalled",
        "the code computes every block and multiplies by the gate; issue 11: speed is unchanged",
        ("skipnet",),
    ),
    Published(
        "BlockDrop (CVPR 2018)",
        "20 % faster on average, up to 36 %, at the same accuracy",
        "abstract, recalled",
        "batches are masked in the code; only a single image branches",
        ("blockdrop",),
    ),
    Published(
        "ConvNet-AIG (ECCV 2018)",
        "20 to 38 % fewer FLOPs",
        "recalled",
        "the code computes every block and multiplies by the gate",
        ("convnet_aig",),
    ),
    Published(
        "A-ViT (CVPR 2022): tokens halt",
        "38 to 62 % more throughput; 0.8 G against 3.6 G operations",
        "abstract, recalled; README",
        "the code computes all tokens, with masks",
        ("universal",),
        "the same halting rule (adaptive computation time, token by token) in a language model; no A-ViT was built",
    ),
    Published(
        "DynamicViT (NeurIPS 2021)",
        "over 30 % fewer FLOPs, over 40 % more throughput",
        "README",
        "issue 30: slower than the ViT at batch 1; issue 35: counting tools see the masked form",
        ("dynvit",),
    ),
    Published(
        "ToMe (ICLR 2023)",
        "1.65x the throughput of ViT-B/16 at r = 13, on a V100 (309 to 511 images per second)",
        "README",
        "",
        ("tome",),
        "of DeiT-S, the README says 1.67x",
    ),
    Published(
        "LASNet and LAUDNet (NeurIPS 2022): patches are skipped",
        "36 % less latency on a V100, 46 % on a TX2",
        "paper",
        "the code masks, its kernels were not released (issue 1); many points are predicted, not measured (recalled)",
        ("spatial_digits", "spatial_patch4", "spatial_map"),
        "ResNets for small images",
    ),
    Published(
        "DynConv (CVPR 2020): pixels are skipped",
        "6.3 times fewer conditional operations, 60 % faster to twice as fast",
        "README, paper",
        "the kernel covers depthwise convolutions only (issue 4)",
        ("spatial_pixel",),
        "without a kernel of its own: patches are gathered and scattered by the framework",
    ),
    Published(
        "DeltaCNN (CVPR 2022)",
        "up to 7x on a GPU",
        "recalled",
        "issue 14: slower than cuDNN from batch 4 on, on a V100; TF32 was on for one side only",
        note="no counterpart: it saves between frames of a video, and items of a stream here do not depend on each "
        "other",
    ),
    Published(
        "Transkimmer (ACL 2022): tokens are skipped",
        "10.97x on average on GLUE",
        "recalled",
        "issue 2: operations counted are more than of BERT; the code masks, speed is inferred from tokens that remain",
        ("mod_text",),
        "tokens skip blocks of a language model (mixture of depths); no BERT was built",
    ),
    Published(
        "VTC-LFC (NeurIPS 2022): channels and tokens pruned once",
        "2648 to 4496 images per second",
        "issue, quoting table 2",
        "issue 3: 1819 against 1760 on an RTX 3090",
        note="no counterpart: nothing is decided for an input; smaller static networks stand as baselines beside every "
        "workload that names some",
    ),
    Published(
        "MSDNet (ICLR 2018), RANet and BranchyNet (ICPR 2016)",
        "accuracy against multiply-adds",
        "recalled",
        "operations are counted from stored logits, after every exit was computed",
        ("msdnet", "branchynet"),
        "RANet was not built",
    ),
    Published(
        "IDK cascades (UAI 2018)",
        "less expected cost",
        "recalled",
        "cost is the sum of stages times the probability of reaching them: no waiting, no effect of batches",
        ("idk",),
    ),
    Published(
        "DeepMoE (UAI 2019)",
        "fewer FLOPs at the same accuracy",
        "recalled",
        "channels are masked per sample; for time, the authors say, they would have to be gathered (recalled)",
        ("deepmoe",),
    ),
    Published(
        "Sparse mixture of experts (Switch, JMLR 2022)",
        "4 to 7 times faster pre-training at the same quality; nothing on inference",
        "recalled",
        "grouped products slower than a loop over experts (PyTorch issue 163425, TransformerEngine issue 2939)",
        ("moe_",),
        "inference on a small model",
    ),
    Published(
        "Deja Vu (ICML 2023): contextual sparsity",
        "over 2x against FasterTransformer at batch 1",
        "paper",
        "what a batch needs is the union of what its items need; no serving system took it up",
        note="no counterpart: it needs a language model whose weights do not fit a cache, and predictors trained for "
        "it; the union over a batch is measured with DeepMoE (`batch_union`)",
    ),
    Published(
        "PowerInfer (SOSP 2024)",
        "up to 11.69x against llama.cpp",
        "README",
        "the baseline waits for weights from outside the GPU; where the model fits, nothing is said",
        note="no counterpart: models here fit the memory of the device, so there is nothing to offload",
    ),
    Published(
        "CALM (NeurIPS 2022), LayerSkip (ACL 2024): early exit in decoding",
        "up to 3x (CALM), 1.86x (LayerSkip)",
        "recalled; issue",
        "batches of requests gain 2 to 12 % of throughput (DREX)",
        ("early_exit_lm",),
        "CALM on a small decoder; LayerSkip was not built",
    ),
    Published(
        "Decoding of RNN transducers on the device",
        "80 % of the time idle without it, 2.5x with it",
        "paper",
        "",
        ("decode_text",),
        "greedy decoding of text, each to the end of its line; on a CPU the host is the device, so nothing idles",
    ),
    Published(
        "Brainstorm (OSDI 2023)",
        "up to 11.7x, 3.29x on average",
        "paper",
        "baselines are eager code of 2022; loads were profiled on the data that is then timed",
        ("moe_",),
        "a network of its kind, not the system, which is for GPUs; read 'deployed': both sides in their fastest way",
    ),
    Published(
        "FlexAttention: masks that depend on the input",
        "blocks that are masked take no time",
        "documentation",
        "making the mask took 5271 ms, the attention 412 ms (attention-gym issue 149)",
        note="no counterpart: no workload masks attention by what an input decides",
    ),
    Published(
        "DeepSparse: unstructured sparsity on a CPU",
        "no figure that was checked",
        "issue",
        "issue 321: a pruned model slower than the dense one at batch 1, and steps at powers of two",
        note="no counterpart: weights are pruned once, nothing is decided by an input; every report varies batch size",
    ),
)


def counterparts(summaries: Sequence[Summary]) -> Iterator[Row]:
    """A row for each claim, workload and batch size that was timed, the smallest and the largest; else one with why.

    Nothing where no workload of the run stands for a claim.

    Args:
        summaries: of the run's workloads.
    """
    if not any(s.info.name.startswith(c.workloads) for c in CLAIMS for s in summaries if c.workloads):
        return
    for claim in CLAIMS:
        common: Row = {
            "method": words(claim.method),
            "published_claim": words(claim.claim),
            "known_from": words(claim.known_from),
            "published_doubt": words(claim.doubt or None),
        }
        mine = [s for s in summaries if claim.workloads and s.info.name.startswith(claim.workloads)]
        for summary in mine:
            yield from _measured(claim, common, summary)
        if not mine:
            absent = f"not in this run: {', '.join(f'{name}...' for name in claim.workloads)}"
            why = "; ".join(part for part in (absent if claim.workloads else "", claim.note) if part)
            yield common | {"counterpart_note": words(why)}


def _measured(claim: Published, common: Row, summary: Summary) -> Iterator[Row]:
    timed = [at for at in summary.at.values() if at.best is not None]
    about = common | {"workload": words(summary.info.title)}
    if not timed:
        why = "; ".join(part for part in ("no dynamic network was timed; see Not measured", claim.note) if part)
        yield about | {"counterpart_note": words(why)}
    for at in [*timed[:1], *timed[1:][-1:]]:
        yield about | _figures(at) | {"counterpart_note": words(claim.note or None)}


def _figures(at: Standing) -> Row:
    return {
        "batch": count(at.batch_size),
        "saved": number(None if at.ideal is None else 100 * (1 - 1 / at.ideal), 2),
        "claim_ideal": ratio(at.ideal),
        "step_1": ratio(None if at.masking is None else at.masking.speedup.value),
        "step_2": ratio(None if at.written is None else at.written.speedup.value),
        "step_3": with_interval(at.deployed.speedup) if at.deployed is not None else ratio(None),
    }
