"""Random ragged batches, and one way of attending against another: results and all derivatives."""

import torch
from torch import Tensor

from kernels import reference
from kernels.jagged_attention import Form, attend_jagged, interval_buckets

NUM_INTERVALS = 12


def make(lengths: list[int], num_heads: int, width: int, seed: int, dtype: torch.dtype) -> list[Tensor]:
    """Queries, keys, values and the two biases, all of which want derivatives."""
    torch.manual_seed(seed)
    shape = (sum(lengths), num_heads, width)
    tensors = [torch.randn(shape) for _ in range(3)] + [torch.randn(max(lengths) // 2 + 1), torch.randn(NUM_INTERVALS)]
    return [tensor.to(dtype).requires_grad_() for tensor in tensors]


def times_of(lengths: list[int], seed: int) -> Tensor:
    """Seconds within some days, one in eight of them unknown; the last but one of every sequence has none."""
    torch.manual_seed(seed)
    times_T = 1.7e9 + torch.rand(sum(lengths), dtype=torch.float64).mul(3e5).round()
    times_T = times_T.masked_fill(torch.rand(sum(lengths)) < 0.125, float("nan"))
    return times_T.index_fill(0, (offsets_of(lengths)[1:] - 2).clamp(min=0), float("inf"))


def expected_of(
    tensors: list[Tensor], lengths: list[int], times_T: Tensor, form: Form, biased: bool, scale: float
) -> Tensor:
    """By the plain reference, from tables of biases."""
    *inputs, place_bias_P, interval_bias_I = tensors
    biases = []
    for times_S in times_T.split(lengths):
        places_S = torch.arange(len(times_S))
        distances_SS = (places_S[:, None] - places_S).clamp(min=0, max=len(place_bias_P) - 1)
        buckets_SS = interval_buckets(times_S[:, None] - times_S, NUM_INTERVALS)
        bias_SS = place_bias_P[distances_SS]
        timed_S = ~times_S.isinf()
        bias_SS = bias_SS + torch.where(timed_S[:, None] & timed_S, interval_bias_I[buckets_SS], 0.0)
        biases.append(bias_SS if biased else torch.zeros(len(times_S), len(times_S)))
    return reference.jagged_attention(*inputs, offsets_of(lengths), form, biases, scale)


def offsets_of(lengths: list[int]) -> Tensor:
    """Where each sequence begins, and the end."""
    return torch.tensor([0, *lengths]).cumsum(0)


def compare(
    lengths: list[int], form: Form, biased: bool, backend: str, dtype: torch.dtype, heads: int = 2, width: int = 12
) -> None:
    """Results and derivatives of a backend against the reference's."""
    ours = make(lengths, heads, width, 0, dtype)
    theirs = [tensor.detach().float().requires_grad_() for tensor in ours]
    times_T = times_of(lengths, 1)
    places, intervals, times = (*ours[3:], times_T) if biased else (None, None, None)
    scale = width**-0.5 if form == "softmax" else 0.3
    found = attend_jagged(
        *ours[:3], offsets_of(lengths), max(lengths), form, places, intervals, times, scale, backend=backend
    )
    expected = expected_of(theirs, lengths, times_T, form, biased, scale)
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=tolerance)
    slopes = torch.linspace(-1, 1, found.numel()).view_as(found)
    wanted = 5 if biased else 3
    gradients = torch.autograd.grad((found.float() * slopes).sum(), ours[:wanted])
    expected_gradients = torch.autograd.grad((expected * slopes).sum(), theirs[:wanted])
    for one, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(one.float(), other, rtol=tolerance, atol=tolerance)
