"""The prefix-aware loss on worked values."""

import math

import pytest
import torch

from onerec.model.prefix_loss import prefix_loss


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
