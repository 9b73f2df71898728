"""Dropout: the share dropped, the expectation kept, independence of neighbours, and when it does nothing."""

import pytest
import torch
from torch import nn

from onerec.model.dropout import Dropout, StochasticDepth, grade_dropout


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5])
def test_share_and_scale(p: float) -> None:
    torch.manual_seed(0)
    dropout = Dropout(p).train()
    found = dropout(torch.ones(1000, 1003))
    assert (found == 0).float().mean().item() == pytest.approx(round(256 * p) / 256, abs=2e-3)
    assert found.mean().item() == pytest.approx(1.0, abs=4e-3)
    torch.testing.assert_close(found.unique(), torch.tensor([0.0, 1 / (1 - dropout.probability)]))


def test_every_place_of_a_draw_is_dropped_alike_and_alone() -> None:
    """One draw gives eight neighbours: each is dropped as often, and knowing one says nothing of the next."""
    torch.manual_seed(0)
    dropped = (Dropout(0.5).train()(torch.ones(400_000)) == 0).float().view(-1, 8)
    torch.testing.assert_close(dropped.mean(dim=0), torch.full((8,), 0.5), atol=0.01, rtol=0)
    torch.testing.assert_close(torch.corrcoef(dropped.T), torch.eye(8), atol=0.02, rtol=0)


def test_gradient_passes_where_activations_stay() -> None:
    x = torch.ones(5, 7, requires_grad=True)
    found = Dropout(0.5).train()(x)
    found.sum().backward()
    torch.testing.assert_close(x.grad, found.detach())


def test_evaluation_and_zero_change_nothing() -> None:
    x = torch.randn(9)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0).train()(x) is x


def test_seed_fixes_the_mask() -> None:
    dropout, x = Dropout(0.3).train(), torch.ones(3, 11)
    torch.manual_seed(4)
    first = dropout(x)
    torch.manual_seed(4)
    torch.testing.assert_close(dropout(x), first)


def test_rows_pass_a_block_by_the_oftener_the_deeper_it_stands() -> None:
    depth = StochasticDepth(0.6, 3)
    assert depth.probabilities_X == pytest.approx([0.2, 0.4, 0.6])
    before, after = torch.full((20_000, 2, 3), 5.0), torch.full((20_000, 2, 3), 7.0)
    torch.manual_seed(0)
    for number, probability in enumerate(depth.probabilities_X):
        found = depth(number, before, after)
        went_through = found[:, 0, 0] != 5
        assert went_through.float().mean().item() == pytest.approx(1 - probability, abs=0.015)
        torch.testing.assert_close(found[went_through], torch.full_like(found[went_through], 5 + 2 / (1 - probability)))
        assert found.mean().item() == pytest.approx(7, abs=0.06)  # in the mean as without it
    assert depth.eval()(2, before, after) is after
    assert StochasticDepth(0.0, 3)(2, before, after) is after


def test_dropout_is_graded_from_the_first_block_to_the_last() -> None:
    def dropouts(last: float | None, count: int = 3) -> list[float]:
        blocks = nn.ModuleList(nn.Module() for _ in range(count))
        for block in blocks:
            block.dropout = Dropout(0.5)
        grade_dropout(blocks, 0.5, last)
        return [block.dropout.probability for block in blocks]

    assert dropouts(None) == [0.5, 0.5, 0.5]
    assert dropouts(0.0) == [0.5, 0.25, 0.0]
    assert dropouts(0.25, count=1) == [0.5]
