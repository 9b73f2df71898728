"""Attention within many short rows, read from and written to where the projections around it lie.

A CPU takes hardly longer to multiply matrices of 32 rows than of four, so short rows are packed into blocks, in which
what belongs to other rows is masked. Heads are laid out by one copy of each projection and laid back by another;
torch's composition copies more, scales queries apart, and joins the derivatives of a split projection once more.

Legend: R rows, Q queries and S keys of a row, T either, H heads, P parts, d head width, I = P * H * d numbers of a
token; n blocks of A queries and C keys, or L of either, X = H * n.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_BLOCK = {torch.bfloat16: 32}  # keys of a block: a tile of the matrix unit, and whole vectors for the softmax
_BLOCK_ELSE = 16


def packed_attention(num_heads: int, visible_QS: Tensor | None, *projected: Tensor) -> Tensor:
    """Scaled dot-product attention (R, Q, H * d) within each row.

    Args:
        visible_QS: bool, broadcast to it: the keys that each query of a row may see; None for all.
        projected: queries, keys and values, each (R, T, I) with P = 1, or one with P = 3 that holds them side by side.
    """
    mixed: Tensor = _PackedAttention.apply(num_heads, visible_QS, *projected)
    return mixed


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, num_heads: int, visible_QS: Tensor | None, *projected: Tensor) -> Tensor:
        num_queries, num_keys = projected[0].size(1), projected[-1].size(1)
        head_width = sum(part.size(-1) for part in projected) // (3 * num_heads)
        least = _BLOCK.get(projected[0].dtype, _BLOCK_ELSE)
        rows_of_block = max(1, least // num_keys)
        leasts = [0, least, least][-len(projected) :]  # queries by themselves need not fill a block
        packed = [_pack(part, head_width, rows_of_block, size) for part, size in zip(projected, leasts, strict=True)]
        queries, keys, values = _split(packed, num_heads)
        visible_QS = torch.ones(1, 1, dtype=torch.bool) if visible_QS is None else visible_QS
        visible_QS = visible_QS.expand(num_queries, num_keys)
        mask_AC = _mask(visible_QS, rows_of_block, queries.size(1), keys.size(1))
        mask_XAC = mask_AC.to(queries.dtype).expand(len(queries), -1, -1)
        scores_XAC = torch.baddbmm(mask_XAC, queries, keys.mT, alpha=head_width**-0.5)
        weights_XAC = scores_XAC.softmax(dim=-1)
        ctx.save_for_backward(weights_XAC, *packed)
        ctx.rows_of_block, ctx.shapes = rows_of_block, [part.shape[:2] for part in projected]
        return _unpack(torch.bmm(weights_XAC, values).unflatten(0, (num_heads, -1)), ctx.shapes[0], rows_of_block)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weights_XAC, *packed = ctx.saved_tensors
        head_width = packed[0].size(-1)
        num_heads = gradient.size(-1) // head_width
        queries, keys, values = _split(packed, num_heads)
        gradient_XAd = _pack(gradient, head_width, ctx.rows_of_block, queries.size(1)).flatten(0, 1)
        to_scores = torch.bmm(gradient_XAd, values.mT)
        to_scores = torch.ops.aten._softmax_backward_data(to_scores, weights_XAC, -1, weights_XAC.dtype)
        to_scores.mul_(head_width**-0.5)
        results = [torch.empty_like(part) for part in packed]
        to_queries, to_keys, to_values = _split(results, num_heads)
        torch.bmm(to_scores, keys, out=to_queries)
        torch.bmm(to_scores.mT, queries, out=to_keys)
        torch.bmm(weights_XAC.mT, gradient_XAd, out=to_values)
        unpacked = (_unpack(part, shape, ctx.rows_of_block) for part, shape in zip(results, ctx.shapes, strict=True))
        return None, None, *unpacked


def _split(packed: list[Tensor], num_heads: int) -> list[Tensor]:
    """Queries, keys and values as views, each (X, L, d)."""
    return [heads.flatten(0, 1) for part in packed for heads in part.split(num_heads)]


def _mask(visible_QS: Tensor, rows_of_block: int, num_queries: int, num_keys: int) -> Tensor:
    """What is added to the scores of a block, float32 (A, C): 0 for the keys of its own row that a query sees.

    Queries that only fill a block up see all keys, so that their weights are numbers.
    """
    seen = torch.block_diag(*[visible_QS.float()] * rows_of_block)
    mask_AC = torch.full((num_queries, num_keys), float("-inf"))
    mask_AC[len(seen) :] = 0
    mask_AC[: len(seen), : seen.size(1)].masked_fill_(seen > 0, 0.0)
    return mask_AC


def _pack(rows_RTI: Tensor, head_width: int, rows_of_block: int, least: int) -> Tensor:
    """(R, T, I) -> (P * H, n, L, d), `rows_of_block` rows side by side in a block of `least` tokens, zeros behind."""
    used = rows_of_block * rows_RTI.size(1)
    rows_HNd = rows_RTI.reshape(-1, rows_RTI.size(-1) // head_width, head_width).transpose(0, 1)
    num_full, rest = divmod(rows_HNd.size(1), used)
    packed = rows_RTI.new_empty(len(rows_HNd), num_full + (rest > 0), max(used, least), head_width)
    packed[:, :num_full, :used] = rows_HNd[:, : num_full * used].unflatten(1, (num_full, used))
    packed[:, :num_full, used:] = 0
    packed[:, num_full:, :rest] = rows_HNd[:, None, num_full * used :]
    packed[:, num_full:, rest:] = 0
    return packed


def _unpack(packed_HnLd: Tensor, shape: torch.Size, rows_of_block: int) -> Tensor:
    """What `_pack` was given, (R, T, I), by its R and T."""
    used = rows_of_block * shape[1]
    num_full, rest = divmod(shape.numel(), used)
    rows_NHd = packed_HnLd.new_empty(shape.numel(), len(packed_HnLd), packed_HnLd.size(-1))
    rows_HNd = rows_NHd.transpose(0, 1)
    rows_HNd[:, : num_full * used].unflatten(1, (num_full, used)).copy_(packed_HnLd[:, :num_full, :used])
    rows_HNd[:, num_full * used :] = packed_HnLd[:, num_full:, :rest].flatten(1, 2)
    return rows_NHd.flatten(1).unflatten(0, shape)
