"""The dispatchers on a CPU: torch's way by default, with the reference's results; a named kernel needs its package."""

import pytest
import torch

from kernels import backends, reference
from kernels.backends import takes_kernel
from kernels.beam_attention import attend_beams
from kernels.residual_codes import assign_residual
from kernels.routed_products import routed_product


def test_a_kernel_is_taken_on_cuda_or_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "is_installed", lambda name: True)
    here = torch.zeros(1)
    assert not takes_kernel("auto", "triton", here)
    assert not takes_kernel("torch", "triton", here)
    assert not takes_kernel("flash", "triton", here)
    assert takes_kernel("triton", "triton", here)


def test_a_package_that_is_missing_is_named_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "is_installed", lambda name: False)
    assert not takes_kernel("auto", "triton", torch.zeros(1))
    with pytest.raises(ImportError, match=r"backend triton: found no package triton.*extra `gpu`"):
        takes_kernel("triton", "triton", torch.zeros(1))


@pytest.mark.parametrize("num_beams", [1, 5])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_beams_attend_as_the_reference_does(num_beams: int, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    tensors = torch.randn(2, 3, num_beams, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 8)
    visible = (torch.rand(2, 1, 1, 7) < 0.7) | (torch.arange(7) == 3)
    found = attend_beams(*(tensor.to(dtype) for tensor in tensors), visible)
    assert found.dtype == dtype
    expected = reference.attention(*tensors, visible)
    torch.testing.assert_close(found.float(), expected, atol=tolerance, rtol=tolerance)


def test_codes_are_the_references_for_levels_of_any_size() -> None:
    torch.manual_seed(0)
    rows, codebooks = torch.randn(9, 4), [torch.randn(5, 4), torch.randn(3, 4)]
    torch.testing.assert_close(assign_residual(rows, codebooks), reference.assign_residual(rows, codebooks))


def test_routed_rows_by_hand() -> None:
    tokens, weights = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[[1.0], [10.0]], [[2.0], [0.0]]])
    found = routed_product(tokens, weights, torch.tensor([1, 2]), torch.tensor([1, 0, 1]))
    torch.testing.assert_close(found, torch.tensor([[43.0], [2.0], [6.0]]))
