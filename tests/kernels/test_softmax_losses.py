"""Softmax losses against torch's cross-entropy, in value and gradient."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from kernels.softmax_losses import softmax_losses


def test_four_even_classes_by_hand() -> None:
    even_MN = torch.zeros(1, 4, requires_grad=True)
    losses_M, probs_MN = softmax_losses(even_MN, torch.tensor([2]))
    losses_M.sum().backward()
    torch.testing.assert_close(losses_M.detach(), torch.tensor([4.0]).log())
    torch.testing.assert_close(probs_MN, torch.full((1, 4), 0.25))
    torch.testing.assert_close(even_MN.grad, torch.tensor([[0.25, 0.25, -0.75, 0.25]]))


@given(st.integers(1, 6), st.integers(1, 9), st.floats(0.1, 200), st.integers(0, 2**31))
def test_values_and_gradients_are_those_of_torch(rows: int, classes: int, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_MN = (scale * torch.randn(rows, classes, generator=generator)).requires_grad_()
    targets_M = torch.randint(classes, (rows,), generator=generator)
    weights_M = torch.rand(rows, generator=generator)
    ours_M, probs_MN = softmax_losses(logits_MN, targets_M)
    expected_M = F.cross_entropy(logits_MN, targets_M, reduction="none")
    torch.testing.assert_close(ours_M, expected_M, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(probs_MN, logits_MN.detach().softmax(dim=-1))
    ours, expected = (torch.autograd.grad((weights_M * losses).sum(), logits_MN)[0] for losses in (ours_M, expected_M))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


def test_a_target_too_rare_for_a_float_still_has_its_loss_and_pull() -> None:
    logits_MN = torch.tensor([[0.0, 200.0], [0.0, 1.0]], requires_grad=True)
    losses_M, _ = softmax_losses(logits_MN, torch.tensor([0, 0]))
    losses_M.sum().backward()
    assert losses_M[0].item() == pytest.approx(200)
    torch.testing.assert_close(logits_MN.grad[0], torch.tensor([-1.0, 1.0]))


def test_probabilities_pass_no_gradient_on() -> None:
    logits_MN = torch.randn(2, 3, requires_grad=True)
    assert not softmax_losses(logits_MN, torch.tensor([0, 1]))[1].requires_grad
