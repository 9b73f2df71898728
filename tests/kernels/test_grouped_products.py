"""Grouped products by hand and against the reference, forward and backward, by either way of computing them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kernels import grouped_products, reference
from kernels.grouped_products import grouped_product


def test_by_hand() -> None:
    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    weights = torch.tensor([[[1.0], [10.0]], [[0.0], [7.0]], [[2.0], [0.0]]])
    found = grouped_product(rows, weights, torch.tensor([2, 0, 1]))
    torch.testing.assert_close(found, torch.tensor([[21.0], [43.0], [10.0]]))


def gradients(product: Tensor, rows: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
    slopes = torch.linspace(-1, 1, product.numel()).view_as(product).to(product.dtype)
    return torch.autograd.grad(product, (rows, weights), slopes)


@given(counts=st.lists(st.integers(0, 5), min_size=1, max_size=4), inner=st.integers(1, 9), outer=st.integers(1, 9))
def test_equals_the_reference(counts: list[int], inner: int, outer: int) -> None:
    generator = torch.Generator().manual_seed(sum(counts))
    rows = torch.randn(sum(counts), inner, generator=generator, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(len(counts), inner, outer, generator=generator, dtype=torch.float64, requires_grad=True)
    found = grouped_product(rows, weights, torch.tensor(counts))
    expected = reference.grouped_product(rows, weights, torch.tensor(counts))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(found, rows, weights), gradients(expected, rows, weights))


def test_a_group_without_rows_gets_a_gradient_of_zeros() -> None:
    rows, weights = torch.ones(3, 2), torch.ones(3, 2, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(grouped_product(rows, weights, torch.tensor([0, 3, 0])).sum(), weights)
    torch.testing.assert_close(gradient, torch.tensor([0.0, 3.0, 0.0])[:, None, None].expand(3, 2, 4))


def test_torchs_kernel_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way a GPU takes, on this machine: torch computes it on a CPU too."""
    monkeypatch.setattr(grouped_products, "_has_fused_product", lambda rows, weights: True)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(11, 16, generator=generator).bfloat16().requires_grad_()
    weights = torch.randn(4, 16, 8, generator=generator).bfloat16().requires_grad_()
    counts = torch.tensor([4, 0, 6, 1])
    found = grouped_product(rows, weights, counts)
    exact = rows.detach().float().requires_grad_(), weights.detach().float().requires_grad_()
    expected = reference.grouped_product(*exact, counts)
    torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=2e-2)
    for ours, theirs in zip(gradients(found, rows, weights), gradients(expected, *exact), strict=True):
        torch.testing.assert_close(ours.float(), theirs, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    ("device", "dtype", "width", "fused"),
    [
        ("cpu", torch.bfloat16, 16, False),
        ("cuda", torch.float32, 16, False),
        ("cuda", torch.bfloat16, 16, True),
        ("cuda", torch.bfloat16, 12, False),
    ],
)
def test_torchs_kernel_is_for_aligned_bfloat16_on_cuda(
    device: str, dtype: torch.dtype, width: int, fused: bool
) -> None:
    class Rows:
        """What the choice looks at, without a GPU."""

        def __init__(self) -> None:
            self.device, self.dtype = torch.device(device), dtype

        def element_size(self) -> int:
            return dtype.itemsize

    assert grouped_products._has_fused_product(Rows(), torch.empty(2, 8, width)) is fused
