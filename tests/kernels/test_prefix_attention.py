"""Beams' attention to their own prefixes equals the plain reference."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.prefix_attention import attend_to_prefix
from kernels.reference import attention_to_prefix


def test_by_hand() -> None:
    first = torch.tensor([[0.0]]), torch.tensor([[4.0]])  # key, value
    second = torch.tensor([[[math.log(3) / 2]]]), torch.tensor([[[8.0]]])
    mixed = attend_to_prefix(torch.tensor([[[2.0]]]), first, [second], num_heads=1)
    assert mixed.item() == pytest.approx(7.0)  # weights 1/4 and 3/4


@given(
    requests=st.integers(1, 3),
    beams=st.integers(1, 5),
    num_heads=st.integers(1, 4),
    head_dim=st.integers(1, 9),
    num_others=st.integers(0, 3),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_equals_the_reference(
    requests: int, beams: int, num_heads: int, head_dim: int, num_others: int, dtype: torch.dtype
) -> None:
    inner, generator = num_heads * head_dim, torch.Generator().manual_seed(requests * beams)
    queries = torch.randn(requests, beams, inner, generator=generator)
    tokens = [torch.randn(2, requests, beams, inner, generator=generator) for _ in range(1 + num_others)]
    low = [(keys.to(dtype), values.to(dtype)) for keys, values in tokens]
    found = attend_to_prefix(queries.to(dtype), (low[0][0][:, 0], low[0][1][:, 0]), low[1:], num_heads)
    exact = [(keys, values) for keys, values in tokens]
    expected = attention_to_prefix(queries, (exact[0][0][:, 0], exact[0][1][:, 0]), exact[1:], num_heads)
    tolerance = 0.1 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(found.float(), expected, atol=tolerance, rtol=0)


def test_reads_projections_where_they_lie() -> None:
    projected = torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(0))
    queries, keys, values = projected.chunk(3, dim=-1)
    others = [(keys, values)]
    first = torch.ones(2, 4), torch.ones(2, 4)
    found = attend_to_prefix(queries, first, others, num_heads=2)
    torch.testing.assert_close(found, attention_to_prefix(queries, first, others, num_heads=2))
