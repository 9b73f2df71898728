"""Residual codes by the kernel against the plain reference."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import reference
from kernels.residual_codes import assign_residual


@given(
    seed=st.integers(0, 2**16),
    num_rows=st.integers(1, 70),
    width=st.integers(1, 40),
    num_codes=st.integers(1, 70),
    num_levels=st.integers(1, 3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
@settings(max_examples=8)
def test_equals_the_reference_over_random_shapes(
    seed: int, num_rows: int, width: int, num_codes: int, num_levels: int, dtype: torch.dtype
) -> None:
    """Small whole numbers: float32 is exact, so ties are true ties."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(-6, 7, (num_rows, width), generator=generator).to(dtype)
    codebooks = list(torch.randint(-6, 7, (num_levels, num_codes, width), generator=generator).float())
    found, expected = assign_residual(rows, codebooks, "triton"), reference.assign_residual(rows, codebooks)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_of_equal_codes_the_first_wins_across_tiles() -> None:
    codes_NL, left_ND = assign_residual(torch.ones(3, 2), [torch.zeros(70, 2)], "triton")
    assert codes_NL.tolist() == [[0]] * 3
    torch.testing.assert_close(left_ND, torch.ones(3, 2))
