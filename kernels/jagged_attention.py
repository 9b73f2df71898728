"""Causal self-attention within sequences that stand one behind the other, with biases by distance and by time.

Two forms: softmax of the scaled products, and HSTU's pointwise SiLU (arXiv 2402.17152, section 3, equation 2), whose
sum is divided by the number of positions that the query sees.

Legend: T positions of all sequences, H heads, d head width, B sequences, S positions of the longest, P distances, I
intervals.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.backends import Backend, takes_kernel

Form = Literal["softmax", "silu"]

LOG_STEP = 0.301  # each interval is e^0.301 = 1.35 times as long as the one before it (the authors' code of HSTU)


def attend_jagged(
    queries_THd: Tensor,
    keys_THd: Tensor,
    values_THd: Tensor,
    offsets: Tensor,
    longest: int,
    form: Form,
    place_bias_P: Tensor | None = None,
    interval_bias_I: Tensor | None = None,
    times_T: Tensor | None = None,
    scale: float = 1.0,
    backend: Backend = "auto",
) -> Tensor:
    """Mixed values (T, H, d): each position sees its sequence up to itself.

    Args:
        offsets: int64 (B + 1,), where each sequence begins, and T.
        longest: positions of the longest sequence.
        form: weights are softmax(scores), or silu(scores) / number seen; scores are scale * q k + biases.
        place_bias_P: added by how many places lie between key and query; the last also stands for all beyond.
        interval_bias_I: added by the time between them, see `interval_buckets`; needs `times_T`.
        times_T: float64 seconds, NaN where not known; infinite where there is none to know, which adds nothing.
        backend: on CUDA a Triton kernel, or flash-attn for softmax without biases; a named one that cannot run is an
            error.

    Raises:
        ImportError: a backend is asked for whose package is not installed.
    """
    assert (interval_bias_I is None) == (times_T is None)
    tensors = queries_THd, keys_THd, values_THd
    unbiased = form == "softmax" and place_bias_P is None and interval_bias_I is None
    suits_flash = unbiased and (backend == "flash" or queries_THd.dtype in (torch.float16, torch.bfloat16))
    if suits_flash and takes_kernel(backend, "flash", *tensors):
        return _by_flash_attn(*tensors, offsets, longest, scale)
    if takes_kernel(backend, "triton", *tensors):
        from kernels.triton_jagged_attention import JaggedAttention

        mixed_THd: Tensor = JaggedAttention.apply(
            *tensors, place_bias_P, interval_bias_I, times_T, offsets, longest, scale, form == "softmax", LOG_STEP
        )
        return mixed_THd
    return _by_torch(*tensors, offsets, longest, form, place_bias_P, interval_bias_I, times_T, scale)


def interval_buckets(seconds: Tensor, num_intervals: int) -> Tensor:
    """Buckets of times between events: from 1 on by the logarithm of the seconds, 0 where these are no number."""
    seconds = seconds.abs().float()
    known = seconds.isfinite()
    steps = (torch.where(known, seconds, 1.0).clamp(min=1.0).log() * (1 / LOG_STEP)).long()
    return torch.where(known, 1 + steps.clamp(max=num_intervals - 2), 0)


def _by_torch(
    queries_THd: Tensor,
    keys_THd: Tensor,
    values_THd: Tensor,
    offsets: Tensor,
    longest: int,
    form: Form,
    place_bias_P: Tensor | None,
    interval_bias_I: Tensor | None,
    times_T: Tensor | None,
    scale: float,
) -> Tensor:
    """Sequences padded to the longest; padding stands behind, where no real position looks."""
    places_S = torch.arange(longest, device=offsets.device)
    rows_BS = offsets[:-1, None] + places_S
    inside_BS = rows_BS < offsets[1:, None]
    rows_BS = rows_BS.clamp(max=len(queries_THd) - 1)
    queries, keys, values = (x[rows_BS].transpose(1, 2) for x in (queries_THd, keys_THd, values_THd))
    distances_SS = places_S[:, None] - places_S
    visible_SS = distances_SS >= 0
    scores_BHSS = torch.matmul(queries, keys.transpose(-1, -2)) * scale
    if place_bias_P is not None:
        scores_BHSS = scores_BHSS + place_bias_P[distances_SS.clamp(min=0, max=len(place_bias_P) - 1)]
    if interval_bias_I is not None and times_T is not None:
        times_BS = times_T[rows_BS]
        buckets_BSS = interval_buckets(times_BS[:, :, None] - times_BS[:, None], len(interval_bias_I))
        timed_BS = ~times_BS.isinf()
        bias_BSS = interval_bias_I[buckets_BSS] * (timed_BS[:, :, None] & timed_BS[:, None])
        scores_BHSS = scores_BHSS + bias_BSS[:, None]
    if form == "softmax":
        weights_BHSS = scores_BHSS.masked_fill(~visible_SS, float("-inf")).softmax(dim=-1)
    else:
        weights_BHSS = F.silu(scores_BHSS).masked_fill(~visible_SS, 0.0) / (places_S[:, None] + 1)
    mixed_BSHd = torch.matmul(weights_BHSS.to(values.dtype), values).transpose(1, 2)
    return mixed_BSHd[inside_BS]


def _by_flash_attn(
    queries_THd: Tensor, keys_THd: Tensor, values_THd: Tensor, offsets: Tensor, longest: int, scale: float
) -> Tensor:
    from flash_attn import flash_attn_varlen_func

    begins = offsets.int()
    mixed_THd: Tensor = flash_attn_varlen_func(
        queries_THd, keys_THd, values_THd, begins, begins, longest, longest, softmax_scale=scale, causal=True
    )
    return mixed_THd
