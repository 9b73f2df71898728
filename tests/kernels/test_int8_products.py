"""Products with weights of eight bits by hand, within the bound of their rounding, and against the reference."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels import reference
from kernels.int8_products import int8_product, quantise_int8


def test_by_hand() -> None:
    weight = torch.tensor([[2.54, -1.262, 0.011], [0.0, 0.0, 0.0], [-12.7, 6.0, 0.04]])
    codes, scales = quantise_int8(weight, torch.float32)
    assert codes.dtype == torch.int8
    # 2.54 / 127 = 0.02, of which -1.262 is 63.1 and 0.011 a half and a bit; 12.7 / 127 = 0.1.
    assert codes.tolist() == [[127, -63, 1], [0, 0, 0], [-127, 60, 0]]
    torch.testing.assert_close(scales, torch.tensor([[0.02], [1.0], [0.1]]))
    found = int8_product(torch.tensor([[[1.0, 2.0, 3.0]]]), codes, scales)
    torch.testing.assert_close(found, torch.tensor([[[0.02 * (127 - 2 * 63 + 3), 0.0, 0.1 * (-127 + 2 * 60)]]]))


@given(
    seed=st.integers(0, 2**16),
    size=st.sampled_from([1e-20, 1e-3, 1.0, 1e10]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_no_weight_is_further_off_than_half_a_scale(seed: int, size: float, dtype: torch.dtype) -> None:
    torch.manual_seed(seed)
    weight = size * torch.randn(5, 9)
    codes, scales = quantise_int8(weight, dtype)
    assert scales.dtype == dtype
    assert codes.abs().amax(dim=1).eq(127).all()  # the whole range is used, and none fell off its end
    error = (weight.double() - codes.double() * scales.double()).abs()
    assert (error <= scales.double() * (0.5 + 1e-4)).all()


@given(seed=st.integers(0, 2**16), num_rows=st.integers(0, 5), inner=st.integers(1, 40))
def test_the_error_of_a_product_is_within_that_of_its_weights(seed: int, num_rows: int, inner: int) -> None:
    torch.manual_seed(seed)
    x, weight = torch.randn(2, num_rows, inner), torch.randn(7, inner)
    codes, scales = quantise_int8(weight, torch.float32)
    error = (int8_product(x, codes, scales) - x @ weight.T).abs()
    assert error.shape == (2, num_rows, 7)
    assert (error <= x.abs().sum(dim=-1, keepdim=True) * scales.T / 2 + 1e-5).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_equals_the_reference_and_no_row_asks_for_the_others(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(6, 48).to(dtype), torch.randn(32, 48)
    weights = quantise_int8(weight, dtype)
    found = int8_product(x, *weights)
    assert found.dtype == dtype
    expected = reference.quantised_product(x, *weights)
    torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=10 * tolerance)
    louder = torch.cat([x[:1], 1000 * x[1:]])
    torch.testing.assert_close(int8_product(louder, *weights)[0], found[0], rtol=0, atol=0)


def test_a_weight_that_is_not_a_number_is_not_hidden() -> None:
    codes, scales = quantise_int8(torch.tensor([[1.0, float("nan")], [1.0, 2.0]]), torch.float32)
    found = int8_product(torch.ones(1, 2), codes, scales)
    assert found.isnan().tolist() == [[True, False]]
