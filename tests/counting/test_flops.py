"""Every operator against its closed form, in both modes a model is run in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.counting.flops import FlopCounter, NoFormulaError
from dynbench.counting.formulas import kind
from dynbench.unavailable import Unavailable

MODES = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
B, T, S, D, H = 2, 6, 5, 8, 2


def counted(call: Callable[[], Any], mode: str = "no_grad", *, strict: bool = True) -> FlopCounter:
    with MODES[mode](), FlopCounter(strict=strict) as work:
        call()
    return work


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), device="cpu").to(torch.get_default_device())


def conv(out: tuple[int, ...], inputs: int, kernel: int) -> int:
    """2 * positions and channels out * channels in per group * kernel size."""
    return 2 * torch.Size(out).numel() * inputs * kernel


def attention(queries: int, keys: int, width: int) -> int:
    return 2 * B * H * queries * keys * 2 * width


def recurrent(gates: int, layers: list[int], hidden: int, directions: int = 1) -> int:
    return 2 * T * B * directions * sum(gates * hidden * (inputs + hidden) for inputs in layers)


def cases(device: str) -> dict[str, tuple[Callable[[], Any], int]]:
    """Calls on this device, and the FLOPs each executes."""
    with torch.device(device):
        return _cases()


def _cases() -> dict[str, tuple[Callable[[], Any], int]]:
    a, b, c = randn(3, 4), randn(4, 5), randn(3, 5)
    A, Z, C = randn(2, 3, 4), randn(2, 4, 5), randn(2, 3, 5)
    image, signal, x = randn(B, 4, 7, 7), randn(B, 4, 9), randn(B, T, D)
    q, k, v = randn(B, H, T, D), randn(B, H, S, D), randn(B, H, S, D)
    steps = randn(T, B, D)
    lstm, both_ways = nn.LSTM(D, 5), nn.LSTM(D, 5, num_layers=2, bidirectional=True)
    mha = nn.MultiheadAttention(D, H, batch_first=True).eval()
    layer = nn.TransformerEncoderLayer(D, H, 16, batch_first=True).eval()
    bag = nn.EmbeddingBag(10, D, mode="sum")
    bags, offsets = torch.tensor([1, 2, 3]), torch.tensor([0, 2])
    z, Zc = torch.complex(a, a), torch.complex(A, A)
    groups, ends = torch.tensor([2, 2, 5], dtype=torch.int32), torch.tensor([8, 16], dtype=torch.int32)

    return {
        "mm": (lambda: a @ b, 2 * 3 * 4 * 5),
        "addmm": (lambda: torch.addmm(c, a, b), 2 * 3 * 4 * 5),
        "bmm": (lambda: A @ Z, 2 * 2 * 3 * 4 * 5),
        "baddbmm": (lambda: torch.baddbmm(C, A, Z), 2 * 2 * 3 * 4 * 5),
        "mv": (lambda: a @ b[:, 0], 2 * 3 * 4),
        "addmv": (lambda: torch.addmv(a[:, 0], a, b[:, 0]), 2 * 3 * 4),
        "dot": (lambda: a[0] @ b[:, 0], 2 * 4),
        "outer": (lambda: torch.outer(a[0], b[0]), 0),
        "matmul of four dimensions": (lambda: q @ k.mT, 2 * B * H * T * S * D),
        "linear": (lambda: nn.Linear(D, 3)(x), 2 * B * T * D * 3),
        "linear of one item": (lambda: nn.Linear(D, 3, bias=False)(x[:1, 0]), 2 * D * 3),
        "einsum": (lambda: torch.einsum("btd,bsd->bts", x, x), 2 * B * T * T * D),
        "complex mm: four real products each": (lambda: z @ z.mT, 8 * 3 * 4 * 3),
        "complex bmm": (lambda: Zc @ Zc.mT, 8 * 2 * 3 * 4 * 3),
        "complex addmm": (lambda: torch.addmm(z @ z.mT, z, z.mT), 2 * 8 * 3 * 4 * 3),
        "complex mv and dot": (lambda: (z @ z[0], torch.vdot(z[0], z[0])), 8 * 3 * 4 + 8 * 4),
        "complex linear": (lambda: nn.Linear(4, 5, dtype=torch.cfloat)(z), 8 * 3 * 4 * 5),
        "complex einsum, as in a spectral layer": (
            lambda: torch.einsum("bim,iom->bom", Zc, randn(3, 5, 4).cfloat()),
            8 * 2 * 3 * 5 * 4,
        ),
        "complex conv2d: torch runs three real ones": (
            lambda: nn.Conv2d(4, 8, 3, dtype=torch.cfloat)(torch.complex(image, image)),
            3 * conv((B, 8, 5, 5), 4, 9),
        ),
        "conv2d": (lambda: nn.Conv2d(4, 8, 3)(image), conv((B, 8, 5, 5), 4, 9)),
        "conv2d strided and padded": (lambda: nn.Conv2d(4, 8, 3, 2, 1)(image), conv((B, 8, 4, 4), 4, 9)),
        "conv2d grouped": (lambda: nn.Conv2d(4, 8, 3, groups=2)(image), conv((B, 8, 5, 5), 2, 9)),
        "conv2d depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4)(image), conv((B, 4, 5, 5), 1, 9)),
        "conv1d": (lambda: nn.Conv1d(4, 8, 3)(signal), conv((B, 8, 7), 4, 3)),
        "conv transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2)(image), conv((B, 4, 7, 7), 6, 9)),
        "conv transposed grouped": (lambda: nn.ConvTranspose1d(4, 6, 3, groups=2)(signal), conv((B, 4, 9), 3, 3)),
        "attention": (lambda: F.scaled_dot_product_attention(q, k, v), attention(T, S, D)),
        "attention causal: the full square": (
            lambda: F.scaled_dot_product_attention(q, q, q, is_causal=True),
            attention(T, T, D),
        ),
        "attention masked": (
            lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=torch.ones(T, S, dtype=torch.bool)),
            attention(T, S, D),
        ),
        "attention with other values": (
            lambda: F.scaled_dot_product_attention(q, k, v[..., :4]),
            2 * B * H * T * S * (D + 4),
        ),
        "multi-head attention": (
            lambda: mha(x, x, x, need_weights=False),
            4 * 2 * B * T * D * D + attention(T, T, D // H),
        ),
        "encoder layer": (
            lambda: layer(x),
            4 * 2 * B * T * D * D + attention(T, T, D // H) + 2 * 2 * B * T * D * 16,
        ),
        "lstm": (lambda: lstm(steps), recurrent(4, [D], 5)),
        "lstm of two layers both ways": (lambda: both_ways(steps), recurrent(4, [D, 10], 5, 2)),
        "lstm cell": (lambda: nn.LSTMCell(D, 5)(steps[0]), recurrent(4, [D], 5) // T),
        "gru": (lambda: nn.GRU(D, 5)(steps), recurrent(3, [D], 5)),
        "gru cell": (lambda: nn.GRUCell(D, 5)(steps[0]), recurrent(3, [D], 5) // T),
        "grouped product: rows past the last group are left out": (
            lambda: F.grouped_mm(randn(6, 16).bfloat16(), randn(3, 16, 32).bfloat16(), offs=groups),
            2 * 5 * 16 * 32,
        ),
        "grouped product over groups of k": (
            lambda: F.grouped_mm(randn(16, 8).bfloat16().T, randn(16, 8).bfloat16(), offs=ends),
            2 * 8 * 16 * 8,
        ),
        "fft": (lambda: torch.fft.fft(torch.complex(randn(3, 8), randn(3, 8))), 3 * 5 * 8 * 3),
        "fft over two dimensions": (
            lambda: torch.fft.fft2(torch.complex(randn(2, 4, 8), randn(2, 4, 8))),
            2 * 5 * 32 * 5,
        ),
        "fft of real numbers and back": (
            lambda: torch.fft.irfft(torch.fft.rfft(randn(3, 8)), n=8),
            2 * (3 * 5 * 8 * 3) // 2,
        ),
        "fft of one point": (lambda: torch.fft.rfft(randn(3, 1)), 0),
        "embedding bag": (lambda: bag(bags, offsets), 0),
        "embedding bag, weighted": (lambda: bag(bags, offsets, per_sample_weights=randn(3)), 2 * 3 * D),
        "batch norm, relu, pooling": (lambda: F.adaptive_avg_pool2d(nn.BatchNorm2d(4).eval()(image).relu(), 1), 0),
        "norms, gelu, softmax": (lambda: F.gelu(nn.LayerNorm(D)(x)).softmax(-1).log_softmax(-1), 0),
        "rms norm": (lambda: nn.RMSNorm(D)(x), 0),
        "group norm": (lambda: nn.GroupNorm(2, 4)(image), 0),
        "max pooling": (lambda: F.max_pool2d(image, 3, 2, 1), 0),
        "reductions": (lambda: (x.mean(1), x.amax(-1), x.var(1), x.argmax(-1), x.cumsum(1), x.norm()), 0),
        "order": (lambda: (x.topk(2, -1), x.sort(-1), x[0, 0].argsort(), bags.bincount()), 0),
        "movement": (
            lambda: (
                x[bags % B],
                x.index_select(0, bags % B),
                torch.cat([x, x]),
                torch.where(x > 0, x, 0),
                x.gather(1, torch.zeros(B, 1, D, dtype=torch.long)),
                F.pad(x, (1, 1)),
                x.repeat(2, 1, 1),
                x.flip(0),
            ),
            0,
        ),
        "putting back": (
            lambda: (
                x.clone().index_copy_(0, bags[:1] % B, x[:1]),
                x.clone().index_add_(0, bags[:1] % B, x[:1]),
                torch.zeros(B, T).scatter_(1, bags.expand(B, 3), 1.0),
                x.clone().masked_fill_(x > 0, 0),
            ),
            0,
        ),
        "embedding and loss": (
            lambda: F.cross_entropy(nn.Embedding(10, D)(bags), bags),
            0,
        ),
        "random": (
            lambda: (torch.rand(3), torch.randn(3).bernoulli_(0.5), torch.randint(3, (2,)), torch.randperm(3)),
            0,
        ),
        "counting": (lambda: (bags.unique(), (x > 0).nonzero(), (x > 0).sum().item(), F.one_hot(bags)), 0),
    }


CASES = cases("cpu")
a, b, x, A, Z = randn(3, 4), randn(4, 5), randn(B, T, D), randn(2, 3, 4), randn(2, 4, 5)
mha = nn.MultiheadAttention(D, H, batch_first=True).eval()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES)
def test_operator_counts_its_closed_form(case: str, mode: str) -> None:
    call, expected = CASES[case]
    assert counted(call, mode).flops == expected


@pytest.mark.parametrize("mode", MODES)
def test_both_modes_see_the_same_calls_and_bytes(mode: str) -> None:
    image = randn(B, 4, 7, 7)
    net = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(200, 3)).eval()
    work, plain = counted(lambda: net(image), mode), counted(lambda: net(image))
    assert (work.operator_calls, work.bytes_touched) == (plain.operator_calls, plain.bytes_touched)


def test_an_operator_without_a_formula_raises_when_strict() -> None:
    with pytest.raises(NoFormulaError, match="_cdist_forward"):
        counted(lambda: torch.cdist(a, a))


def test_an_operator_without_a_formula_makes_flops_unavailable_and_the_rest_goes_on() -> None:
    work = counted(lambda: (torch.cdist(a, a), a @ b), strict=False)
    assert work.flops == Unavailable(unavailable="operator aten._cdist_forward.default has no formula")
    assert work.uncounted == {"aten._cdist_forward.default": 1} and work.operator_calls == 2


def test_an_operator_from_another_library_is_unknown() -> None:
    @torch.library.custom_op("dynbench_test::double", mutates_args=())
    def double(x: Tensor) -> Tensor:
        return 2 * x

    work = counted(lambda: double(a), strict=False)
    assert isinstance(work.flops, Unavailable) and "dynbench_test.double" in work.flops.unavailable


def test_only_the_branch_taken_by_cond_counts() -> None:
    net = nn.Linear(D, D)

    def blocks(threshold: float) -> Tensor:
        y = x
        for _ in range(3):
            y = torch.cond(y.sum() > threshold, lambda t: net(net(t)), lambda t: t.clone(), (y,))
        return y

    assert counted(lambda: blocks(-1e9)).flops == 3 * 2 * (2 * B * T * D * D)
    assert counted(lambda: blocks(1e9)).flops == 0


def test_every_step_of_while_loop_counts() -> None:
    square = randn(4, 4)
    work = counted(
        lambda: torch.while_loop(lambda i, t: i < 3, lambda i, t: (i + 1, t @ square), (torch.tensor(0), square))
    )
    assert work.flops == 3 * 2 * 4 * 4 * 4


def test_grouped_attention_heads_count_by_query_heads() -> None:
    q, shared = randn(B, H, T, D), randn(B, 1, S, D)
    work = counted(lambda: F.scaled_dot_product_attention(q, shared, shared, enable_gqa=True))
    assert work.flops == attention(T, S, D)


def test_views_and_allocations_are_no_calls_and_touch_nothing() -> None:
    work = counted(lambda: (x.view(-1), x.transpose(0, 1), x[0], torch.empty(9), x.detach(), x.expand(3, B, T, D)))
    assert (work.operator_calls, work.bytes_touched) == (0, 0)


def test_bytes_are_those_of_operands_and_result() -> None:
    assert counted(lambda: a @ b).bytes_touched == 4 * (12 + 20 + 15)
    mine = a.clone()
    assert counted(lambda: mine.add_(1)).bytes_touched == 4 * (12 + 12)
    assert counted(lambda: a.transpose(0, 1).reshape(-1)).bytes_touched == 4 * (12 + 12)
    assert counted(lambda: torch.zeros(3)).bytes_touched == 4 * 3


def test_bytes_of_a_table_are_those_of_the_rows_taken_or_written() -> None:
    table, rows, part = randn(100, D), torch.tensor([3, 4]), randn(2, D)
    row, index = 4 * D, 8 * 2
    assert counted(lambda: table.index_select(0, rows)).bytes_touched == 2 * 2 * row + index
    assert counted(lambda: F.embedding(rows, table)).bytes_touched == 2 * 2 * row + index
    assert counted(lambda: table.index_copy_(0, rows, part)).bytes_touched == 2 * 2 * row + index
    assert counted(lambda: table.index_add_(0, rows, part)).bytes_touched == 3 * 2 * row + index
    assert counted(lambda: table.index_copy(0, rows, part)).bytes_touched == 2 * 100 * row + 2 * row + index


def test_work_belongs_to_the_innermost_part_only() -> None:
    work = FlopCounter()
    with torch.no_grad(), work:
        a @ b
        work.enter("body", "stage", 0)
        a @ b
        work.enter("decide", "gate", None)
        A @ Z
        work.exit()
        a @ b
        work.exit()
    assert work.by_part == {None: 120, ("body", "stage", 0): 240, ("decide", "gate", None): 240}
    assert work.flops == 600


def test_counting_changes_no_answer() -> None:
    with torch.no_grad():
        plain = mha(x, x, x)[0]
        with FlopCounter():
            assert torch.equal(mha(x, x, x)[0], plain)


@pytest.mark.parametrize(
    "name",
    [
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
        "_cudnn_rnn",
        "_scaled_dot_product_flash_attention",
        "_embedding_bag_forward_only",
    ],
)
def test_operators_that_only_a_gpu_has_are_known(name: str) -> None:
    assert kind(getattr(torch.ops.aten, name).default) == "formula"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("case", CASES)
def test_operator_counts_its_closed_form_on_cuda(case: str) -> None:
    call, expected = cases("cuda")[case]
    with torch.device("cuda"):
        assert counted(call).flops == expected


def test_the_types_that_are_multiplied_are_known() -> None:
    work = counted(lambda: (a @ b, a.bfloat16() @ b.bfloat16(), (a @ b).double() + 1))
    assert work.multiplied_in == {torch.float32, torch.bfloat16}


def test_a_quantised_layer_has_no_formula_and_the_rest_goes_on() -> None:
    net = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 5)).eval(), {nn.Linear})
    work = counted(lambda: net(a), "inference_mode", strict=False)
    assert isinstance(work.flops, Unavailable) and "quantized.linear_dynamic" in work.flops.unavailable
