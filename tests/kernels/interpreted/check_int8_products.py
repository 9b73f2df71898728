"""Products with weights of eight bits by the kernel against the plain reference."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import reference
from kernels.int8_products import int8_product, quantise_int8


@given(
    num_rows=st.integers(1, 70),
    inner=st.integers(1, 140),
    outer=st.integers(1, 70),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
@settings(max_examples=8)
def test_equals_the_reference_over_random_shapes(num_rows: int, inner: int, outer: int, dtype: torch.dtype) -> None:
    torch.manual_seed(inner)
    x = torch.randn(1, num_rows, inner).to(dtype)
    weights = quantise_int8(torch.randn(outer, inner), dtype)
    found = int8_product(x, *weights, backend="triton")
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    assert found.dtype == dtype
    torch.testing.assert_close(
        found.float(), reference.quantised_product(x, *weights), rtol=tolerance, atol=10 * tolerance
    )
