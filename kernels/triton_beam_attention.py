"""Attention of all beams of a request to one context, by Triton: keys and values are loaded once for a tile of beams.

Decoding has few queries and a long context, so that whole rows of the GPU would idle if each program walked the context
alone. It is split: programs attend to parts of it, keeping the largest score, the summed exponentials and the weighted
values of each, and a second kernel merges them (the online softmax of Milakov & Gimelshein 2018, arXiv 1805.02867, in
the form of Flash-Decoding).

Legend: M requests times heads of keys, Q queries (beams, times the heads that share a key), S keys, P parts, d head
width.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton_support import dot_type, num_processors, padded

_LOG2_E = 1.4426950408889634
_TILE_KEYS = 64
_MOST_QUERIES = 128  # of a tile


def beam_attention(
    queries_BGQd: Tensor,
    keys_BGSd: Tensor,
    values_BGSd: Tensor,
    visible_BS: Tensor | None,
    num_parts: int | None = None,
) -> Tensor:
    """Scaled dot-product attention (B, G, Q, d); a request that sees no key gets NaN.

    Args:
        visible_BS: bool, the keys that a request sees; None for all.
        num_parts: of the context; None for as many as fill the GPU.
    """
    num_requests, num_heads, num_queries, width = queries_BGQd.shape
    num_keys = keys_BGSd.size(2)
    tile_queries = min(padded(num_queries), _MOST_QUERIES if width <= 64 else _MOST_QUERIES // 2)
    num_tiles = triton.cdiv(num_queries, tile_queries)
    M = num_requests * num_heads
    if num_parts is None:
        num_parts = triton.cdiv(2 * num_processors(queries_BGQd.device), M * num_tiles)
    keys_per_part = triton.cdiv(triton.cdiv(num_keys, max(1, num_parts)), _TILE_KEYS) * _TILE_KEYS
    num_parts = triton.cdiv(num_keys, keys_per_part)
    partial = queries_BGQd.new_empty((M, num_parts, num_queries, width + 2), dtype=torch.float32)
    strides = [*queries_BGQd.stride(), *keys_BGSd.stride(), *values_BGSd.stride()]
    _attend_to_part[(num_tiles, num_parts, M)](
        queries_BGQd,
        keys_BGSd,
        values_BGSd,
        queries_BGQd if visible_BS is None else visible_BS.to(torch.uint8).contiguous(),
        partial,
        *strides,
        num_heads,
        num_queries,
        num_keys,
        keys_per_part,
        width**-0.5 * _LOG2_E,
        WIDTH=width,
        TILE_D=padded(width),
        TILE_Q=tile_queries,
        TILE_S=_TILE_KEYS,
        MASKED=visible_BS is not None,
        DOT=dot_type(queries_BGQd.dtype),
    )
    mixed = torch.empty((num_requests, num_heads, num_queries, width), dtype=values_BGSd.dtype, device=partial.device)
    _merge_parts[(num_tiles, M)](
        partial, mixed, num_parts, num_queries, WIDTH=width, TILE_D=padded(width), TILE_Q=tile_queries
    )
    return mixed


@triton.jit
def _raise_peaks(peaks: tl.tensor, scores: tl.tensor) -> tl.tuple:
    """The larger of old peaks and new scores, what exponents are taken from, and what the old sums fade by."""
    higher = tl.maximum(peaks, scores)
    finite = tl.where(higher == float("-inf"), 0.0, higher)  # where nothing has been seen yet
    return higher, finite, tl.exp2(peaks - finite)


@triton.jit
def _attend_to_part(
    queries: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    visible: tl.tensor,
    partial: tl.tensor,
    q_stride_b: tl.tensor,
    q_stride_g: tl.tensor,
    q_stride_q: tl.tensor,
    q_stride_d: tl.tensor,
    k_stride_b: tl.tensor,
    k_stride_g: tl.tensor,
    k_stride_s: tl.tensor,
    k_stride_d: tl.tensor,
    v_stride_b: tl.tensor,
    v_stride_g: tl.tensor,
    v_stride_s: tl.tensor,
    v_stride_d: tl.tensor,
    num_heads: tl.tensor,
    num_queries: tl.tensor,
    num_keys: tl.tensor,
    keys_per_part: tl.tensor,
    scale: tl.tensor,
    WIDTH: tl.constexpr,
    TILE_D: tl.constexpr,
    TILE_Q: tl.constexpr,
    TILE_S: tl.constexpr,
    MASKED: tl.constexpr,
    DOT: tl.constexpr,
) -> None:
    """Weighted values, largest score and summed exponentials (the last two columns) of a tile of queries in a part."""
    tile, part, m = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    b, g = (m // num_heads).to(tl.int64), (m % num_heads).to(tl.int64)
    at_q = tile * TILE_Q + tl.arange(0, TILE_Q)
    at_d = tl.arange(0, TILE_D)
    is_q, is_d = at_q < num_queries, at_d < WIDTH
    place_q = queries + b * q_stride_b + g * q_stride_g + at_q[:, None] * q_stride_q + at_d[None, :] * q_stride_d
    tile_Qd = tl.load(place_q, mask=is_q[:, None] & is_d[None, :], other=0.0).to(tl.float32) * scale
    tile_Qd = tile_Qd.to(DOT)
    peak_Q = tl.full([TILE_Q], float("-inf"), tl.float32)
    mass_Q = tl.zeros([TILE_Q], tl.float32)
    mixed_Qd = tl.zeros([TILE_Q, TILE_D], tl.float32)
    first = part * keys_per_part
    for start in range(first, tl.minimum(first + keys_per_part, num_keys), TILE_S):
        at_s = start + tl.arange(0, TILE_S)
        is_s = at_s < num_keys
        place_k = keys + b * k_stride_b + g * k_stride_g + at_s[:, None] * k_stride_s + at_d[None, :] * k_stride_d
        place_v = values + b * v_stride_b + g * v_stride_g + at_s[:, None] * v_stride_s + at_d[None, :] * v_stride_d
        inside = is_s[:, None] & is_d[None, :]
        tile_Sd = tl.load(place_k, mask=inside, other=0.0).to(tl.float32).to(DOT)
        values_Sd = tl.load(place_v, mask=inside, other=0.0).to(tl.float32).to(DOT)
        if MASKED:
            is_s = is_s & (tl.load(visible + b * num_keys + at_s, mask=is_s, other=0) != 0)
        scores_QS = tl.dot(tile_Qd, tl.trans(tile_Sd), input_precision="ieee")
        scores_QS = tl.where(is_s[None, :], scores_QS, float("-inf"))
        peak_Q, finite_Q, fade_Q = _raise_peaks(peak_Q, tl.max(scores_QS, 1))
        shares_QS = tl.exp2(scores_QS - finite_Q[:, None])
        mass_Q = mass_Q * fade_Q + tl.sum(shares_QS, 1)
        mixed_Qd = mixed_Qd * fade_Q[:, None] + tl.dot(shares_QS.to(DOT), values_Sd, input_precision="ieee")
    row_Q = ((m.to(tl.int64) * tl.num_programs(1) + part) * num_queries + at_q) * (WIDTH + 2)
    tl.store(partial + row_Q[:, None] + at_d[None, :], mixed_Qd, mask=is_q[:, None] & is_d[None, :])
    tl.store(partial + row_Q + WIDTH, peak_Q, mask=is_q)
    tl.store(partial + row_Q + WIDTH + 1, mass_Q, mask=is_q)


@triton.jit
def _merge_parts(
    partial: tl.tensor,
    mixed: tl.tensor,
    num_parts: tl.tensor,
    num_queries: tl.tensor,
    WIDTH: tl.constexpr,
    TILE_D: tl.constexpr,
    TILE_Q: tl.constexpr,
) -> None:
    """The parts of a tile of queries as one softmax over the whole context."""
    tile, m = tl.program_id(0), tl.program_id(1).to(tl.int64)
    at_q = tile * TILE_Q + tl.arange(0, TILE_Q)
    at_d = tl.arange(0, TILE_D)
    is_q = at_q < num_queries
    inside = is_q[:, None] & (at_d < WIDTH)[None, :]
    peak_Q = tl.full([TILE_Q], float("-inf"), tl.float32)
    mass_Q = tl.zeros([TILE_Q], tl.float32)
    sums_Qd = tl.zeros([TILE_Q, TILE_D], tl.float32)
    for part in range(num_parts):
        row_Q = ((m * num_parts + part) * num_queries + at_q) * (WIDTH + 2)
        part_peak_Q = tl.load(partial + row_Q + WIDTH, mask=is_q, other=0.0)
        part_mass_Q = tl.load(partial + row_Q + WIDTH + 1, mask=is_q, other=1.0)
        part_Qd = tl.load(partial + row_Q[:, None] + at_d[None, :], mask=inside, other=0.0)
        peak_Q, finite_Q, fade_Q = _raise_peaks(peak_Q, part_peak_Q)
        share_Q = tl.exp2(part_peak_Q - finite_Q)
        mass_Q = mass_Q * fade_Q + part_mass_Q * share_Q
        sums_Qd = sums_Qd * fade_Q[:, None] + part_Qd * share_Q[:, None]
    row_Q = (m * num_queries + at_q) * WIDTH
    result_Qd = sums_Qd / mass_Q[:, None]
    tl.store(mixed + row_Q[:, None] + at_d[None, :], result_Qd.to(mixed.dtype.element_ty), mask=inside)
