"""Routed products and their derivatives by the kernels against the plain reference."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import reference
from kernels.routed_products import routed_product


@given(
    counts=st.lists(st.integers(0, 70), min_size=1, max_size=4).filter(any),
    num_tokens=st.integers(1, 20),
    inner=st.integers(1, 40),
    outer=st.integers(1, 70),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
@settings(max_examples=5)
def test_equals_the_reference_over_random_routings(
    counts: list[int], num_tokens: int, inner: int, outer: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(inner)
    counts_E, rows_A = torch.tensor(counts), torch.randint(num_tokens, (sum(counts),))
    tensors = [torch.randn(num_tokens, inner).to(dtype), torch.randn(len(counts), inner, outer).to(dtype)]
    ours = [tensor.requires_grad_() for tensor in tensors]
    theirs = [tensor.detach().float().requires_grad_() for tensor in tensors]
    found = routed_product(*ours, counts_E, rows_A, backend="triton")
    expected = reference.grouped_product(theirs[0][rows_A], theirs[1], counts_E)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-1
    torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=tolerance)
    slopes = torch.linspace(-1, 1, found.numel()).view_as(found)
    gradients = torch.autograd.grad((found.float() * slopes).sum(), ours)
    wanted = torch.autograd.grad((expected * slopes).sum(), theirs)
    for one, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(one.float(), other, rtol=tolerance, atol=2 * tolerance)
