"""The prefix-aware losses on worked values."""

import math

import pytest
import torch

from onerec.model.prefix_loss import pairwise_prefix_losses, prefix_loss, worst_prefixes


def test_by_hand() -> None:
    """Level losses 1, 3, 9: prefixes of one and two codes cost 1 and 2; weights 1 e^s and 2 e^2s."""
    levels = torch.tensor([1.0, 3.0, 9.0], requires_grad=True)
    loss = prefix_loss(levels, sharpness=0.0)
    assert loss.item() == pytest.approx(1 / 3 * 1 + 2 / 3 * 2)
    loss.backward()
    assert levels.grad is not None
    assert levels.grad.tolist() == pytest.approx([1 / 3 + 2 / 3 / 2, 2 / 3 / 2, 0.0])  # weights are no variables
    worse = 2 * math.e / (1 + 2 * math.e)
    assert prefix_loss(levels, sharpness=1.0).item() == pytest.approx((1 - worse) + worse * 2)


def test_one_level_has_no_prefix() -> None:
    assert prefix_loss(torch.tensor([2.0]), sharpness=1.0).item() == 0.0


def test_a_certain_prefix_weighs_nothing() -> None:
    assert prefix_loss(torch.tensor([0.0, 4.0, 1.0]), sharpness=0.0).item() == pytest.approx(2.0)


def test_rivals_by_hand() -> None:
    """A target of p 1/2 and 1/8 beside rivals of 1/4 and 1/16 (another first code) and of 1/2 and 1/4 (the same)."""
    own = torch.tensor([[1 / 2, 1 / 8]]).log()
    rivals = torch.tensor([[[1 / 4, 1 / 16], [1 / 2, 1 / 4]]]).log()
    differ = torch.tensor([[[True, False], [False, True]]])
    found = pairwise_prefix_losses(own, rivals, differ)
    first = -math.log(1 / 2 / (1 / 2 + 1 / 4))  # the second rival has the same first code
    second = -math.log(1 / 16 / (1 / 16 + 1 / 64 + 1 / 8)) / 2  # what differed once differs from there on
    assert found.tolist() == [pytest.approx([first, second])]
    assert worst_prefixes(found[0], 0.0).item() == pytest.approx((first**2 + second**2) / (first + second))


def test_without_a_rival_nothing_is_lost() -> None:
    own = torch.tensor([[0.5, 0.125]]).log().requires_grad_()
    losses = pairwise_prefix_losses(own, own.detach()[:, None], torch.zeros(1, 1, 2, dtype=torch.bool))
    assert losses.tolist() == [[0.0, 0.0]]
    losses.sum().backward()
    assert own.grad is not None
    assert own.grad.tolist() == [[0.0, 0.0]]
