"""An optimizer that goes on: as if it had never stopped, with nothing remembered of rows that are new."""

import pytest
import torch
from torch import nn

from onerec.streaming.moments import moments_of, restore_moments
from onerec.training.optimizers import build_optimizer
from onerec.training.settings import TrainingSettings


class Small(nn.Module):
    """A table of items, by option of sparse gradients, and a stack of matrices among blocks."""

    def __init__(self, num_items: int, sparse: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.items = nn.Embedding(num_items, 4, sparse=sparse)
        self.blocks = nn.ModuleList([nn.Linear(4, 4)])
        self.inner = nn.Module()
        self.inner.blocks = nn.Module()
        self.inner.blocks.stack = nn.Parameter(torch.randn(2, 4, 4))

    def step(self, optimizer: torch.optim.Optimizer, rows: list[int]) -> None:
        self.zero_grad()
        ((self.blocks[0](self.items(torch.tensor(rows))) @ self.inner.blocks.stack[0]) ** 2).sum().backward()
        optimizer.step()


@pytest.mark.parametrize("changes", [{}, {"optimizer": "muon"}, {"sparse": True}], ids=str)
def test_it_goes_on_over_a_table_that_has_grown(changes: dict[str, object]) -> None:
    sparse = bool(changes.get("sparse", False))
    settings = TrainingSettings(optimizer=changes.get("optimizer", "adamw"), learning_rate=0.1, weight_decay=0.0)
    old = Small(3, sparse)
    optimizer = build_optimizer(old, settings)
    for rows in ([0, 1], [1, 2]):
        old.step(optimizer, rows)
    grown = Small(5, sparse)
    with torch.no_grad():
        for name, value in old.state_dict().items():
            grown.get_parameter(name)[: len(value)] = value
    going_on = build_optimizer(grown, settings)
    restore_moments(going_on, moments_of(optimizer))
    untouched = grown.items.weight[3:].clone()
    for model, its_optimizer in ((old, optimizer), (grown, going_on)):
        model.step(its_optimizer, [0, 2, 2])
    torch.testing.assert_close(grown.items.weight[:3], old.items.weight, rtol=0, atol=0)
    torch.testing.assert_close(grown.items.weight[3:], untouched, rtol=0, atol=0)
    torch.testing.assert_close(grown.blocks[0].weight, old.blocks[0].weight, rtol=0, atol=0)
    torch.testing.assert_close(grown.inner.blocks.stack, old.inner.blocks.stack, rtol=0, atol=0)


def test_the_first_step_of_a_new_row_is_no_larger_than_of_an_old_one() -> None:
    settings = TrainingSettings(learning_rate=0.1, weight_decay=0.0)
    old = Small(3)
    optimizer = build_optimizer(old, settings)
    for _ in range(300):
        old.step(optimizer, [0, 1, 2])
    grown = Small(4)
    going_on = build_optimizer(grown, settings)
    restore_moments(going_on, moments_of(optimizer))
    before = grown.items.weight[3].clone()
    grown.step(going_on, [3])
    bound = 0.1 * (1 - 0.9) / (1 - settings.adam_beta2) ** 0.5
    assert 0 < (grown.items.weight[3] - before).abs().max() < 1.02 * bound
