"""Prompts see training events only, and every kind of rollout fills its groups with allowed items."""

import numpy as np
import pytest
import torch

from onerec.data.histories import Histories, Split
from onerec.errors import DataError
from rl.rollout import Prompts, roll_out
from rl.settings import RolloutSettings

CPU = torch.device("cpu")


def test_held_out_events_are_neither_targets_nor_histories(toy) -> None:
    prompts = Prompts.of(toy.histories, max_history_items=4)
    batch = prompts.batch(prompts.rows, CPU)
    assert len(prompts.rows) == 12 * 4  # five training events a user, the first of which has no history
    held_out = {(user, int(item)) for user in range(12) for item in toy.histories.items[user * 7 : user * 7 + 7][-2:]}
    users = prompts.training.users_of(prompts.rows)
    for user, target, history in zip(users, batch.targets_B, batch.seen, strict=True):
        assert not {(int(user), int(item)) for item in [target, *history]} & held_out
        np.testing.assert_array_equal(history[-1] + 1, target if target else 14)


def test_a_batch_holds_the_newest_items_right_padded(toy) -> None:
    prompts = Prompts.of(toy.histories, max_history_items=3)
    batch = prompts.batch(prompts.rows[[0, 3]], CPU)
    assert batch.histories_BS.tolist() == [[0, 0, 0], [1, 2, 3]]
    assert batch.lengths_B.tolist() == [1, 3]
    assert batch.targets_B.tolist() == [1, 4]
    assert [history.tolist() for history in batch.seen] == [[0], [0, 1, 2, 3]]


@pytest.mark.parametrize("kind", ["sample", "distinct", "beam"])
@pytest.mark.parametrize("exclude_seen", [False, True])
def test_groups_hold_allowed_items(toy, kind: str, exclude_seen: bool) -> None:
    prompts = Prompts.of(toy.histories, max_history_items=4)
    batch = prompts.batch(prompts.rows[:8], CPU)
    settings = RolloutSettings(kind=kind, group_size=12, exclude_seen=exclude_seen)
    rollout = roll_out(toy.model, batch, toy.trie, settings, torch.Generator().manual_seed(0))
    assert rollout.items_BG.shape == rollout.present_BG.shape == (8, 12)
    for items, present, seen in zip(rollout.items_BG, rollout.present_BG, batch.seen, strict=True):
        found = items[present].tolist()
        assert not exclude_seen or not set(found) & set(seen.tolist())
        if kind != "sample":
            assert len(set(found)) == len(found) == min(12, 14 - exclude_seen * len(set(seen.tolist())))
        assert items[~present].tolist() == [items[0].item()] * int((~present).sum())
    rollout.scores_BG.requires_grad_()  # no inference tensors


def test_a_prompt_that_has_seen_everything_is_an_error(toy) -> None:
    items = np.arange(15, dtype=np.int32) % 14
    splits = np.zeros(15, dtype=np.uint8)
    prompts = Prompts.of(Histories(np.array([0, 15]), items, np.arange(15), splits), 4)
    batch = prompts.batch(prompts.rows[-1:], CPU)
    with pytest.raises(DataError, match="1 prompts have every item of the catalogue in their history"):
        roll_out(toy.model, batch, toy.trie, RolloutSettings(exclude_seen=True), torch.Generator())


def test_events_without_a_history_are_no_prompts(toy) -> None:
    one_each = Histories(np.arange(4), np.arange(3, dtype=np.int32), np.arange(3), np.full(3, Split.TRAIN, np.uint8))
    with pytest.raises(DataError, match="found no training event with a history"):
        Prompts.of(one_each, 4)


def test_a_cut_of_the_mass_is_refused_where_nothing_is_drawn_from_it() -> None:
    assert RolloutSettings(kind="sample", top_p=0.9).top_p == 0.9
    for kind in ("distinct", "beam"):
        with pytest.raises(ValueError, match=f"top_p: found 0.9 with kind {kind}, expected 1, or kind sample"):
            RolloutSettings(kind=kind, top_p=0.9)
