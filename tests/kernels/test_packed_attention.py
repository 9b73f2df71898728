"""Attention within packed rows equals the plain reference, forward and backward, whatever the shape of the rows."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.attention import attend_within_rows
from kernels.packed_attention import packed_attention
from kernels.reference import attention

NUM_HEADS, HEAD_WIDTH = 2, 8


def leaves(*shapes: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def plain(visible: Tensor | None, *parts: Tensor) -> Tensor:
    """The reference in float32 from and to the same layout as the packed one's."""
    tensors = [part.float().unflatten(-1, (NUM_HEADS, HEAD_WIDTH)).transpose(1, 2) for part in parts]
    return attention(*tensors, visible).transpose(1, 2).flatten(2)


def compare(ours: Tensor, theirs: Tensor, inputs: list[Tensor]) -> None:
    tolerance = 1e-5 if ours.dtype == torch.float32 else 3e-2
    torch.testing.assert_close(ours.float(), theirs, rtol=tolerance, atol=tolerance)
    slopes = torch.linspace(-1, 1, theirs.numel()).view_as(theirs)
    expected = torch.autograd.grad(theirs, inputs, slopes)
    for found, wanted in zip(torch.autograd.grad(ours, inputs, slopes.to(ours.dtype)), expected, strict=True):
        torch.testing.assert_close(found.float(), wanted.float(), rtol=tolerance, atol=tolerance)


def test_rows_of_two_tokens_by_hand() -> None:
    # One head of width 1: the first token sees itself, the second weighs values 4 and 8 by 1/4 and 3/4.
    first, second = [0.0, 0.0, 4.0], [1.0, math.log(3), 8.0]
    rows = torch.tensor([[first, second]] * 3).requires_grad_()
    expected = torch.tensor([[[4.0], [7.0]]] * 3)
    torch.testing.assert_close(attend_within_rows(rows, 1), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(num_rows=st.integers(0, 40), num_tokens=st.integers(1, 40))
@settings(max_examples=15, deadline=None)
def test_own_tokens(dtype: torch.dtype, num_rows: int, num_tokens: int) -> None:
    (joined,) = leaves((num_rows, num_tokens, 3 * NUM_HEADS * HEAD_WIDTH), dtype=dtype)
    causal = torch.ones(num_tokens, num_tokens, dtype=torch.bool).tril()
    theirs = plain(causal, *joined.chunk(3, dim=-1))
    compare(packed_attention(NUM_HEADS, causal, joined), theirs, [joined])
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    found = attend_within_rows(joined, NUM_HEADS)
    torch.testing.assert_close(found.float(), theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(num_rows=st.integers(0, 20), num_queries=st.integers(1, 40), num_keys=st.integers(1, 40), masked=st.booleans())
@settings(max_examples=15, deadline=None)
def test_other_tokens(dtype: torch.dtype, num_rows: int, num_queries: int, num_keys: int, masked: bool) -> None:
    width = NUM_HEADS * HEAD_WIDTH
    queries, keys_values = leaves((num_rows, num_queries, width), (num_rows, num_keys, 2 * width), dtype=dtype)
    visible = torch.ones(num_queries, num_keys, dtype=torch.bool).tril() if masked else None
    parts = queries, *keys_values.chunk(2, dim=-1)
    compare(packed_attention(NUM_HEADS, visible, *parts), plain(visible, *parts), [queries, keys_values])
