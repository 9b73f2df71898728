"""The norm by hand, against torch's own, and its derivative against finite differences."""

import pytest
import torch

from kernels.rms_norm import RMSNorm


def test_by_hand() -> None:
    norm = RMSNorm(2, eps=0.0)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0]))
    x = torch.tensor([[3.0, 4.0]])
    expected = torch.tensor([[3.0, 8.0]]) / 12.5**0.5
    torch.testing.assert_close(norm(x), expected)
    torch.testing.assert_close(norm(x.requires_grad_()), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_torch(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    ours, theirs = RMSNorm(16, eps=1e-6), torch.nn.RMSNorm(16, eps=1e-6)
    torch.nn.init.uniform_(ours.weight)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 5, 16).to(dtype).requires_grad_()
    y = x.detach().float().requires_grad_()
    slopes = torch.randn(3, 5, 16)
    result, expected = ours(x), theirs(y)
    assert result.dtype == dtype
    result.backward(slopes.to(dtype))
    expected.backward(slopes)
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    assert x.grad is not None
    torch.testing.assert_close(result.float(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(x.grad.float(), y.grad, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=tolerance, atol=tolerance)


def test_derivative_against_finite_differences() -> None:
    torch.manual_seed(0)
    norm = RMSNorm(4, eps=1e-6).double()
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, (x,))
