"""Products of routed rows with their experts' matrices, by Triton: rows are gathered as they are read.

The rows of a mixture's tokens are picked by their routing, multiplied, and scattered. Here the product's kernel reads
row `rows[i]` of its input itself, so that the sorted copy of the tokens, as large as the activations, never exists. The
tiles of all experts are one launch: which expert a tile belongs to follows from the counts on the device, and as many
programs start as there can be tiles, so that the host waits for nothing.

Legend: T tokens, A assignments (rows of the result, sorted by expert), E experts, D inner width, F outer width.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.triton_support import dot_type, padded

_TILE_A, _TILE_F, _TILE_D = 64, 64, 32


class RoutedProduct(torch.autograd.Function):
    """See `kernels.routed_products.routed_product`."""

    @staticmethod
    def forward(ctx: Any, tokens_TD: Tensor, weights_EDF: Tensor, counts_E: Tensor, rows_A: Tensor) -> Tensor:
        tokens_TD = tokens_TD.contiguous()
        ctx.save_for_backward(tokens_TD, weights_EDF, counts_E, rows_A)
        return _multiply_rows(tokens_TD, weights_EDF, counts_E, rows_A)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_AF: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        tokens_TD, weights_EDF, counts_E, rows_A = ctx.saved_tensors
        gradient_AF = gradient_AF.contiguous()
        of_tokens = of_weights = None
        if ctx.needs_input_grad[0]:
            in_place_A = torch.arange(len(rows_A), device=rows_A.device)
            of_rows_AD = _multiply_rows(gradient_AF, weights_EDF.transpose(1, 2), counts_E, in_place_A)
            sums_TD = torch.zeros(tokens_TD.shape, dtype=torch.float32, device=tokens_TD.device)
            of_tokens = sums_TD.index_add_(0, rows_A, of_rows_AD.float()).to(tokens_TD.dtype)
        if ctx.needs_input_grad[1]:
            of_weights = _multiply_transposed(tokens_TD, gradient_AF, counts_E, rows_A).to(weights_EDF.dtype)
        return of_tokens, of_weights, None, None


def _multiply_rows(tokens_TD: Tensor, weights_EDF: Tensor, counts_E: Tensor, rows_A: Tensor) -> Tensor:
    num_experts, inner, outer = weights_EDF.shape
    product_AF = torch.empty((len(rows_A), outer), dtype=tokens_TD.dtype, device=tokens_TD.device)
    most_tiles = triton.cdiv(len(rows_A), _TILE_A) + num_experts  # each expert's last tile may be a part
    _multiply[(most_tiles, triton.cdiv(outer, _TILE_F))](
        tokens_TD,
        weights_EDF,
        counts_E.cumsum(0),
        rows_A,
        product_AF,
        *weights_EDF.stride(),
        num_experts,
        inner,
        outer,
        TILE_A=_TILE_A,
        TILE_F=_TILE_F,
        TILE_D=_TILE_D,
        TILE_E=padded(num_experts),
        DOT=dot_type(tokens_TD.dtype),
    )
    return product_AF


def _multiply_transposed(tokens_TD: Tensor, gradient_AF: Tensor, counts_E: Tensor, rows_A: Tensor) -> Tensor:
    num_experts, inner, outer = len(counts_E), tokens_TD.size(1), gradient_AF.size(1)
    sums_EDF = torch.empty((num_experts, inner, outer), dtype=torch.float32, device=tokens_TD.device)
    _differentiate_weights[(num_experts, triton.cdiv(inner, _TILE_F), triton.cdiv(outer, _TILE_F))](
        tokens_TD,
        gradient_AF,
        counts_E.cumsum(0),
        rows_A,
        sums_EDF,
        inner,
        outer,
        TILE_A=_TILE_D,
        TILE_D=_TILE_F,
        TILE_F=_TILE_F,
        DOT=dot_type(tokens_TD.dtype),
    )
    return sums_EDF


@triton.jit
def _multiply(
    tokens: tl.tensor,
    weights: tl.tensor,
    ends: tl.tensor,
    rows: tl.tensor,
    product: tl.tensor,
    stride_e: tl.tensor,
    stride_d: tl.tensor,
    stride_f: tl.tensor,
    num_experts: tl.tensor,
    inner: tl.tensor,
    outer: tl.tensor,
    TILE_A: tl.constexpr,
    TILE_F: tl.constexpr,
    TILE_D: tl.constexpr,
    TILE_E: tl.constexpr,
    DOT: tl.constexpr,
) -> None:
    """One tile of the result: rows of one expert, some of its columns."""
    at_e = tl.arange(0, TILE_E)
    is_e = at_e < num_experts
    end_E = tl.load(ends + at_e, mask=is_e, other=0).to(tl.int32)
    begin_E = tl.load(ends + at_e - 1, mask=is_e & (at_e > 0), other=0).to(tl.int32)
    tiles_E = tl.where(is_e, (end_E - begin_E + TILE_A - 1) // TILE_A, 0)
    last_tile_E = tl.cumsum(tiles_E, 0)
    expert = tl.sum((last_tile_E <= tl.program_id(0)).to(tl.int32), 0)
    if expert < num_experts:
        is_own = at_e == expert
        first_tile = tl.sum(tl.where(is_own, last_tile_E - tiles_E, 0), 0)
        begin, end = tl.sum(tl.where(is_own, begin_E, 0), 0), tl.sum(tl.where(is_own, end_E, 0), 0)
        at_a = begin + (tl.program_id(0) - first_tile) * TILE_A + tl.arange(0, TILE_A)
        at_f = tl.program_id(1) * TILE_F + tl.arange(0, TILE_F)
        is_a, is_f = at_a < end, at_f < outer
        row_A = tl.load(rows + at_a, mask=is_a, other=0).to(tl.int64)
        matrix = weights + expert.to(tl.int64) * stride_e
        sums_AF = tl.zeros([TILE_A, TILE_F], tl.float32)
        for start in range(0, inner, TILE_D):
            at_d = start + tl.arange(0, TILE_D)
            is_d = at_d < inner
            place_AD = tokens + row_A[:, None] * inner + at_d[None, :]
            place_DF = matrix + at_d[:, None] * stride_d + at_f[None, :] * stride_f
            tile_AD = tl.load(place_AD, mask=is_a[:, None] & is_d[None, :], other=0.0).to(tl.float32).to(DOT)
            tile_DF = tl.load(place_DF, mask=is_d[:, None] & is_f[None, :], other=0.0).to(tl.float32).to(DOT)
            sums_AF += tl.dot(tile_AD, tile_DF, input_precision="ieee")
        place_AF = product + at_a.to(tl.int64)[:, None] * outer + at_f[None, :]
        tl.store(place_AF, sums_AF.to(product.dtype.element_ty), mask=is_a[:, None] & is_f[None, :])


@triton.jit
def _differentiate_weights(
    tokens: tl.tensor,
    gradient: tl.tensor,
    ends: tl.tensor,
    rows: tl.tensor,
    sums: tl.tensor,
    inner: tl.tensor,
    outer: tl.tensor,
    TILE_A: tl.constexpr,
    TILE_D: tl.constexpr,
    TILE_F: tl.constexpr,
    DOT: tl.constexpr,
) -> None:
    """A tile of one expert's derivatives, from all of its rows; zeros where it has none."""
    expert = tl.program_id(0)
    end = tl.load(ends + expert).to(tl.int32)
    begin = tl.load(ends + expert - 1, mask=expert > 0, other=0).to(tl.int32)
    at_d = tl.program_id(1) * TILE_D + tl.arange(0, TILE_D)
    at_f = tl.program_id(2) * TILE_F + tl.arange(0, TILE_F)
    is_d, is_f = at_d < inner, at_f < outer
    sums_DF = tl.zeros([TILE_D, TILE_F], tl.float32)
    for start in range(begin, end, TILE_A):
        at_a = start + tl.arange(0, TILE_A)
        is_a = at_a < end
        row_A = tl.load(rows + at_a, mask=is_a, other=0).to(tl.int64)
        place_AD = tokens + row_A[:, None] * inner + at_d[None, :]
        place_AF = gradient + at_a.to(tl.int64)[:, None] * outer + at_f[None, :]
        tile_AD = tl.load(place_AD, mask=is_a[:, None] & is_d[None, :], other=0.0).to(tl.float32).to(DOT)
        tile_AF = tl.load(place_AF, mask=is_a[:, None] & is_f[None, :], other=0.0).to(tl.float32).to(DOT)
        sums_DF += tl.dot(tl.trans(tile_AD), tile_AF, input_precision="ieee")
    place_DF = sums + (expert.to(tl.int64) * inner + at_d[:, None]) * outer + at_f[None, :]
    tl.store(place_DF, sums_DF, mask=is_d[:, None] & is_f[None, :])
