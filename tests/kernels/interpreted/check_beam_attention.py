"""Beams' attention to a context: the kernel against the plain reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.beam_attention import attend_beams
from kernels.reference import attention
from kernels.triton_beam_attention import beam_attention


@given(
    seed=st.integers(0, 2**16),
    shape=st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 20)),
    num_keys=st.integers(1, 150),
    width=st.sampled_from([8, 24, 40]),
    num_parts=st.integers(1, 4),
    masked=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
@settings(max_examples=8)
def test_equals_the_reference_over_random_shapes(
    seed: int, shape: tuple[int, int, int], num_keys: int, width: int, num_parts: int, masked: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(seed)
    queries = torch.randn(*shape, width).to(dtype)
    keys, values = torch.randn(2, *shape[:2], num_keys, width).to(dtype)
    visible = torch.rand(shape[0], num_keys) < 0.5
    visible[:, num_keys // 2] = True
    found = beam_attention(queries, keys, values, visible if masked else None, num_parts)
    exact = (x.float() for x in (queries, keys, values))
    expected = attention(*exact, visible[:, None, None] if masked else None)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=tolerance)


def test_large_scores_in_a_late_part_do_not_overflow() -> None:
    queries = torch.full((1, 1, 1, 8), 30.0)
    keys = torch.zeros(1, 1, 130, 8)
    keys[0, 0, 128] = 30.0
    values = torch.arange(130.0)[None, None, :, None].expand(1, 1, 130, 8)
    found = beam_attention(queries, keys, values, None, num_parts=3)
    torch.testing.assert_close(found, torch.full((1, 1, 1, 8), 128.0))


def test_a_request_that_sees_nothing_gets_nan() -> None:
    visible = torch.tensor([[False] * 3, [True] * 3])
    found = beam_attention(torch.ones(2, 1, 2, 8), torch.ones(2, 1, 3, 8), torch.ones(2, 1, 3, 8), visible, 1)
    assert found[0].isnan().all()
    torch.testing.assert_close(found[1], torch.ones(1, 2, 8))


@pytest.mark.parametrize("masked", [False, True])
def test_the_dispatcher_hands_over_views_as_they_lie(masked: bool) -> None:
    projected = torch.randn(2, 5, 3 * 4 * 8, generator=torch.Generator().manual_seed(0))
    queries, keys, values = (x.unflatten(-1, (4, 8)).transpose(1, 2) for x in projected.chunk(3, dim=-1))
    visible = torch.tensor([[True, True, False, True, True]])[:, None, None].expand(2, -1, -1, -1) if masked else None
    found = attend_beams(queries, keys, values, visible, backend="triton")
    torch.testing.assert_close(found, attend_beams(queries, keys, values, visible, backend="torch"))
