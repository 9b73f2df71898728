"""Products of chosen pairs of rows against their reference, with gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import reference
from kernels.sampled_products import sampled_products


@given(st.integers(0, 2**16), st.integers(1, 9), st.integers(1, 12), st.integers(1, 20))
@settings(max_examples=40, deadline=None)
def test_products_and_gradients_are_the_references(seed: int, num_left: int, num_right: int, width: int) -> None:
    torch.manual_seed(seed)
    chosen = torch.rand(num_left, num_right) < torch.rand(num_left, 1)  # rows without a pair among them
    counts_R, columns_C = chosen.sum(dim=1), chosen.nonzero()[:, 1]
    found = []
    for products in (sampled_products, reference.sampled_products):
        torch.manual_seed(seed)
        left_RD = torch.randn(num_left, width, requires_grad=True)
        right_nD = torch.randn(num_right, width, requires_grad=True)
        result_C = products(left_RD, right_nD, counts_R, columns_C)
        (result_C * torch.arange(len(columns_C))).sum().backward()
        found.append((result_C, left_RD.grad, right_nD.grad))
    for fast, plain in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_bfloat16_rows_are_multiplied_in_float32(mode: type[torch.no_grad]) -> None:
    left_RD, right_nD = torch.randn(3, 16).bfloat16(), torch.randn(4, 16).bfloat16()
    counts_R, columns_C = torch.tensor([2, 0, 1]), torch.tensor([0, 3, 3])
    with mode(), torch.autocast("cpu", torch.bfloat16):
        found_C = sampled_products(left_RD, right_nD, counts_R, columns_C)
    assert found_C.dtype == torch.float32
    torch.testing.assert_close(found_C, reference.sampled_products(left_RD, right_nD, counts_R, columns_C))
