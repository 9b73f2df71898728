"""Products of float8 numbers by hand and against the reference; torch computes them on a CPU too."""

import pytest
import torch

from kernels import reference
from kernels.float8_products import float8_product, multiplies_float8, quantise_float8


def test_by_hand() -> None:
    codes, scales = quantise_float8(torch.tensor([[4.48, 0.16, -0.0]]).repeat(16, 6)[:, :16])
    assert codes.dtype == torch.float8_e4m3fn
    assert codes[0, :3].float().tolist() == [448.0, 16.0, 0.0]
    torch.testing.assert_close(scales, torch.full((16, 1), 0.01))
    x = torch.zeros(1, 1, 16)
    x[..., :2] = torch.tensor([1.0, 2.0])
    found = float8_product(x.bfloat16(), codes, scales)  # 1 is 224 and 2 is 448 of scale 2 / 448
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), torch.full((1, 1, 16), 4.8), rtol=0.005, atol=0)


def test_equals_the_reference_and_no_row_asks_for_the_others() -> None:
    torch.manual_seed(0)
    x, weights = torch.randn(5, 48).bfloat16(), quantise_float8(torch.randn(32, 48))
    found = float8_product(x, *weights)
    codes, scales = quantise_float8(x)
    expected = reference.quantised_product(codes.float() * scales, *weights)
    torch.testing.assert_close(found.float(), expected, rtol=1e-2, atol=1e-2)
    louder = torch.cat([x[:1], 1000 * x[1:]])
    torch.testing.assert_close(float8_product(louder, *weights)[0], found[0], rtol=0, atol=0)


def test_rows_of_zeros_stay_zeros_and_what_is_not_a_number_is_not_hidden() -> None:
    x, weights = torch.zeros(2, 16), quantise_float8(torch.ones(16, 16))
    x[1, 3] = float("nan")
    found = float8_product(x, *weights)
    assert found[0].tolist() == [0.0] * 16
    assert found[1].isnan().all()


@pytest.mark.parametrize(("capability", "expected"), [((8, 6), False), ((8, 9), True), ((9, 0), True), ((12, 0), True)])
def test_ada_and_hopper_multiply_it(
    capability: tuple[int, int], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert multiplies_float8(torch.device("cuda")) == expected
    assert not multiplies_float8(torch.device("cpu"))
