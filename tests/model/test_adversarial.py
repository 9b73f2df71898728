"""The worst move on a model of two codes whose answer is known, and the randomness that must not be one."""

import math

import pytest
import torch
from torch import Tensor

from onerec.model.adversarial import adversarial_losses, divergences, replayed_randomness, vulnerability

SLOPES_BSE = torch.tensor([[[3.0, 0.0], [0.0, 4.0]], [[0.0, 1.0], [0.0, 0.0]]])  # of one logit by what it is moved


def predict(move_BSE: Tensor) -> tuple[Tensor, ...]:
    """One target a row, whose two codes have the logits s and 0, s the slopes' product with the move."""
    logits_B = (SLOPES_BSE * move_BSE).flatten(1).sum(dim=1)
    return (torch.stack([logits_B, torch.zeros_like(logits_B)], dim=1).log_softmax(dim=1),)


def test_the_move_goes_where_the_prediction_changes_most() -> None:
    clean, start = predict(torch.zeros(2, 2, 2)), torch.tensor([[[1.0, 1.0], [1.0, 1.0]], [[1.0, 2.0], [0.0, 0.0]]])
    found = adversarial_losses(predict, clean, start, torch.tensor([0.1, 0.5]))
    for loss, logit in zip(found.tolist(), (0.1 * 5, 0.5 * 1), strict=True):  # size times the length of the slopes
        p = 1 / (1 + math.exp(-logit))
        assert loss == pytest.approx(math.log(0.5 / p) / 2 + math.log(0.5 / (1 - p)) / 2, rel=1e-4)


def test_a_row_without_items_is_not_moved() -> None:
    clean = predict(torch.zeros(2, 2, 2))
    found = adversarial_losses(predict, clean, torch.zeros(2, 2, 2), torch.zeros(2))
    assert found.tolist() == [0.0, 0.0]


def test_divergence_adds_up_levels() -> None:
    fair, sure = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.8, 0.2]]).log()
    one = 0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2)
    assert divergences((fair, fair), (sure, sure)).item() == pytest.approx(2 * one)
    assert divergences((sure,), (sure,)).item() == pytest.approx(0, abs=1e-7)


def test_better_fitted_rows_are_moved_more() -> None:
    shares = vulnerability(torch.tensor([1.0, 2.0, 3.0]))
    assert shares.tolist() == pytest.approx([1 / (1 + math.exp(-0.5)), 0.5, 1 / (1 + math.exp(0.5))])


def test_randomness_is_replayed_and_put_back() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    draws = []
    for _ in range(2):
        with replayed_randomness(11, torch.device("cpu")):
            draws.append(torch.rand(3))
    torch.testing.assert_close(draws[0], draws[1], rtol=0, atol=0)
    torch.testing.assert_close(torch.rand(2), expected, rtol=0, atol=0)
