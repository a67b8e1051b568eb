"""How many floating-point operations an operator executes: closed forms, and the operators that count zero.

One multiply-accumulate (MAC) is 2 FLOPs. Sums of products count: matrix products, convolutions, attention, recurrent
layers. Element-wise operators, normalisation, softmax, reductions, pooling, interpolation and everything that only
moves data count zero FLOPs, as papers count (He et al. 2016, table 1: multiply-adds of convolutions and linear layers)
and torch's own counter does; their bytes are counted. A bias adds nothing.

Complex numbers are counted by their real products: a MAC of two complex numbers is 4 real ones. A convolution of
complex numbers is executed by torch as three real convolutions, and is counted as those.

Attention counts the full square of queries x keys, causal or masked or not: 2 (E + Ev) FLOPs per pair and head, the
convention of PaLM (Chowdhery et al. 2022, appendix B) and of torch's counter. A kernel that leaves out blocks above the
diagonal executes fewer.

A Fourier transform is no sum of products that a kernel executes as such; it counts 5 N log2 N real FLOPs for N complex
points and half of that for N real ones, as FFTW's authors count (Frigo and Johnson 2005) whatever the algorithm.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

Formula = Callable[..., int]


def _flops_per_mac(a: Tensor) -> int:
    """Both factors of an operator's products are of one type."""
    return 8 if a.is_complex() else 2


def _product(out: Any, a: Tensor, b: Tensor, *_: Any, **__: Any) -> int:
    """[..., m, k] x [..., k, n]."""
    return _flops_per_mac(a) * a.numel() * b.shape[-1]


def _product_added(out: Any, bias: Tensor, a: Tensor, b: Tensor, *_: Any, **__: Any) -> int:
    return _product(out, a, b)


def _vector_product(out: Any, a: Tensor, *_: Any, **__: Any) -> int:
    """[m, k] x [k] or [k] x [k]."""
    return _flops_per_mac(a) * a.numel()


def _vector_product_added(out: Any, bias: Tensor, a: Tensor, *_: Any, **__: Any) -> int:
    return _vector_product(out, a)


def _convolution(
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    *_: Any,
    **__: Any,
) -> int:
    """One kernel per output (transposed: input) position: weight [out, in / groups, *kernel]."""
    positions = x if transposed else out
    return 2 * int(positions.numel() * weight[0].numel())


def _linear(out: Any, x: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    """x [..., in], weight [out, in]."""
    return _flops_per_mac(x) * x.numel() * weight.shape[0]


def _whole_convolution(out: Tensor, x: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    """`conv1d` to `conv3d`, whose padding may be a string; otherwise as `_convolution`."""
    real = 3 if out.is_complex() else 1  # the three of Gauss's trick
    return 2 * real * int(out.numel() * weight[0].numel())


def _attention(out: Any, q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> int:
    """q [B, H, T, E], k [B, H', S, E], v [B, H', S, Ev]; H is a multiple of H'."""
    pairs = q[..., 0].numel() * k.shape[-2]
    return 2 * pairs * (q.shape[-1] + v.shape[-1])


def _recurrent(x: Tensor, weights: list[Tensor]) -> int:
    """x [..., in], possibly packed: every step is multiplied by every weight matrix once."""
    steps = x.numel() // x.shape[-1]
    return 2 * steps * sum(w.numel() for w in weights if w.dim() == 2)


def _mkldnn_rnn(out: Any, x: Tensor, w_input: Tensor, w_hidden: Tensor, *_: Any, **__: Any) -> int:
    return _recurrent(x, [w_input, w_hidden])


def _cudnn_rnn(out: Any, x: Tensor, weights: list[Tensor], *_: Any, **__: Any) -> int:
    return _recurrent(x, weights)


def _grouped_product(out: Tensor, a: Tensor, b: Tensor, offs: Tensor | None = None, *_: Any, **__: Any) -> int:
    """Rows after the last offset are in no group and not computed; the offsets of a fake tensor are unknown."""
    if a.dim() == 2 and b.dim() == 3 and offs is not None and not _is_fake(offs):
        return 2 * int(offs[-1]) * a.shape[1] * b.shape[2]
    return 2 * a.numel() * b.shape[-1]


def _is_fake(t: Tensor) -> bool:
    return t.is_meta or isinstance(t, torch._subclasses.FakeTensor)


def _embedding_bag(out: Any, weight: Tensor, indices: Tensor, *args: Any, **kwargs: Any) -> int:
    """Rows are summed (zero FLOPs, like pooling); with a weight per row every number is a MAC."""
    weighted = len(args) > 4 and args[4] is not None
    return 2 * indices.numel() * weight.shape[1] if weighted else 0


def _multi_head(out: Any, q: Tensor, k: Tensor, v: Tensor, embed_dim: int, heads: int, *_: Any, **__: Any) -> int:
    """q [B, T, D], k and v [B, S, D]: four projections and the attention between them."""
    pairs = q.shape[0] * q.shape[1] * k.shape[1]
    return 2 * embed_dim * (2 * q.numel() + k.numel() + v.numel()) + 2 * pairs * 2 * embed_dim


def _encoder_layer(out: Any, x: Tensor, embed_dim: int, heads: int, *args: Any, **kwargs: Any) -> int:
    """x [B, T, D]: multi-head attention, then two linear layers (ffn_weight_1 and ffn_weight_2 of the operator)."""
    feed_forward: int = args[11].numel() + args[13].numel()
    return _multi_head(out, x, x, x, embed_dim, heads) + 2 * x.shape[0] * x.shape[1] * feed_forward


def _fourier(points: Tensor, dims: list[int], per_point: float) -> int:
    """Transforms over `dims`, as many as the other dimensions have numbers."""
    length = math.prod(points.shape[d] for d in dims)
    return round(per_point * points.numel() * math.log2(length)) if length else 0


def _complex_fourier(out: Any, x: Tensor, dims: list[int], *_: Any, **__: Any) -> int:
    return _fourier(x, dims, 5.0)


def _real_fourier(out: Any, x: Tensor, dims: list[int], *_: Any, **__: Any) -> int:
    """From real numbers x."""
    return _fourier(x, dims, 2.5)


def _fourier_to_real(out: Tensor, x: Tensor, dims: list[int], *_: Any, **__: Any) -> int:
    """Back to real numbers; of x only one half is given."""
    return _fourier(out, dims, 2.5)


FORMULAS: dict[str, Formula] = {
    "mm": _product,
    "bmm": _product,
    "_int_mm": _product,
    "_scaled_mm": _product,
    "addmm": _product_added,
    "_addmm_activation": _product_added,
    "baddbmm": _product_added,
    "addbmm": _product_added,
    "mv": _vector_product,
    "dot": _vector_product,
    "vdot": _vector_product,
    "addmv": _vector_product_added,
    "convolution": _convolution,
    "_convolution": _convolution,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_flash_attention": _attention,
    "_scaled_dot_product_efficient_attention": _attention,
    "_scaled_dot_product_cudnn_attention": _attention,
    "_scaled_dot_product_fused_attention_overrideable": _attention,
    "mkldnn_rnn_layer": _mkldnn_rnn,
    "_cudnn_rnn": _cudnn_rnn,
    "_grouped_mm": _grouped_product,
    "_embedding_bag": _embedding_bag,
    "_embedding_bag_forward_only": _embedding_bag,
    "_native_multi_head_attention": _multi_head,
    "_transformer_encoder_layer_fwd": _encoder_layer,
    "_fft_c2c": _complex_fourier,
    "_fft_r2c": _real_fourier,
    "_fft_c2r": _fourier_to_real,
}

# Composite, but counted whole: decomposing a network's most frequent operators would take most of the time.
WHOLE: dict[str, Formula] = {
    "linear": _linear,
    "conv1d": _whole_convolution,
    "conv2d": _whole_convolution,
    "conv3d": _whole_convolution,
}
FORMULAS |= WHOLE

_NORMALISATION = """
    native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_functional
    _native_batch_norm_legit_no_training _batch_norm_with_update _batch_norm_no_update cudnn_batch_norm
    native_layer_norm native_group_norm _fused_rms_norm linalg_vector_norm norm renorm native_dropout _fused_dropout
    _softmax _log_softmax _safe_softmax _masked_softmax logsumexp _weight_norm_interface
"""
_ELEMENTWISE = """
    addr outer rsub _prelu_kernel glu log_sigmoid_forward hardswish floor_divide mse_loss smooth_l1_loss huber_loss
    binary_cross_entropy binary_cross_entropy_with_logits nll_loss_forward nll_loss2d_forward complex polar
    _thnn_fused_lstm_cell _thnn_fused_gru_cell _add_relu
"""
_REDUCTIONS = """
    sum mean prod any all amax amin argmax argmin max min aminmax _aminmax var std var_mean std_mean median nanmedian
    mode count_nonzero dist trace bincount histc cumsum cumprod cummax cummin _cummax_helper _cummin_helper
    logcumsumexp _logcumsumexp equal allclose _is_all_true _is_any_true segment_reduce
"""
_POOLING = """
    max_pool2d_with_indices max_pool3d_with_indices mkldnn_max_pool2d mkldnn_max_pool3d avg_pool1d avg_pool2d avg_pool3d
    adaptive_max_pool2d adaptive_max_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d mkldnn_adaptive_avg_pool2d
    upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact2d upsample_linear1d
    upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa
    grid_sampler_2d grid_sampler_3d cudnn_grid_sampler affine_grid_generator
"""
_ORDER = """
    sort topk kthvalue searchsorted bucketize isin _unique _unique2 unique_dim unique_consecutive
    unique_dim_consecutive nonzero nonzero_static
"""
_MOVEMENT = """
    copy _to_copy clone cat stack _stack _chunk_cat repeat repeat_interleave roll flip rot90 tril triu block_diag
    diag_embed index index_select _unsafe_index _unsafe_masked_index gather take embedding masked_select index_put
    _index_put_impl _unsafe_index_put index_add index_copy index_fill index_reduce scatter scatter_add scatter_reduce
    masked_fill masked_scatter put constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d
    replication_pad2d replication_pad3d im2col col2im pixel_shuffle pixel_unshuffle channel_shuffle select_scatter
    slice_scatter diagonal_scatter as_strided_scatter unsafe_split unsafe_split_with_sizes split_with_sizes_copy
    _reshape_copy to_mkldnn _to_dense _pack_padded_sequence _pin_memory _local_scalar_dense
"""
_CREATION = """
    arange linspace logspace range zeros ones full zeros_like ones_like full_like new_zeros new_ones new_full eye
    scalar_tensor tril_indices triu_indices fill zero rand rand_like randn randn_like randint randint_like randperm
    normal normal_functional uniform random bernoulli multinomial exponential geometric log_normal cauchy poisson
    hann_window hamming_window blackman_window bartlett_window kaiser_window
"""
FREE: frozenset[str] = frozenset(
    (_NORMALISATION + _ELEMENTWISE + _REDUCTIONS + _POOLING + _ORDER + _MOVEMENT + _CREATION).split()
)

_NOTHING = """
    empty empty_like empty_permuted empty_strided new_empty new_empty_strided _efficientzerotensor
    _unsafe_view _reshape_alias detach squeeze unsqueeze t transpose as_strided set resize resize_as is_same_size
    _has_same_storage_numel is_pinned _nnz _dimI _dimV dense_dim sparse_dim is_coalesced record_stream
    _fused_sdp_choice _assert_async _assert_scalar _assert_tensor_metadata _functional_assert_async
    _functional_assert_scalar _cudnn_init_dropout_state _print
"""
NO_WORK: frozenset[str] = frozenset(_NOTHING.split())


def base_name(operator: Any) -> str:
    """`aten.add_.Tensor` -> `add`: in-place and out forms compute what the plain form computes."""
    name: str = operator.overloadpacket.__name__
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


@cache
def kind(operator: Any) -> str:
    """What an operator does.

    'composite': decomposes into others (dispatched in inference mode only) and is not counted whole;
    'view': no work;
    'formula'; 'free': zero FLOPs, moves bytes; 'unknown'.
    """
    namespace, name = operator.namespace, base_name(operator)
    if namespace in ("profiler", "prim"):
        return "view"
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), "CompositeImplicitAutograd")
    if composite and not (namespace == "aten" and name in WHOLE):
        return "composite"
    if namespace != "aten":
        return "unknown"
    if operator.is_view or name in NO_WORK or name.startswith("sym_"):
        return "view"
    if name in FORMULAS:
        return "formula"
    return "free" if name in FREE or _elementwise(name) else "unknown"


def _elementwise(name: str) -> bool:
    """Whether torch itself tags the operator as element-wise or as a reduction."""
    packet = getattr(torch.ops.aten, name, None)
    if packet is None:
        return False
    tags = {tag for overload in packet.overloads() for tag in getattr(packet, overload).tags}
    return bool(tags & {torch.Tag.pointwise, torch.Tag.reduction, torch.Tag.view_copy})
