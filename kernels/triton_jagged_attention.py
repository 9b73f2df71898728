"""Causal self-attention within sequences of all lengths, biased by place and time, forward and backward, by Triton.

Sequences stand one behind the other, so that padding is neither stored nor multiplied, and the biases of a tile are
looked up where they are added: the (T, T) tables of a batch, which cost more than its activations, never exist. The
backward pass computes the scores again (FlashAttention-2, Dao 2023, arXiv 2307.08691, section 3.1): one kernel a tile
of queries for their derivatives and the biases', one a tile of keys for those of keys and values.

Legend: T positions of all sequences, H heads, d head width, B sequences, P distances, I intervals, Q and S positions of
a tile.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.triton_support import dot_type, padded

_NUM_COPIES = 32  # of the biases' derivatives, so that fewer programs add to the same numbers


class JaggedAttention(torch.autograd.Function):
    """See `kernels.jagged_attention.attend_jagged`, whose arguments come checked."""

    @staticmethod
    def forward(
        ctx: Any,
        queries_THd: Tensor,
        keys_THd: Tensor,
        values_THd: Tensor,
        place_bias_P: Tensor | None,
        interval_bias_I: Tensor | None,
        times_T: Tensor | None,
        offsets: Tensor,
        longest: int,
        scale: float,
        softmax: bool,
        log_step: float,
    ) -> Tensor:
        queries_THd, keys_THd, values_THd = (x.contiguous() for x in (queries_THd, keys_THd, values_THd))
        mixed_THd = torch.empty_like(values_THd)
        totals_TH = torch.empty(values_THd.shape[:2], dtype=torch.float32, device=values_THd.device)
        ctx.sizes = _Launch(queries_THd, place_bias_P, interval_bias_I, offsets, longest, scale, softmax, log_step)
        ctx.save_for_backward(
            queries_THd, keys_THd, values_THd, place_bias_P, interval_bias_I, times_T, offsets, mixed_THd, totals_TH
        )
        inputs = ctx.sizes.inputs(queries_THd, keys_THd, values_THd, place_bias_P, interval_bias_I, times_T, offsets)
        _attend[ctx.sizes.grid](*inputs, mixed_THd, totals_TH, *ctx.sizes.numbers, **ctx.sizes.constants)
        return mixed_THd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_THd: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, mixed_THd, totals_TH = ctx.saved_tensors
        queries_THd, keys_THd, values_THd, place_bias_P, interval_bias_I = tensors[:5]
        gradient_THd = gradient_THd.contiguous()
        deltas_TH = (gradient_THd.float() * mixed_THd.float()).sum(dim=2)
        found = [torch.empty_like(x) for x in (queries_THd, keys_THd, values_THd)]
        biases = [
            None if bias is None else torch.zeros(_NUM_COPIES, len(bias), dtype=torch.float32, device=bias.device)
            for bias in (place_bias_P, interval_bias_I)
        ]
        inputs = *ctx.sizes.inputs(*tensors), gradient_THd, totals_TH, deltas_TH
        sums = [totals_TH if bias is None else bias for bias in biases]
        _differentiate_queries[ctx.sizes.grid](
            *inputs, found[0], *sums, *ctx.sizes.numbers, NUM_COPIES=_NUM_COPIES, **ctx.sizes.constants
        )
        _differentiate_keys[ctx.sizes.grid](*inputs, *found[1:], *ctx.sizes.numbers, **ctx.sizes.constants)
        of_biases = [None if bias is None else bias.sum(dim=0) for bias in biases]
        return *found, *of_biases, None, None, None, None, None, None


class _Launch:
    """What all three kernels are started with."""

    def __init__(
        self,
        queries_THd: Tensor,
        place_bias_P: Tensor | None,
        interval_bias_I: Tensor | None,
        offsets: Tensor,
        longest: int,
        scale: float,
        softmax: bool,
        log_step: float,
    ) -> None:
        _, num_heads, width = queries_THd.shape
        tile = 64 if width <= 64 else 32
        self.grid = triton.cdiv(longest, tile), (len(offsets) - 1) * num_heads
        num_intervals = 0 if interval_bias_I is None else len(interval_bias_I)
        self.numbers = num_heads, 0 if place_bias_P is None else len(place_bias_P), num_intervals, scale, 1 / log_step
        self.constants = {
            "WIDTH": width,
            "TILE_D": padded(width),
            "TILE": tile,
            "SOFTMAX": softmax,
            "PLACED": place_bias_P is not None,
            "TIMED": interval_bias_I is not None,
            "DOT": dot_type(queries_THd.dtype),
        }

    @staticmethod
    def inputs(*tensors: Tensor | None) -> list[Tensor]:
        """Queries, keys, values, biases, times and offsets; what is not there is the queries, and never read."""
        assert tensors[0] is not None
        return [tensors[0] if tensor is None else tensor for tensor in tensors]


@triton.jit
def _span(offsets: tl.tensor, num_heads: tl.tensor) -> tl.tuple:
    """Of the program's sequence: where it begins among all positions, how many it has; and the program's head."""
    sequence, head = tl.program_id(1) // num_heads, tl.program_id(1) % num_heads
    first = tl.load(offsets + sequence).to(tl.int64)
    return first, (tl.load(offsets + sequence + 1) - first).to(tl.int32), head


@triton.jit
def _rows(
    at: tl.tensor,
    first: tl.tensor,
    length: tl.tensor,
    head: tl.tensor,
    num_heads: tl.tensor,
    WIDTH: tl.constexpr,
    TILE_D: tl.constexpr,
) -> tl.tuple:
    """Where the vectors of a tile's positions stand, and which numbers of them there are."""
    at_d = tl.arange(0, TILE_D)
    rows = ((first + at)[:, None] * num_heads + head) * WIDTH + at_d[None, :]
    return rows, (at < length)[:, None] & (at_d < WIDTH)[None, :]


@triton.jit
def _load(tensor: tl.tensor, rows: tl.tensor, inside: tl.tensor, DOT: tl.constexpr) -> tl.tensor:
    """Vectors as they are multiplied, 0 where there are none."""
    return tl.load(tensor + rows, mask=inside, other=0.0).to(tl.float32).to(DOT)


@triton.jit
def _scores(
    left: tl.tensor,
    right: tl.tensor,
    at_i: tl.tensor,
    at_j: tl.tensor,
    seen: tl.tensor,
    first: tl.tensor,
    places: tl.tensor,
    intervals: tl.tensor,
    times: tl.tensor,
    num_places: tl.tensor,
    num_intervals: tl.tensor,
    scale: tl.tensor,
    per_log: tl.tensor,
    PLACED: tl.constexpr,
    TIMED: tl.constexpr,
) -> tl.tuple:
    """Scores of a tile with its biases, and the distances and intervals that these were looked up by, -1 for none.

    `at_i` and `at_j` are queries and keys within the sequence, `left` and `right` their vectors, either way round;
    `first` is the sequence's position.
    """
    scores = tl.dot(left, tl.trans(right), input_precision="ieee") * scale
    distances = tl.where(seen, tl.minimum(at_i - at_j, num_places - 1), 0)
    buckets = distances * 0
    if PLACED:
        scores += tl.load(places + distances, mask=seen, other=0.0).to(tl.float32)
    if TIMED:
        times_i = tl.load(times + first + at_i, mask=seen, other=0.0)
        times_j = tl.load(times + first + at_j, mask=seen, other=0.0)
        seconds = tl.abs(times_i - times_j).to(tl.float32)
        timed = (tl.abs(times_i) != float("inf")) & (tl.abs(times_j) != float("inf"))
        known = timed & (seconds == seconds)
        steps = tl.log(tl.maximum(tl.where(known, seconds, 1.0), 1.0)) * per_log
        buckets = tl.where(known, 1 + tl.minimum(steps.to(tl.int32), num_intervals - 2), tl.where(timed, 0, -1))
        scores += tl.load(intervals + buckets, mask=seen & timed, other=0.0).to(tl.float32)
    return scores, distances, buckets


@triton.jit
def _slopes(
    scores: tl.tensor,
    of_weights: tl.tensor,
    seen: tl.tensor,
    totals: tl.tensor,
    deltas: tl.tensor,
    num_seen: tl.tensor,
    SOFTMAX: tl.constexpr,
) -> tl.tuple:
    """Weights of a tile, and its scores' derivatives from those of the weights; totals, deltas and counts by query."""
    if SOFTMAX:
        weights = tl.exp(scores - totals)
        slopes = weights * (of_weights - deltas)
    else:
        gates = tl.sigmoid(scores)
        weights = scores * gates / num_seen
        slopes = of_weights * gates * (1 + scores * (1 - gates)) / num_seen
    return tl.where(seen, weights, 0.0), tl.where(seen, slopes, 0.0)


@triton.jit
def _attend(
    queries: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    places: tl.tensor,
    intervals: tl.tensor,
    times: tl.tensor,
    offsets: tl.tensor,
    mixed: tl.tensor,
    totals: tl.tensor,
    num_heads: tl.tensor,
    num_places: tl.tensor,
    num_intervals: tl.tensor,
    scale: tl.tensor,
    per_log: tl.tensor,
    WIDTH: tl.constexpr,
    TILE_D: tl.constexpr,
    TILE: tl.constexpr,
    SOFTMAX: tl.constexpr,
    PLACED: tl.constexpr,
    TIMED: tl.constexpr,
    DOT: tl.constexpr,
) -> None:
    """A tile of queries of one sequence and head: mixed values and, for softmax, the log of the summed exponentials."""
    first, length, head = _span(offsets, num_heads)
    begin = tl.program_id(0) * TILE
    if begin < length:
        at_q = begin + tl.arange(0, TILE)
        is_q = at_q < length
        row_Qd, inside_Qd = _rows(at_q, first, length, head, num_heads, WIDTH, TILE_D)
        queries_Qd = _load(queries, row_Qd, inside_Qd, DOT)
        mixed_Qd = tl.zeros([TILE, TILE_D], tl.float32)
        peak_Q = tl.full([TILE], float("-inf"), tl.float32)
        mass_Q = tl.zeros([TILE], tl.float32)
        for start in range(0, tl.minimum(begin + TILE, length), TILE):
            at_s = start + tl.arange(0, TILE)
            row_Sd, inside_Sd = _rows(at_s, first, length, head, num_heads, WIDTH, TILE_D)
            keys_Sd, values_Sd = _load(keys, row_Sd, inside_Sd, DOT), _load(values, row_Sd, inside_Sd, DOT)
            seen_QS = (at_q[:, None] >= at_s[None, :]) & is_q[:, None]
            scores_QS, _, _ = _scores(
                queries_Qd, keys_Sd, at_q[:, None], at_s[None, :], seen_QS, first, places, intervals, times,
                num_places, num_intervals, scale, per_log, PLACED, TIMED,
            )  # fmt: skip
            if SOFTMAX:
                scores_QS = tl.where(seen_QS, scores_QS, float("-inf"))
                higher_Q = tl.maximum(peak_Q, tl.max(scores_QS, 1))
                finite_Q = tl.where(is_q, higher_Q, 0.0)
                weights_QS = tl.exp(scores_QS - finite_Q[:, None])
                fade_Q = tl.exp(peak_Q - finite_Q)
                mass_Q = mass_Q * fade_Q + tl.sum(weights_QS, 1)
                mixed_Qd = mixed_Qd * fade_Q[:, None]
                peak_Q = higher_Q
            else:
                weights_QS = tl.where(seen_QS, scores_QS * tl.sigmoid(scores_QS), 0.0)
            mixed_Qd += tl.dot(weights_QS.to(DOT), values_Sd, input_precision="ieee")
        if SOFTMAX:
            mixed_Qd = mixed_Qd / mass_Q[:, None]
            tl.store(totals + (first + at_q) * num_heads + head, peak_Q + tl.log(mass_Q), mask=is_q)
        else:
            mixed_Qd = mixed_Qd / (at_q + 1)[:, None]
        tl.store(mixed + row_Qd, mixed_Qd.to(mixed.dtype.element_ty), mask=inside_Qd)


@triton.jit
def _differentiate_queries(
    queries: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    places: tl.tensor,
    intervals: tl.tensor,
    times: tl.tensor,
    offsets: tl.tensor,
    gradient: tl.tensor,
    totals: tl.tensor,
    deltas: tl.tensor,
    of_queries: tl.tensor,
    of_places: tl.tensor,
    of_intervals: tl.tensor,
    num_heads: tl.tensor,
    num_places: tl.tensor,
    num_intervals: tl.tensor,
    scale: tl.tensor,
    per_log: tl.tensor,
    NUM_COPIES: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE_D: tl.constexpr,
    TILE: tl.constexpr,
    SOFTMAX: tl.constexpr,
    PLACED: tl.constexpr,
    TIMED: tl.constexpr,
    DOT: tl.constexpr,
) -> None:
    """Derivatives of a tile of queries, and what the tile adds to those of the biases."""
    first, length, head = _span(offsets, num_heads)
    begin = tl.program_id(0) * TILE
    if begin < length:
        copy = (tl.program_id(0) + tl.program_id(1)) % NUM_COPIES
        at_q = begin + tl.arange(0, TILE)
        is_q, figures_Q = at_q < length, (first + at_q) * num_heads + head
        row_Qd, inside_Qd = _rows(at_q, first, length, head, num_heads, WIDTH, TILE_D)
        queries_Qd, gradient_Qd = _load(queries, row_Qd, inside_Qd, DOT), _load(gradient, row_Qd, inside_Qd, DOT)
        total_Q = tl.load(totals + figures_Q, mask=is_q, other=0.0)
        delta_Q = tl.load(deltas + figures_Q, mask=is_q, other=0.0)
        of_queries_Qd = tl.zeros([TILE, TILE_D], tl.float32)
        for start in range(0, tl.minimum(begin + TILE, length), TILE):
            at_s = start + tl.arange(0, TILE)
            row_Sd, inside_Sd = _rows(at_s, first, length, head, num_heads, WIDTH, TILE_D)
            keys_Sd, values_Sd = _load(keys, row_Sd, inside_Sd, DOT), _load(values, row_Sd, inside_Sd, DOT)
            seen_QS = (at_q[:, None] >= at_s[None, :]) & is_q[:, None]
            scores_QS, distances_QS, buckets_QS = _scores(
                queries_Qd, keys_Sd, at_q[:, None], at_s[None, :], seen_QS, first, places, intervals, times,
                num_places, num_intervals, scale, per_log, PLACED, TIMED,
            )  # fmt: skip
            of_weights_QS = tl.dot(gradient_Qd, tl.trans(values_Sd), input_precision="ieee")
            _, slopes_QS = _slopes(
                scores_QS, of_weights_QS, seen_QS, total_Q[:, None], delta_Q[:, None], (at_q + 1)[:, None], SOFTMAX
            )
            of_queries_Qd += tl.dot(slopes_QS.to(DOT), keys_Sd, input_precision="ieee")
            if PLACED:
                tl.atomic_add(of_places + copy * num_places + distances_QS, slopes_QS, mask=seen_QS)
            if TIMED:
                timed_QS = seen_QS & (buckets_QS >= 0)
                tl.atomic_add(of_intervals + copy * num_intervals + buckets_QS, slopes_QS, mask=timed_QS)
        of_queries_Qd = of_queries_Qd * scale
        tl.store(of_queries + row_Qd, of_queries_Qd.to(of_queries.dtype.element_ty), mask=inside_Qd)


@triton.jit
def _differentiate_keys(
    queries: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    places: tl.tensor,
    intervals: tl.tensor,
    times: tl.tensor,
    offsets: tl.tensor,
    gradient: tl.tensor,
    totals: tl.tensor,
    deltas: tl.tensor,
    of_keys: tl.tensor,
    of_values: tl.tensor,
    num_heads: tl.tensor,
    num_places: tl.tensor,
    num_intervals: tl.tensor,
    scale: tl.tensor,
    per_log: tl.tensor,
    WIDTH: tl.constexpr,
    TILE_D: tl.constexpr,
    TILE: tl.constexpr,
    SOFTMAX: tl.constexpr,
    PLACED: tl.constexpr,
    TIMED: tl.constexpr,
    DOT: tl.constexpr,
) -> None:
    """Derivatives of a tile of keys and of their values, from all queries that see them."""
    first, length, head = _span(offsets, num_heads)
    begin = tl.program_id(0) * TILE
    if begin < length:
        at_s = begin + tl.arange(0, TILE)
        row_Sd, inside_Sd = _rows(at_s, first, length, head, num_heads, WIDTH, TILE_D)
        keys_Sd, values_Sd = _load(keys, row_Sd, inside_Sd, DOT), _load(values, row_Sd, inside_Sd, DOT)
        of_keys_Sd = tl.zeros([TILE, TILE_D], tl.float32)
        of_values_Sd = tl.zeros([TILE, TILE_D], tl.float32)
        for start in range(begin, length, TILE):
            at_q = start + tl.arange(0, TILE)
            is_q, figures_Q = at_q < length, (first + at_q) * num_heads + head
            row_Qd, inside_Qd = _rows(at_q, first, length, head, num_heads, WIDTH, TILE_D)
            queries_Qd, gradient_Qd = _load(queries, row_Qd, inside_Qd, DOT), _load(gradient, row_Qd, inside_Qd, DOT)
            total_Q = tl.load(totals + figures_Q, mask=is_q, other=0.0)
            delta_Q = tl.load(deltas + figures_Q, mask=is_q, other=0.0)
            seen_SQ = (at_q[None, :] >= at_s[:, None]) & is_q[None, :]
            scores_SQ, _, _ = _scores(
                keys_Sd, queries_Qd, at_q[None, :], at_s[:, None], seen_SQ, first, places, intervals, times,
                num_places, num_intervals, scale, per_log, PLACED, TIMED,
            )  # fmt: skip
            of_weights_SQ = tl.dot(values_Sd, tl.trans(gradient_Qd), input_precision="ieee")
            weights_SQ, slopes_SQ = _slopes(
                scores_SQ, of_weights_SQ, seen_SQ, total_Q[None, :], delta_Q[None, :], (at_q + 1)[None, :], SOFTMAX
            )
            of_values_Sd += tl.dot(weights_SQ.to(DOT), gradient_Qd, input_precision="ieee")
            of_keys_Sd += tl.dot(slopes_SQ.to(DOT), queries_Qd, input_precision="ieee")
        tl.store(of_keys + row_Sd, (of_keys_Sd * scale).to(of_keys.dtype.element_ty), mask=inside_Sd)
        tl.store(of_values + row_Sd, of_values_Sd.to(of_values.dtype.element_ty), mask=inside_Sd)
