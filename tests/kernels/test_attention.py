"""Every way of attending equals the plain reference, forward and backward."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.attention import attend
from kernels.reference import attention


def make(num_queries: int, num_keys: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 2, num_queries, 8), (3, 2, num_keys, 8), (3, 2, num_keys, 8)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def test_reference_by_hand() -> None:
    queries, keys = torch.tensor([[[[2.0]]]]), torch.tensor([[[[0.0], [math.log(3) / 2]]]])
    values = torch.tensor([[[[4.0], [8.0]]]])
    assert attention(queries, keys, values).item() == pytest.approx(7.0)  # weights 1/4 and 3/4
    only_first = torch.tensor([True, False])
    assert attention(queries, keys, values, only_first).item() == pytest.approx(4.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_cross_attention_and_its_gradients(dtype: torch.dtype, masked: bool) -> None:
    visible = torch.tensor([[True, False, True, True], [True, True, False, False]]) if masked else None
    fast, plain = make(2, 4, dtype), make(2, 4)
    ours = attend(*fast, visible)
    theirs = F.scaled_dot_product_attention(*plain, attn_mask=visible)
    compare(ours, fast, theirs, plain, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_causal_attention_and_its_gradients(dtype: torch.dtype) -> None:
    fast, plain = make(5, 5, dtype), make(5, 5)
    compare(attend(*fast, causal=True), fast, F.scaled_dot_product_attention(*plain, is_causal=True), plain, dtype)


def compare(ours: Tensor, fast: list[Tensor], theirs: Tensor, plain: list[Tensor], dtype: torch.dtype) -> None:
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.float(), theirs, rtol=tolerance, atol=tolerance)
    weights = torch.linspace(-1, 1, ours.numel()).view_as(ours)
    (ours.float() * weights).sum().backward()
    (theirs * weights).sum().backward()
    for tensor, expected in zip(fast, plain, strict=True):
        assert tensor.grad is not None
        torch.testing.assert_close(tensor.grad.float(), expected.grad, rtol=tolerance, atol=tolerance)


def test_bfloat16_without_derivatives() -> None:
    fast, plain = make(3, 4, torch.bfloat16), make(3, 4)
    with torch.no_grad():
        torch.testing.assert_close(attend(*fast).float(), attention(*plain), rtol=3e-2, atol=3e-2)
